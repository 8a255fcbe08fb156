"""Matrix products in float32 by oneDNN, where that is the faster library.

PyTorch gives float32 products on the CPU to MKL, which uses AVX2 on processors of other makers that
have AVX-512: half of their speed. It gives them to oneDNN if it may round their operands to
bfloat16, which oneDNN does on processors with AMX only. Elsewhere its products are float32
throughout, and on AVX-512 about 2.3 times as fast.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fnloop._torch.process_wide import ProcessWide
from fnloop._torch.tracing import without_modes

_aten: Any = torch.ops.aten
_mkldnn: Any = torch.backends.mkldnn
_setting = _mkldnn.matmul

# Measured on one core of a Zen 4 processor.
_SAVED = 6e-12
"""Seconds that oneDNN saves for each operation of a product."""
_SPENT = 12e-6
"""Seconds that it takes to prepare a product."""
_SMALL = 16**3
"""PyTorch computes products of up to so many multiplications itself."""


@functools.cache
def available() -> bool:
    """Whether oneDNN multiplies with AVX-512 on this processor, and rounds nothing."""
    about = getattr(torch.cpu, "get_capabilities", dict)()
    if not about.get("avx512_f") or any([about[name] for name in about if "amx" in name]):
        return False
    with without_modes(), torch.autocast("cpu", enabled=False), by_onednn():
        fine = torch.full((64, 64), 1 + 2**-20, dtype=torch.float32, device="cpu")
        product = fine @ torch.eye(64, dtype=torch.float32, device="cpu")
        return torch.equal(product, fine)


def gain(graph: GraphModule) -> float:
    """The seconds that a call of a recorded graph saves with `by_onednn`, on one core."""
    return sum(
        count * (2 * multiplied * _SAVED - _SPENT)
        for count, multiplied in _products(graph)
        if multiplied > _SMALL
    )


class by_onednn(ProcessWide):
    """A context manager inside which oneDNN computes the products of float32 matrices.

    Where somebody has allowed PyTorch to round in them, that stays as it is.
    """

    __slots__ = ("_before", "_inherited")

    def save(self) -> None:
        self._before = _setting.fp32_precision
        self._inherited = _mkldnn.fp32_precision == self._before

    def change(self) -> None:
        if self._before in _EXACT:
            _setting.fp32_precision = "bf16"

    def restore(self) -> None:
        _setting.fp32_precision = "none" if self._inherited else self._before


_EXACT = ("none", "ieee")


class short_attention(TorchFunctionMode):
    """A context manager: attention to few keys is computed as two products and a softmax.

    PyTorch's kernel for attention saves the memory of all scores, but computes them in many small
    products. Here the scores are at most four times as large as the queries.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _is_short(*args, **kwargs):
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_short(query: Any, key: Any, *_: Any, **__: Any) -> bool:
    return bool(key.shape[-2] <= 4 * query.shape[-1]) and query.is_cpu and available()


def _products(graph: GraphModule) -> Iterator[tuple[int, int]]:
    """The products of float32 matrices in a graph: how many, and their multiplications each."""
    for target, (place, count) in _ATTENTION.items():
        for node in _calls(graph, target, place):
            *batch, queries, size = node.args[place].meta["val"].shape  # type: ignore[union-attr]
            keys = node.args[place + 1].meta["val"].shape[-2]  # type: ignore[union-attr]
            rows = 256 if queries >= 768 else 64 if queries >= 192 else 32
            blocks = math.ceil(queries / rows) * math.ceil(keys / 512)
            yield math.prod(batch) * blocks * count, rows * min(keys, 512) * size
    for target in (_aten.mm.default, _aten.bmm.default):
        for node in _calls(graph, target, 0):
            left, right = map(_value, node.args)
            if right is not None:
                yield 1, math.prod(left.shape) * right.shape[-1]


_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 2),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (1, 5),
}
"""PyTorch's kernels for attention: the place of the queries, and products for each block."""


def _value(argument: Any) -> Any:
    """The shape and dtype of an argument as a tensor; None of a sparse constant, which has none."""
    return argument.meta.get("val")


def _calls(graph: GraphModule, target: Any, place: int) -> Iterator[Node]:
    """The calls of an operation whose argument at `place` is a float32 tensor on the CPU."""
    for node in graph.graph.find_nodes(op="call_function", target=target):
        given = _value(node.args[place])
        if given is not None and given.dtype is torch.float32 and given.is_cpu:
            yield node
