"""Functions of torch under its transforms, called so that they do there what they do without."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnloop._torch.tracing import casting, transformed

_levels: Any = torch._C._functorch.get_interpreter_stack  # pyright: ignore
_VMAP: Any = torch._C._functorch.TransformType.Vmap  # pyright: ignore
_aten: Any = torch.ops.aten


class transformable(TorchFunctionMode):
    """A context manager: under a transform, functions do what they do without.

    Of those for which torch's rules fail, or give something else: dropout, layers that normalize
    numbers of half precision, recurrent layers, and the dropout of attention.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _INSTEAD or not transformed():
            return func(*args, **kwargs)
        return _INSTEAD[func](*args, **kwargs)


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
    """Half precision normalized in float32, as torch's kernels do it inside.

    They take the numbers in half precision beside parameters in float32. The rules of ``vmap`` take
    one dtype, or give float32.
    """
    half = input.dtype in (torch.bfloat16, torch.float16)
    others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    # Elsewhere autocast gives these to torch in float32.
    cast_already = func in (F.layer_norm, F.group_norm) and not input.is_cpu
    if not half or cast_already or all([other.dtype == input.dtype for other in others]):
        return func(input, *args, **kwargs)
    return func(input.float(), *args, **kwargs).to(input.dtype)


def _recurrent(func: Callable[..., Any], input: Tensor, hidden: Any, *args: Any) -> Any:
    """A recurrent layer whose first hidden state is batched where its input is.

    It is written to in place with what follows from the input, which ``vmap`` refuses otherwise.
    """
    if isinstance(hidden, Tensor) and hidden.is_floating_point():  # of a packed sequence, its sizes
        hidden = hidden + torch.zeros_like(input[..., :1]).sum()
    return func(input, hidden, *args)


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
    """Attention, composed of products as torch does it where its own dropout fails."""
    if not _fails(dropout_p):
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
    if named.get("need_weights", True) or not _fails(named["dropout_p"]):
        return F.multi_head_attention_forward(*args, **kwargs)
    named["need_weights"] = True
    return F.multi_head_attention_forward(**named)[0], None


_HEADS = inspect.signature(F.multi_head_attention_forward)


def _fails(dropout: float) -> bool:
    """Whether torch's rules fail for the dropout inside of attention: in two ``vmap``, and cast."""
    return bool(dropout) and (casting() or sum([level.key() == _VMAP for level in _levels()]) > 1)


_INSTEAD: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _heads,
}
for _function in (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm):
    _INSTEAD[_function] = functools.partial(_normalized, _function)
for _function in (torch.gru, torch.rnn_tanh, torch.rnn_relu):
    _INSTEAD[_function] = functools.partial(_recurrent, _function)
