"""Layers that normalize, composed of operations that can be differentiated twice.

torch's rules for ``vmap`` and for forward mode take the mean and the deviation of the forward pass
for constants, and so does autograd for the norm of weights. That is right for a first derivative,
and silently wrong for a second one. Arguments are those of the functions of torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardized(input, dims, eps), weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    weight, bias, mean, var = _by_channel(input, weight, bias, running_mean, running_var)
    if not training:
        assert mean is not None and var is not None
        return _affine((input - mean) * torch.rsqrt(var + eps), weight, bias)
    with torch.no_grad():
        given = input.detach() if running_mean is None else input.detach().to(running_mean.dtype)
        known = F.batch_norm(given, running_mean, running_var, None, None, True, momentum, eps)
    found = _standardized(input, (0, *range(2, input.ndim)), eps)
    return _affine(_seen(known, found), weight, bias)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    with torch.no_grad():
        known = F.instance_norm(
            input.detach(), running_mean, running_var, None, None, True, momentum, eps
        )
    weight, bias = _by_channel(input, weight, bias)
    found = _standardized(input, tuple(range(2, input.ndim)), eps)
    return _affine(_seen(known, found), weight, bias)


def _by_channel(input: Tensor, *values: Tensor | None) -> list[Tensor | None]:
    """Values for each channel, in a shape that goes with the input."""
    shape = (1, -1, *[1] * (input.ndim - 2))
    return [None if each is None else each.reshape(shape) for each in values]


def _seen(known: Tensor, found: Tensor) -> Tensor:
    """What was composed, and used what torch's own function has made, which has no graph.

    That function writes the running statistics, and checks the shape. A recorded graph drops the
    operation if nothing uses its result, as the statistics are not among what it says to write.
    """
    return found + 0 * known


def _standardized(input: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    var, mean = torch.var_mean(input, dims, correction=0, keepdim=True)
    return (input - mean) * torch.rsqrt(var + eps)


def _affine(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = input if weight is None else input * weight
    return scaled if bias is None else scaled + bias


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm``: the directions `v` with the norms `g`, of all but dimension `dim`."""
    others = None if dim == -1 else [i for i in range(v.ndim) if i != dim]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1))
