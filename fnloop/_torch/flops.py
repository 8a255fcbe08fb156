"""Count floating-point operations, by the formulas of ``torch.utils.flop_counter`` and a few more.

Its formula for the backward pass of a convolution with groups counts too much: about as many times
as there are groups, which is a thousandfold in layers that are depthwise. Each of the two gradients
takes as many operations as the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    conv_flop_count,
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_aten: Any = torch.ops.aten
_task: Any = torch._C._current_graph_task_id  # pyright: ignore[reportPrivateUsage]


def in_backward() -> bool:
    """Whether autograd's engine is computing gradients in this thread."""
    return _task() != -1


class CountFlops(TorchDispatchMode):
    """A dispatch mode that counts operations: matrix products, convolutions, attention.

    A multiplication with an addition counts as two. Whatever has no formula counts as none.

    Attributes:
        forward, backward: Operations outside and inside of autograd's backward passes.

    >>> with CountFlops() as counted:
    ...     w = torch.ones(3, 4, requires_grad=True)
    ...     (torch.ones(2, 3) @ w).sum().backward()
    >>> counted.forward, counted.backward
    (48, 48)
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or it would import the compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", func)
        formula = _OWN.get(packet) or flop_registry.get(packet)
        if formula is None and getattr(func, "namespace", "prim") != "prim":
            with self:  # what is composed of others, where nothing has taken it apart before
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            found = formula(*args, **kwargs, out_val=result)
            if in_backward():
                self.backward += found
            else:
                self.forward += found
        return result


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *given: Any, **named: Any
) -> int:
    transposed, mask = given[4], named["output_mask"] if "output_mask" in named else given[7]
    shapes: list[Any] = [x.shape, weight.shape, grad.shape]
    return sum(mask[:2]) * conv_flop_count(*shapes, transposed=transposed)


_OWN: dict[Any, Any] = {
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Formulas in place of torch's, and those that torch has not: of kernels of the CPU."""
