"""Errors of checkpoints."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, damaged, or of another model."""


class DamagedError(CheckpointError):
    """A checkpoint that is incomplete or damaged; an older one may be intact."""


class UnfitError(CheckpointError):
    """An intact checkpoint of another model, or of an optimizer with other settings.

    Args:
        fault: What does not fit, and the usual cause.
        fix: What to do about it in Python. It is in the text when the error is unpickled, as ranks
            do with that of another one.

    Attributes:
        fault: The same.
    """

    def __init__(self, fault: str, fix: str = "") -> None:
        super().__init__(f"{fault} {fix}".strip())
        self.fault = fault


class MissingError(FileNotFoundError, CheckpointError):
    """There is no checkpoint at a path: no such folder, or none in it. Nothing is damaged."""


class UnfinishedError(DamagedError):
    """One without a manifest, on a store that cannot rename: its upload or deletion has not ended.

    A process or a store that is killed leaves such folders, so they are passed over.
    """


class UnreadableError(OSError, CheckpointError):
    """A file that cannot be read now. Nothing says that it is damaged, so no other is taken."""

    def __str__(self) -> str:
        return str(self.strerror)
