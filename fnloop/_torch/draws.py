"""Random numbers of a compiled step: drawn before the graph runs, in the order of the eager step.

A graph cannot reseed a generator for each micro-batch, and compilers draw other numbers than
torch's generator. So each random operation becomes an input of the graph. Before the graph runs,
the same operation draws that input eagerly, from the same seed: a compiled step has the masks of
the eager step, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fnloop._torch.members import drawing
from fnloop._torch.random import is_random, seeded

_aten: Any = torch.ops.aten

# Operations that fill their first argument in place, and operations that return a new tensor.
# Neither kind depends on the values of a tensor.
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

# What `F.dropout` is on a GPU: one operation that draws a mask and applies it. Of the tensor, the
# mask depends on shape and strides only.
_DROPOUT = _aten.native_dropout.default


class RandomnessError(NotImplementedError):
    """A random operation that cannot be part of a compiled step."""


class HostRandomnessError(RandomnessError):
    """Random numbers of Python or NumPy, seen only after they have been drawn."""


class Place(NamedTuple):
    """The position of a random operation in a step.

    Attributes:
        block: Index of the seeded block.
        number: Index of the operation in the block.
    """

    block: int
    number: int


class Maker(NamedTuple):
    """A function that draws a tensor.

    Attributes:
        func, args, kwargs: The random operation, and what it takes after its memory.
        memory: Shape, strides, dtype and device of the tensor that it fills; None if it makes one.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    memory: tuple[Any, Any, torch.dtype, torch.device] | None

    def __call__(self) -> Tensor:
        if self.memory is None:
            return self.func(*self.args, **self.kwargs)
        shape, stride, dtype, device = self.memory
        memory = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        result = self.func(memory, *self.args, **self.kwargs)
        if self.func is _DROPOUT:
            return result[1]
        # Zeros and ones: a mask of dropout takes a quarter of the memory until the graph reads it.
        return result.bool() if self.func.overloadpacket is _aten.bernoulli_ else result


class Draws(TorchDispatchMode):
    """A dispatch mode that notes random operations, and puts other tensors for their results.

    Args:
        give: Called with a place and what draws there; returns the tensor to put.
        members: Number of steps vmapped into one.

    Attributes:
        seeds: The position of each block; the key is folded with it to get the block's seed.
        parts: The members that draw in each block.
        found: What draws each tensor from torch's generator.
        drawn: The tensors that are put for them.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # `Checks` looks through its frames

    def __init__(self, give: Callable[[Place, Maker], Tensor], members: int = 1) -> None:
        super().__init__()
        self._give = give
        self.seeds: list[tuple[int | str, ...]] = []
        self.parts: list[slice] = []
        self._part = slice(0, members)
        self.found: dict[Place, Maker] = {}
        self.drawn: dict[Place, Tensor] = {}
        self._kinds: dict[Place, str] = {}

    @contextlib.contextmanager
    def block(self, position: tuple[int | str, ...]) -> Generator[None]:
        """A context manager for one block of operations with its own seed.

        Args:
            position: Position of the block in the step.
        """
        self.seeds.append(position)
        self.parts.append(self._part)
        # The place is encoded in the seed of torch's generator. Code that saves and restores the
        # generator's state (activation checkpointing, to repeat a mask) so restores the place.
        with seeded(_number(Place(len(self.seeds) - 1, 0))):
            yield

    @contextlib.contextmanager
    def of(self, part: slice) -> Generator[None]:
        """A context manager for what some of the members do by themselves."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_random(func, args, kwargs):
            return func(*args, **kwargs)
        members = self._part.stop - self._part.start
        if kwargs.get("generator") is None and (another := _another(func, args, members)):
            with self:
                return another()
        _check(func, args, kwargs)
        place = _place(torch.initial_seed())
        if not self.seeds or place is None:
            raise RandomnessError(
                f"{func.overloadpacket.__name__} draws random numbers outside of the loss and of "
                "fl.randomness, or after torch.manual_seed; in a compiled step they must come from "
                "the state's key and calls. In a stage of your own, use: with "
                'fl.randomness(state, "name"); an optimizer of your own says: draws = True'
            )
        torch.default_generator.manual_seed(_number(Place(place.block, place.number + 1)))
        kind = _kind(func, args, kwargs)
        if self._kinds.setdefault(place, kind) != kind:
            raise RandomnessError(
                f"{kind} repeats the draw of {self._kinds[place]}, because the state of torch's "
                "generator was set back between them"
            )
        if place not in self.found:
            self.found[place] = _maker(func, args, kwargs)
            self.drawn[place] = self._give(place, self.found[place])
        drawn = self.drawn[place]
        if func.overloadpacket in _FILLS:
            return args[0].copy_(drawn)
        if func is _DROPOUT:
            return _dropped_out(args[0], args[1], drawn)
        return drawn.clone()


_BASE = 0x464E << 46  # makes it unlikely that a user's seed is mistaken for a place


def _number(place: Place) -> int:
    return _BASE + (place.block << 24) + place.number


