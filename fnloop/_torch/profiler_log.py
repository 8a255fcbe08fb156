"""Keep PyTorch's profiler from writing to standard error that it has begun, and ended."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

_LEVEL = "KINETO_LOG_LEVEL"
_NOTHING = "6"


@contextlib.contextmanager
def quiet_profiler() -> Generator[None]:
    """Within the block, a profiler that is the first in this process stays quiet, and all later.

    The profiler's library reads the variable once. One that is set already stays as it is.
    """
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = _NOTHING
    try:
        yield
    finally:
        del os.environ[_LEVEL]
