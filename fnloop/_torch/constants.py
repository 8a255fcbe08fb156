"""Numbers that steps report again and again, as tensors that are made once."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor

from fnloop._torch.tracing import in_modes, opaque

_MOST = 256
_MADE: dict[tuple[float, torch.dtype], Tensor] = {}


def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A 0-d tensor of `value`; on the CPU it may be one that was returned before.

    To make one takes 1 us, and a step of a small model would need several.

    >>> one = constant(1, torch.int64, torch.device("cpu"))
    >>> one is constant(1, torch.int64, torch.device("cpu"))
    True
    >>> one += 1  # what has been written to is not returned again
    >>> constant(1, torch.int64, torch.device("cpu"))
    tensor(1)
    """
    if device != _CPU or opaque():
        return torch.scalar_tensor(value, dtype=dtype, device=device)
    found = _MADE.get((value, dtype))
    if found is None or _FACTS(found) not in _UNTOUCHED:
        found = torch.scalar_tensor(value, dtype=dtype, device=device)
        if not (in_modes() or found.is_inference()):
            if len(_MADE) >= _MOST:
                _MADE.clear()
            _MADE[value, dtype] = found
    return found


def are_untouched(tensors: Iterable[Tensor]) -> bool:
    """Whether none has been written to since it was made, nor made to require gradients."""
    return set(map(_FACTS, tensors)) <= _UNTOUCHED


_CPU = torch.device("cpu")
_FACTS, _UNTOUCHED = attrgetter("_version", "requires_grad"), {(0, False)}
