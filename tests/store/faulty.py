"""A file system of which one call fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Killed(BaseException):
    """The process is dead, and nothing of it runs any more."""


class Faulty:
    """A `fnloop.store.files.Files` that notes each call, and of which one fails.

    Args:
        files: What does the work.
        at: Number of the call that fails, from 0; None: none.
        fault: An errno; "short": it takes one byte of what it was to write, or gives one byte less
            than was to be read; "kill": neither this call nor any later one does anything.
        onwards: All later calls fail too.

    Attributes:
        calls: What was called, by name, with the file's or folder's name.
    """

    def __init__(
        self, files: Any, at: int | None = None, fault: int | str = 0, onwards: bool = False
    ) -> None:
        self.files, self.at, self.fault, self.onwards = files, at, fault, onwards
        self.calls: list[tuple[str, str]] = []

    @property
    def renames(self) -> bool:
        return self.files.renames

    def due(self, call: str, path: Path) -> bool:
        """Note a call; raise if it fails; whether it is to fall short."""
        number = len(self.calls)
        self.calls.append((call, path.name))
        if self.at is None or number < self.at or (number > self.at and not self._goes_on):
            return False
        if self.fault == "kill":
            raise Killed
        if isinstance(self.fault, int):
            raise OSError(self.fault, os.strerror(self.fault), str(path))
        return True

    @property
    def _goes_on(self) -> bool:
        return self.onwards or self.fault == "kill"

    def __getattr__(self, call: str) -> Any:
        method = getattr(self.files, call)

        def noted(path: Path, *others: Path) -> Any:
            self.due(call, path)
            result = method(path, *others)
            return _File(self, path, result) if call in ("create", "open") else result

        return noted


class _File:
    def __init__(self, faulty: Faulty, path: Path, file: Any) -> None:
        self.faulty, self.path, self.file = faulty, path, file

    def write(self, data: Any) -> int | None:
        return self.file.write(
            memoryview(data)[:1] if self.faulty.due("write", self.path) else data
        )

    def readinto(self, memory: Any) -> int | None:
        short = self.faulty.due("read", self.path)
        return self.file.readinto(memory[: max(1, len(memory) - 1)] if short else memory)

    def read(self, size: int = -1) -> bytes:
        return self.file.read(max(1, size - 1) if self.faulty.due("read", self.path) else size)

    def seek(self, *where: int) -> int:
        self.faulty.due("seek", self.path)
        return self.file.seek(*where)

    def sync(self) -> None:
        self.faulty.due("sync", self.path)
        self.file.sync()

    def close(self) -> None:
        try:
            self.faulty.due("close", self.path)
        finally:
            self.file.close()  # whatever it reports, the descriptor is gone

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
