"""Random numbers of a compiled step: drawn before the graph runs, in the order of the eager step.

A graph has no place for a generator that is seeded anew for each micro-batch, and compilers draw
other numbers than torch's generator does. So each random operation becomes an input of the graph,
and what it would have drawn is drawn beforehand by the same operation, from the same seed: the
compiled step has the masks of the eager one, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fnloop._torch.members import drawing
from fnloop._torch.random import seeded

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
        "bernoulli", "normal",
    )
)  # fmt: skip


class RandomnessError(NotImplementedError):
    """A random operation that cannot be part of a compiled step."""


class Place(NamedTuple):
    """Where in a step a random operation stands.

    Attributes:
        block: Of those that are seeded anew.
        number: In the block.
    """

    block: int
    number: int


class Draws(TorchDispatchMode):
    """Within it, random operations are noted; or, given `drawn`, replaced by these tensors.

    Args:
        drawn: What to hand out; None to note.

    Attributes:
        seeds: What each block's seed is folded with: its position.
        found: What draws each tensor, from torch's own generator.
    """

    def __init__(self, drawn: Mapping[Place, Tensor] | None = None) -> None:
        super().__init__()
        self.seeds: list[tuple[int | str, ...]] = []
        self.found: dict[Place, Callable[[], Tensor]] = {}
        self._kinds: dict[Place, str] = {}
        self._drawn = drawn

    @contextlib.contextmanager
    def block(self, position: tuple[int | str, ...]) -> Generator[None]:
        """A block of operations whose generator is seeded anew, for a position in the step."""
        self.seeds.append(position)
        # The place is the seed of torch's generator: who takes its state and puts it back (as
        # activation checkpointing does, to draw the same mask again) goes back to that place.
        with seeded(_number(Place(len(self.seeds) - 1, 0))):
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _is_random(func, args, kwargs):
            return func(*args, **kwargs)
        _check(func, args, kwargs)
        place = _place(torch.initial_seed())
        if not self.seeds or place is None:
            raise RandomnessError(
                f"{func.overloadpacket.__name__} draws random numbers outside of the loss and of "
                "fl.randomness, or after torch.manual_seed; in a compiled step they come from the "
                "state's key and calls alone. In a stage of your own: with "
                'fl.randomness(state, "name")'
            )
        torch.default_generator.manual_seed(_number(Place(place.block, place.number + 1)))
        kind = _kind(func, args, kwargs)
        if self._kinds.setdefault(place, kind) != kind:
            raise RandomnessError(
                f"{kind} draws again what {self._kinds[place]} has drawn: torch's generator was "
                "set back between them"
            )
        if self._drawn is None:
            self.found.setdefault(place, _maker(func, args, kwargs))
            return func(*args, **kwargs)
        if func.overloadpacket in _FILLS:
            return args[0].copy_(self._drawn[place])
        return self._drawn[place].clone()


_BASE = 0x464E << 46  # so that a seed of somebody else's is hardly taken for a place


def _number(place: Place) -> int:
    return _BASE + (place.block << 24) + place.number


def _place(seed: int) -> Place | None:
    block, index = divmod(seed - _BASE, 1 << 24)
    return Place(block, index) if 0 <= block < 1 << 20 else None


def _is_random(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    # Attention is called random even where its dropout is zero.
    arguments = func._schema.arguments
    named = {a.name: a.default_value for a in arguments if a.has_default_value()}
    named.update(zip([a.name for a in arguments], args, strict=False), **kwargs)
    return named.get("dropout_p") != 0


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    packet, name = func.overloadpacket, func.overloadpacket.__name__
    if kwargs.get("generator") is not None:
        raise RandomnessError(
            f"{name} draws from a generator of its own, whose state is no part of the state. Leave "
            "generator= out: the numbers then follow from the state's key and calls"
        )
    reads = [a for a in (args[1:] if packet in _FILLS else args) if isinstance(a, Tensor)]
    if packet in _FILLS and not reads:
        return
    if packet in _MAKES and (name.endswith("_like") or func is _aten.bernoulli.p or not reads):
        return
    raise RandomnessError(
        f"{name} draws numbers in a way that depends on a tensor's values, and a compiled step "
        "draws all its random numbers before it runs. Say the same by torch.rand_like, randn_like, "
        "or bernoulli_(p) with a number p: torch.rand_like(p) < p for a Bernoulli draw, the Gumbel "
        "trick for a categorical one"
    )


def _kind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args]
    return f"{func.overloadpacket.__name__}({', '.join(map(str, shown))})"


def _maker(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Tensor]:
    """What makes the real tensor: the same operation, on memory of the same layout."""
    if not (args and isinstance(args[0], Tensor)):
        return lambda: func(*args, **kwargs)
    like, rest = args[0], args[1:]
    shape, stride, dtype, device = tuple(like.shape), like.stride(), like.dtype, like.device

    def make() -> Tensor:
        memory = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        return func(memory, *rest, **kwargs)

    return make


def draw(
    makers: Sequence[Sequence[Callable[[], Tensor]]],
    seeds: Sequence[Sequence[int]],
    device: torch.device,
) -> list[Tensor]:
    """Draw all tensors, block by block.

    Args:
        makers: By block, in order.
        seeds: Of each block, one for each member.
        device: Whose generator is seeded besides the CPU's.
    """
    drawn: list[Tensor] = []
    for block, own in zip(makers, seeds, strict=True):
        if block:
            with drawing(own, device), torch.no_grad():
                drawn += [make() for make in block]
    return drawn