def _place(seed: int) -> Place | None:
    block, index = divmod(seed - _BASE, 1 << 24)
    return Place(block, index) if 0 <= block < 1 << 20 else None


def _another(func: Any, args: tuple[Any, ...], members: int) -> Callable[[], Tensor] | None:
    """The same numbers by operations whose draws depend on no tensor; None if there are none.

    They are what PyTorch's own kernels do, so a seed gives the same numbers.
    """
    if func.overloadpacket is _aten.normal and any(isinstance(a, Tensor) for a in args):
        return functools.partial(_normal, *args)
    if func is _aten.multinomial.default and (args[1] == 1 or not any(args[2:])):
        return functools.partial(_multinomial, args[0], args[1], members)
    if func is _aten.bernoulli.default and args[0].device.type == "cpu":
        p = args[0]
        if p.dtype in (torch.float32, torch.float64):  # others draw in another precision
            return lambda: (torch.rand(p.shape, dtype=p.dtype) < p).to(p.dtype)
    return None


def _normal(mean: Any, std: Any = 1.0) -> Tensor:
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*[value.shape for value in tensors])
    return tensors[0].new_empty(shape).normal_() * std + mean


def _multinomial(weights: Tensor, count: int, members: int) -> Tensor:
    possible = (weights >= 0) & (weights < torch.inf)
    if not (possible.all() & (weights.sum(-1) > 0).all()):
        raise RuntimeError("multinomial: weights that are negative, inf, nan, or all zero")
    # A vmapped step has the rows of its members one after the other.
    shape = weights.shape if members == 1 else (members, -1, weights.shape[-1])
    times = torch.empty_like(weights.reshape(shape)).exponential_()
    chances = weights / times.reshape(weights.shape)
    if count == 1:
        return chances.argmax(-1, keepdim=True)
    return chances.topk(count).indices


def _check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    packet, name = func.overloadpacket, func.overloadpacket.__name__
    if kwargs.get("generator") is not None:
        raise RandomnessError(
            f"{name} draws from a generator of its own, which is not part of the training state. "
            "Leave generator= out: the numbers then follow from the state's key and calls"
        )
    if func is _DROPOUT:
        return
    if "dropout_p" in [argument.name for argument in func._schema.arguments]:
        raise RandomnessError(
            "attention with dropout draws its mask inside of its kernel, but a compiled step draws "
            "all its random numbers before it runs. On a GPU, leave that dropout out (dropout_p=0),"
            " or compute the attention without a fused kernel: with "
            "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
        )
    reads = [a for a in (args[1:] if packet in _FILLS else args) if isinstance(a, Tensor)]
    if packet in _FILLS and not reads:
        return
    if packet in _MAKES and (name.endswith("_like") or func is _aten.bernoulli.p or not reads):
        return
    raise RandomnessError(
        f"{name} draws numbers that depend on a tensor's values, but a compiled step draws all its "
        f"random numbers before it runs. {_INSTEAD.get(name, _ELSE)}"
    )


_GIVEN = "Draw them where the batch is made, and give them with the batch, as a tensor"
_INSTEAD = {
    "_sample_dirichlet": f"{_GIVEN}; Beta(1, 1), as in mixup, is torch.rand(())",
    "_standard_gamma": _GIVEN,
    "poisson": _GIVEN,
    "binomial": f"{_GIVEN}; or count (torch.rand(n, *p.shape) < p).sum(0)",
    "multinomial": "Draw rows of one each: torch.multinomial(p.expand(n, -1), 1)",
    "rrelu_with_noise": "Use torch.where(x < 0, x * torch.empty_like(x).uniform_(lower, upper), x)",
}
_ELSE = (
    "Use torch.rand_like, randn_like, or bernoulli_(p) with a number p: for example "
    "torch.rand_like(p) < p for a Bernoulli draw"
)


def _kind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [tuple(a.shape) if isinstance(a, Tensor) else a for a in args]
    return f"{func.overloadpacket.__name__}({', '.join(map(str, shown))})"


def _maker(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Maker:
    """What draws the tensor: the same operation, on memory with the same strides."""
    if not (args and isinstance(args[0], Tensor)):
        return Maker(func, args, kwargs, None)
    like = args[0]
    memory = (tuple(like.shape), like.stride(), like.dtype, like.device)
    return Maker(func, args[1:], kwargs, memory)


def _dropped_out(x: Tensor, p: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What native_dropout returns, for a mask that is drawn already."""
    scale = 0.0 if p == 1 else 1 / (1 - p)
    return x * mask * scale, mask.clone()


def draw(
    makers: Sequence[Sequence[Callable[[], Tensor]]],
    seeds: Sequence[Sequence[int]],
    device: torch.device,
) -> list[Tensor]:
    """Draw all tensors, block by block.

    Args:
        makers: The functions that draw, by block, in order.
        seeds: For each block, one seed per member.
        device: Its generator is seeded too, besides the CPU's.
    """
    drawn: list[Tensor] = []
    for block, own in zip(makers, seeds, strict=True):
        if block:
            with drawing(own, device), torch.no_grad():
                drawn += [make() for make in block]
    return drawn
