"""Whether tensors have values that may be looked at: the one place that knows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

_peek: Any = torch._C._functorch.peek_interpreter_stack  # pyright: ignore
_unwrapped: Any = torch._C._functorch.get_unwrapped  # pyright: ignore
_is_wrapped: Any = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore


class _Local(threading.local):
    recording: Any = None


_here = _Local()


def opaque() -> bool:
    """True inside ``torch.func`` transforms, `fl.compile` and ``torch.compile``.

    There, Python may not look at a tensor's value, and kernels that write in place or that have
    no batching rule may not be used.
    """
    return _here.recording is not None or torch.compiler.is_compiling() or _peek() is not None


def transformed() -> bool:
    """True inside ``torch.func`` transforms and ``torch.compile``: autograd's engine cannot run."""
    return torch.compiler.is_compiling() or _peek() is not None


def recording() -> Any:
    """What `recording_into` was given, inside its block in this thread; else None."""
    return _here.recording


@contextlib.contextmanager
def recording_into(about: Any) -> Generator[None]:
    """In this block a step is recorded for `fl.compile`, not run."""
    before = _here.recording
    _here.recording = about
    try:
        yield
    finally:
        _here.recording = before


def host_values(tensor: Tensor) -> list[int] | None:
    """The integers in a CPU tensor, also where ``vmap`` or ``grad`` wraps it; one a member.

    None where there are no values: while a step is recorded, or under ``torch.compile``.
    """
    if _here.recording is not None or torch.compiler.is_compiling():
        return None
    return unwrapped(tensor).reshape(-1).tolist()


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of ``vmap`` and ``grad``; a member's is that of all."""
    while _is_wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor
