"""Frozen dataclasses that are pytrees, and functions on pytrees; independent of training."""
