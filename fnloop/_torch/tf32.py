"""TensorFloat-32 in matrix products of float32, for the time of a block."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any, NamedTuple

import torch

_LIBRARIES: Any = (torch.backends.cuda, torch.backends.mkldnn)
_LOCK = threading.Lock()
_before: list[MatmulSettings] = []  # one for each block that a thread is in


class MatmulSettings(NamedTuple):
    """torch's setting for all libraries, and what each of them has in its place."""

    all: str
    each: tuple[str, ...]

    @classmethod
    def now(cls) -> MatmulSettings:
        """As they are."""
        return cls(
            torch.get_float32_matmul_precision(),
            # A library without a setting of its own shows that of its parent.
            tuple(
                [
                    "none" if own.matmul.fp32_precision == parent else own.matmul.fp32_precision
                    for own, parent in zip(_LIBRARIES, _parents(), strict=True)
                ]
            ),
        )

    def restore(self) -> None:
        """Make them these again."""
        torch.set_float32_matmul_precision(self.all)
        for library, precision in zip(_LIBRARIES, self.each, strict=True):
            library.matmul.fp32_precision = precision


def _parents() -> tuple[str, str]:
    both: Any = torch.backends
    return both.fp32_precision, both.mkldnn.fp32_precision


@contextlib.contextmanager
def tf32() -> Generator[None]:
    """A context manager inside which matrix products of float32 may be rounded to TF32.

    The setting is the process's: it is put back when the last thread has left such a block.

    >>> with tf32():
    ...     torch.get_float32_matmul_precision()
    'high'
    >>> torch.get_float32_matmul_precision()
    'highest'
    """
    with _LOCK:
        _before.append(MatmulSettings.now())
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        with _LOCK:
            first = _before[0]
            _before.pop()
            if not _before:
                first.restore()
