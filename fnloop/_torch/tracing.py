"""Whether the code that runs now is being transformed (vmap, grad, compile) rather than run."""

from __future__ import annotations

from typing import Any

import torch

_peek: Any = torch._C._functorch.peek_interpreter_stack  # pyright: ignore


def tracing() -> bool:
    """True inside ``torch.func`` transforms and inside ``torch.compile``.

    There, Python may not look at a tensor's value, and kernels that write in place or that have
    no batching rule may not be used.
    """
    return torch.compiler.is_compiling() or _peek() is not None
