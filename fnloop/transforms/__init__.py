"""Transforms of whole steps: a stage in, a stage out."""
