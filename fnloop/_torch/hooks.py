"""How many hooks have been registered, and whether a tensor has any."""

from __future__ import annotations

from torch import Tensor
from torch.utils.hooks import RemovableHandle


def hooks_made() -> int:
    """The number of hooks of modules and tensors that this process has registered so far."""
    return RemovableHandle.next_id


def has_hooks(tensor: Tensor) -> bool:
    """Whether hooks are registered on a leaf tensor (not those of a module)."""
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))
