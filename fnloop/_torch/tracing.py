"""Whether the code that runs now is being transformed (vmap, grad, compile) rather than run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any

import torch

_peek: Any = torch._C._functorch.peek_interpreter_stack  # pyright: ignore


class _Local(threading.local):
    compilation: Any = None


_here = _Local()


def tracing() -> bool:
    """True inside ``torch.func`` transforms, `fl.compile` and ``torch.compile``.

    There, Python may not look at a tensor's value, and kernels that write in place or that have
    no batching rule may not be used.
    """
    return _here.compilation is not None or torch.compiler.is_compiling() or _peek() is not None


def transformed() -> bool:
    """True inside ``torch.func`` transforms and ``torch.compile``: autograd's engine cannot run."""
    return torch.compiler.is_compiling() or _peek() is not None


def compilation() -> Any:
    """What `compiling` was given, inside its block in this thread; else None."""
    return _here.compilation


@contextlib.contextmanager
def compiling(about: Any) -> Generator[None]:
    """In this block a step is recorded for `fl.compile`, not run."""
    before = _here.compilation
    _here.compilation = about
    try:
        yield
    finally:
        _here.compilation = before
