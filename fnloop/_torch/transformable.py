"""Functions of torch under its transforms, called so that they do there what they do without."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnloop._torch import composed_norms
from fnloop._torch.recurrent import by_products
from fnloop._torch.tracing import (
    casting,
    derivatives,
    in_forward_mode,
    transformed,
    unwrapped,
    vmaps,
)

_aten: Any = torch.ops.aten
_weight_norm: Any = torch._weight_norm  # pyright: ignore[reportPrivateImportUsage]


class transformable(TorchFunctionMode):
    """A context manager: under a transform, functions do what they do without.

    Of those for which torch's rules fail, or give something else: dropout, layers that normalize,
    recurrent layers, attention and weights with a norm.

    Args:
        twice: Whether derivatives are taken of derivatives by autograd, without a transform.
            Functions whose second derivative is wrong there, or missing, are composed then too.
    """

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self._twice = twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INSTEAD and (transformed() or (self._twice and func in _ONCE)):
            return _INSTEAD[func](*args, **kwargs)
        return func(*args, **kwargs)


def _dropout(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Dropout of the tensor with its dimensions in the order in which they lie in memory.

    A mask is drawn in the order in which its memory lies, which is that of the input. Transforms
    forget the strides of the input, so the mask of one that is transposed would be another.
    """
    strides = input.stride()
    order = sorted(range(input.ndim), key=lambda dim: -strides[dim])
    back = sorted(range(input.ndim), key=order.__getitem__)
    return F.dropout(input.permute(order), *args, **kwargs).permute(back)


def _normalized(func: Callable[..., Tensor], input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A layer that normalizes, in half precision and differentiated twice.

    Half precision is normalized in float32, as torch's kernels do it inside. They take the numbers
    in half precision beside parameters in float32. The rules of ``vmap`` take one dtype, or give
    float32.
    """
    half = input.dtype in (torch.bfloat16, torch.float16)
    others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    # Elsewhere autocast gives these to torch in float32.
    cast_already = func in (F.layer_norm, F.group_norm) and not input.is_cpu
    if func in _COMPOSED and _differentiated_twice([input, *others]):
        wide = input.float() if half else input
        found = _COMPOSED[func](wide, *args, **kwargs)
        return found if cast_already and casting() else found.to(input.dtype)
    if not half or cast_already or all([other.dtype == input.dtype for other in others]):
        return func(input, *args, **kwargs)
    return func(input.float(), *args, **kwargs).to(input.dtype)


def _differentiated_twice(given: Sequence[Tensor]) -> bool:
    """Whether a derivative is taken of the derivatives that the step takes itself."""
    if derivatives() > 1:
        return True
    return torch.is_grad_enabled() and any([unwrapped(t).requires_grad for t in given])


def _recurrent(layer: Any, input: Tensor, second: Any, *args: Any) -> Any:
    """A recurrent layer, by the operations that it is composed of, which have batching rules.

    Its first hidden state is batched where its input is: it is written to in place with what
    follows from the input, which ``vmap`` refuses otherwise.
    """
    packed = isinstance(second, Tensor) and not second.is_floating_point()  # its batch sizes
    if isinstance(second, Tensor) and not packed:
        second = _batched(second, input)
    with by_products() if layer is _aten.lstm else contextlib.nullcontext():
        return (layer.data if packed else layer.input).decompose(input, second, *args)


def _cell(func: Callable[..., Any], input: Tensor, hidden: Any, *args: Any) -> Any:
    """As `_recurrent`, for one step of a recurrent layer."""
    one = isinstance(hidden, Tensor)
    hidden = _batched(hidden, input) if one else [_batched(state, input) for state in hidden]
    return func(input, hidden, *args)


def _batched(hidden: Tensor, input: Tensor) -> Tensor:
    return hidden + torch.zeros_like(input[..., :1]).sum()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention, composed of products where torch's own dropout or second derivative fails."""
    if not (_fails(dropout_p) or _differentiated_twice([query, key, value])):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(groups, -3) for each in (key, value))
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    scores = (query * root) @ (key * root).transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return F.dropout(_aten._safe_softmax(scores, -1), dropout_p) @ value


def _heads(*args: Any, **kwargs: Any) -> Any:
    """`nn.MultiheadAttention`, which composes attention itself where it returns the weights."""
    named: dict[str, Any] = _HEADS.bind(*args, **kwargs).arguments
    given = [value for value in named.values() if isinstance(value, Tensor)]
    fails = _fails(named["dropout_p"]) or _differentiated_twice(given)
    if named.get("need_weights", True) or not fails:
        return F.multi_head_attention_forward(*args, **kwargs)
    named["need_weights"] = True
    return F.multi_head_attention_forward(**named)[0], None


_HEADS = inspect.signature(F.multi_head_attention_forward)


def _fails(dropout: float) -> bool:
    """Whether torch's rules fail for attention: in forward mode; with dropout in two ``vmap``."""
    return in_forward_mode() or (bool(dropout) and (casting() or vmaps() > 1))


_COMPOSED: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: composed_norms.layer_norm,
    F.batch_norm: composed_norms.batch_norm,
    F.instance_norm: composed_norms.instance_norm,
}
_INSTEAD: dict[Any, Callable[..., Any]] = {
    _weight_norm: composed_norms.weight_norm,
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _heads,
}
for _function in (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm):
    _INSTEAD[_function] = functools.partial(_normalized, _function)
for _function in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu):
    _INSTEAD[_function] = functools.partial(_recurrent, getattr(_aten, _function.__name__))
for _function in (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell):
    _INSTEAD[_function] = functools.partial(_cell, _function)

_ONCE = (_weight_norm, F.scaled_dot_product_attention, F.multi_head_attention_forward)
"""Whose first derivative is right, and whose second one is not, or is missing."""
