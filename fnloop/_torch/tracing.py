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
    """True inside ``torch.func`` transforms and `fl.compile`.

    There, Python may not look at a tensor's value, and kernels that write in place or that have
    no batching rule may not be used.
    """
    return _here.recording is not None or _peek() is not None


def transformed() -> bool:
    """True inside ``torch.func`` transforms: autograd's engine cannot be called directly."""
    return _peek() is not None


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


def host_values(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """The integers in two CPU tensors, also where ``vmap`` or ``grad`` wraps them; one a member."""
    a, b = unwrapped(a), unwrapped(b)
    if not a.ndim and not b.ndim:
        return [(a.item(), b.item())]  # type: ignore[list-item]
    if a.ndim > 1 or b.ndim > 1:
        raise NotImplementedError(
            "Random numbers under vmap in vmap are not supported: map over all members at once, "
            "with one leading dimension."
        )
    a, b = torch.broadcast_tensors(a.reshape(-1), b.reshape(-1))
    return list(zip(a.tolist(), b.tolist(), strict=True))


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of ``vmap`` and ``grad``; a member's is that of all."""
    while _is_wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor
