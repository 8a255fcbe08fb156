"""Detect transforms and traces, inside which Python must not read tensor values."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_peek: Any = torch._C._functorch.peek_interpreter_stack  # pyright: ignore
_levels: Any = torch._C._functorch.get_interpreter_stack  # pyright: ignore
_Transform: Any = torch._C._functorch.TransformType  # pyright: ignore
_unwrapped: Any = torch._C._functorch.get_unwrapped  # pyright: ignore
_is_wrapped: Any = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore

_plainly: Any = torch._C._DisableFuncTorch  # pyright: ignore

casting: Any = torch._C._is_any_autocast_enabled  # pyright: ignore
"""Whether autocast is on, for whatever device."""


class _Local(threading.local):
    recording: Any = None


_here = _Local()


def opaque() -> bool:
    """True inside ``torch.func`` transforms and `fl.compile`.

    There, Python must not read a tensor's value, and kernels that work in place or have no batching
    rule must not be used.
    """
    return _here.recording is not None or _peek() is not None


def in_modes() -> bool:
    """Whether a mode of Python's is between a call of torch and its kernel.

    ``torch.set_default_device`` is one. Bytecode runs in each call then.
    """
    return _function_modes() > 0 or _dispatch_modes() > 0


_function_modes: Any = torch._C._len_torch_function_stack  # pyright: ignore
_dispatch_modes: Any = torch._C._len_torch_dispatch_stack  # pyright: ignore


def transformed() -> bool:
    """True inside ``torch.func`` transforms: autograd's engine cannot be called directly."""
    return _peek() is not None


def derivatives() -> int:
    """Inside how many transforms of ``torch.func`` that differentiate it is called."""
    return sum([key in (_Transform.Grad, _Transform.Jvp) for key in _keys()])


def in_forward_mode() -> bool:
    """Whether it is called inside ``torch.func.jvp``."""
    return _Transform.Jvp in _keys()


def vmaps() -> int:
    """Inside how many ``torch.func.vmap`` it is called."""
    return sum([key == _Transform.Vmap for key in _keys()])


def _keys() -> list[Any]:
    return [level.key() for level in _levels() or ()]


def recording() -> Any:
    """The argument of the enclosing `recording_into` in this thread; None outside of one."""
    return _here.recording


@contextlib.contextmanager
def recording_into(about: Any) -> Generator[None]:
    """A context manager inside which a step is traced for `fl.compile`, not run.

    Args:
        about: The trace, which `recording` returns inside the block.
    """
    before = _here.recording
    _here.recording = about
    try:
        yield
    finally:
        _here.recording = before


def without_modes() -> contextlib.AbstractContextManager[Any]:
    """A context manager inside which tensors are what they are, also while a step is traced."""
    return _disable_current_modes()


def without_transforms() -> contextlib.AbstractContextManager[Any]:
    """A context manager inside which tensors are made as they are outside of ``torch.func``."""
    return _plainly()


def host_values(a: Tensor, b: Tensor) -> list[tuple[int, int]]:
    """The integers in two CPU tensors, one pair per member, also under ``vmap`` and ``grad``.

    Raises:
        NotImplementedError: They are under two nested vmaps.
    """
    if _peek() is not None:
        a, b = unwrapped(a), unwrapped(b)
    if not a.ndim and not b.ndim:
        return [(a.item(), b.item())]  # type: ignore[list-item]
    if a.ndim > 1 or b.ndim > 1:
        raise NotImplementedError(
            "Random numbers under nested vmaps are not supported: use one vmap over all members, "
            "with one leading dimension."
        )
    a, b = torch.broadcast_tensors(a.reshape(-1), b.reshape(-1))
    return list(zip(a.tolist(), b.tolist(), strict=True))


def unwrapped(tensor: Tensor) -> Tensor:
    """Remove the wrappers of ``vmap`` and ``grad``; under vmap, the result holds all members."""
    while _is_wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor
