"""Errors of checkpoints."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged, or of another model."""


class DamagedError(CheckpointError):
    """A checkpoint that is incomplete or damaged; an older one may be intact."""
