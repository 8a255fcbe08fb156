"""Fake tensors, with which a graph is recorded: without values, and with sizes that may vary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode


def fake_mode(env: Any = None) -> FakeTensorMode:
    """A mode for fake tensors, which have shapes, dtypes and devices but no values.

    Real tensors that a function closes over (class weights, a mask) become constants.

    Args:
        env: What is found out about sizes that vary; None if none does.
    """
    # No size varies, but without an environment Inductor keeps no graph on disk.
    return FakeTensorMode(
        allow_non_fake_inputs=True, shape_env=env or _environment(), static_shapes=env is None
    )


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor was made under `fake_mode`, rather than before."""
    return isinstance(tensor, FakeTensor)


def without_values(tensors: Sequence[Tensor], mode: FakeTensorMode) -> list[Tensor]:
    """Fake tensors of the same shapes, strides, dtypes and devices. No two of them share memory."""
    return [like(t, t.shape, t.stride(), mode) for t in tensors]


def standing_in(tensor: Tensor, device: torch.device, mode: FakeTensorMode) -> Tensor:
    """A fake tensor of the same shape, strides and dtype; on the CPU for one without values.

    Args:
        tensor: Any tensor.
        device: Where a tensor goes that is on the device ``meta``.
        mode: Its mode.
    """
    if tensor.layout is not torch.strided:
        return mode.from_tensor(tensor)
    where = device if tensor.is_meta else tensor.device
    where = torch.device("cpu") if where.type == "meta" else where
    with mode:
        shape, stride = tensor.shape, tensor.stride()
        return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=where)


def like(tensor: Tensor, shape: Any, stride: Any, mode: FakeTensorMode) -> Tensor:
    """A fake tensor of another shape and strides."""
    with mode:
        return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=tensor.device)


def _environment() -> Any:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # imports sympy, 0.3 s

    return ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=False)


class Symbols:
    """Sizes that are symbols while a graph is recorded, and what it assumes about them.

    Args:
        numbers: Their sizes now. Each is at least 2, as all will be that the graph is for.

    Attributes:
        mode: The mode for fake tensors of such sizes.
        sizes: The symbols, as sizes of tensors.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._env = _environment()
        self.mode = fake_mode(self._env)
        self.sizes = [self._size(i, number) for i, number in enumerate(numbers)]
        self._names = [size.node.expr for size in self.sizes]

    def admits(self, numbers: Sequence[int]) -> bool:
        """Whether what has been assumed holds for other sizes."""
        at = dict(zip(self._names, numbers, strict=True))
        assumed = [guard.expr for guard in self._env.guards]
        return min(numbers) >= 2 and all([bool(each.xreplace(at) == True) for each in assumed])  # noqa: E712

    def fixed(self) -> list[int]:
        """Indices of the symbols of which a number has been assumed."""
        found = map(self._env.replace, self._names)
        return [i for i, expression in enumerate(found) if expression.is_number]

    def filled(self, value: Any, numbers: Sequence[int]) -> Any:
        """`value`, a tuple of numbers or the like, with other numbers for the symbols in it."""
        at = dict(zip(self._names, numbers, strict=True))

        def fill(value: Any) -> Any:
            if isinstance(value, (SymInt, SymFloat, SymBool)):
                return _KINDS[type(value)](value.node.expr.xreplace(at))
            if isinstance(value, (tuple, list)):
                return [*map(fill, value)] if type(value) is list else tuple(map(fill, value))
            return {k: fill(v) for k, v in value.items()} if isinstance(value, dict) else value

        return fill(value)

    def _size(self, i: int, number: int) -> SymInt:
        from torch._dynamo.source import ConstantSource  # imports the compiler: a second
        from torch.fx.experimental.symbolic_shapes import DimDynamic

        source: Any = ConstantSource(f"size{i}")
        # DYNAMIC: a symbol of its own, whatever other sizes are the same now.
        symbol = self._env.create_symbol(number, source, dynamic_dim=DimDynamic.DYNAMIC)
        size: Any = self._env.create_symintnode(symbol, hint=number, source=source)
        return size


_KINDS: dict[Any, Any] = {SymInt: int, SymFloat: float, SymBool: bool}
