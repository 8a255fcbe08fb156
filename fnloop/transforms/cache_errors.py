"""Inductor's cache: what it raises where the folder cannot be written, or holds damaged files."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def cache_fault(error: BaseException) -> str | None:
    """What is wrong with the cache, if that has raised `error` or what caused it; else None."""
    folder = os.environ.get(_VARIABLE) or os.path.join(tempfile.gettempdir(), "torchinductor_")
    for cause in _causes(error):
        files = [frame.filename for frame in traceback.extract_tb(cause.__traceback__)]
        if isinstance(cause, (OSError, ImportError)):
            ours = folder in str(cause) or any("/_inductor/" in Path(f).as_posix() for f in files)
        else:  # the code in a damaged file, which is run
            ours = bool(files) and files[-1].startswith(folder)
        if ours:
            return f"{type(cause).__name__}: {cause}"
    return None


def remedy() -> str:
    """Which folder it is, and what to do."""
    folder = os.environ.get(_VARIABLE) or os.path.join(tempfile.gettempdir(), "torchinductor_$USER")
    return (
        f"PyTorch's compiler keeps its files in {folder}. If they are damaged, delete the folder; "
        "if it cannot be written or its disk is full, choose another before Python starts: "
        f"{_VARIABLE}=/some/folder."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
