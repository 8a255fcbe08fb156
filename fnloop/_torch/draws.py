"""Random numbers of a compiled step: drawn before the graph runs, in the order of the eager step.

A graph has no place for a generator that is seeded anew for each micro-batch, and compilers draw
other numbers than torch's generator does. So each random operation becomes an input of the graph,
and what it would have drawn is drawn beforehand by the same operation, from the same seed: the
compiled step has the masks of the eager one, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten: Any = torch.ops.aten

# Operations that overwrite their first argument, and those that make a new tensor; neither looks at
# a value of a tensor.
_FILLS = frozenset(
    getattr(_aten, name)
    for name in (
        "bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_",
        "uniform_",
    )
)  # fmt: skip
_MAKES = frozenset(
    getattr(_aten, name)
    for name in (
        "rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "randperm",
        "bernoulli",
    )
)  # fmt: skip


class Draw(NamedTuple):
    """One random operation.

    Attributes:
        micro: The position that its seed is folded with.
        make: Draws the tensor, from torch's own generator.
    """

    micro: int
    make: Callable[[], Tensor]


class Draws(TorchDispatchMode):
    """Within it, random operations are noted; or, given `drawn`, replaced by these tensors.

    Args:
        drawn: What to hand out, in order; None to note.
    """

    def __init__(self, drawn: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.micro = 0
        self.found: list[Draw] = []
        self._drawn = None if drawn is None else iter(drawn)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _draws(func, args, kwargs):
            return func(*args, **kwargs)
        _check(func, args, kwargs)
        if self._drawn is None:
            self.found.append(Draw(self.micro, _maker(func, args, kwargs)))
            return func(*args, **kwargs)
        drawn = next(self._drawn)
        if func.overloadpacket in _FILLS:
            return args[0].copy_(drawn)
        return drawn.clone()


class RandomnessError(NotImplementedError):
    """A random operation that cannot be part of a compiled step."""


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    # Attention is called random even where its dropout is zero.
    named = {**dict(zip([a.name for a in func._schema.arguments], args, strict=False)), **kwargs}
    return named.get("dropout_p", None) != 0


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    packet, name = func.overloadpacket, func.overloadpacket.__name__
    if kwargs.get("generator") is not None:
        raise RandomnessError(
            f"{name} draws from a generator of its own, whose state is no part of the state. Leave "
            "generator= out: the numbers then follow from the state's key and step."
        )
    reads = [a for a in (args[1:] if packet in _FILLS else args) if isinstance(a, Tensor)]
    if packet in _FILLS and not reads:
        return
    if packet in _MAKES and (name.endswith("_like") or func is _aten.bernoulli.p or not reads):
        return
    raise RandomnessError(
        f"{name} draws numbers that depend on a tensor's values, and a compiled step draws all its "
        "random numbers before it runs. Say the same by one of torch.rand_like, randn_like, "
        "bernoulli_(p) with a number p, ...: torch.rand_like(p) < p for a Bernoulli draw, the "
        "Gumbel trick for a categorical one."
    )


def _maker(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Tensor]:
    """What makes the real tensor: the same operation, on memory of the same layout."""
    if not (args and isinstance(args[0], Tensor)):
        return lambda: func(*args, **kwargs)
    like, rest = args[0], args[1:]
    shape, stride, dtype, device = tuple(like.shape), like.stride(), like.dtype, like.device

    def make() -> Tensor:
        memory = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        return func(memory, *rest, **kwargs)

    return make
