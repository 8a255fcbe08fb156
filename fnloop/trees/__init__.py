"""Frozen dataclasses that are pytrees, and functions over them. Knows nothing of training."""
