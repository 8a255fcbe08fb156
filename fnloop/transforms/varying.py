"""Batches whose sizes vary: which do, and one graph for all of them.

A graph for all sizes is recorded with symbols in place of the sizes that have varied. What the
recording assumes about a symbol (`if x.shape[1] > 50`) is kept, and looked at once for each new
shape. A recording is used only if a second one, with other numbers in place of the symbols, is the
same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from fnloop._torch.fakes import Symbols, fake_mode, like, without_values
from fnloop._torch.filled import difference
from fnloop._torch.recurrent import by_products
from fnloop.transforms.recorded import Inputs, Recorded

_log = logging.getLogger("fnloop.compile")

Shape = tuple[int, ...]
Place = tuple[int, int]
"""Index of a tensor in the batch, and of one of its dimensions."""

_TRIES = 2
"""How often a number may be assumed of a size, or a recording fail, before that is for good."""


class NotForAll(Exception):
    """A step cannot be recorded for all sizes.

    Attributes:
        numbers: Indices of the symbols that it takes a number for; empty if it fails otherwise.
    """

    def __init__(self, reason: str, numbers: Sequence[int] = ()) -> None:
        super().__init__(reason)
        self.numbers = numbers


class Form(NamedTuple):
    """How a tensor of the batch lies in memory.

    Attributes:
        order: Its dimensions from the outermost to the innermost, if it has no gaps.
        strides: Its strides, if it has.
    """

    order: tuple[int, ...] | None
    strides: Shape | None

    @classmethod
    def of(cls, tensor: Tensor) -> Form:
        order = sorted(range(tensor.ndim), key=lambda d: -tensor.stride(d))
        dense = cls(tuple(order), None)
        return (
            dense if dense.of_shape(tensor.shape) == tensor.stride() else cls(None, tensor.stride())
        )

    def of_shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The strides of a tensor of this form."""
        if self.order is None:
            return self.strides or ()
        found: list[Any] = [1] * len(shape)
        step: Any = 1
        for d in reversed(self.order):
            found[d] = step
            step = step * shape[d]
        return tuple(found)


class Varying(NamedTuple):
    """Sizes of a batch that vary.

    Attributes:
        places: For each of them, the dimensions that have it.
        shapes: The shapes of the batch's tensors now.
        forms: How they lie in memory.
    """

    places: tuple[tuple[Place, ...], ...]
    shapes: tuple[Shape, ...]
    forms: tuple[Form, ...]

    @property
    def sizes(self) -> Shape:
        """The sizes now."""
        return tuple([self.shapes[i][d] for (i, d), *_ in self.places])

    def with_sizes(self, sizes: Sequence[Any]) -> list[list[Any]]:
        """The shapes, with other sizes in place of those that vary."""
        shapes = [[*shape] for shape in self.shapes]
        for places, size in zip(self.places, sizes, strict=True):
            for i, d in places:
                shapes[i][d] = size
        return shapes

    def sizes_in(self, shapes: Sequence[Shape]) -> Shape | None:
        """The sizes in a batch of other shapes; None if it differs in more."""
        sizes = tuple([shapes[i][d] for (i, d), *_ in self.places])
        return sizes if [[*shape] for shape in shapes] == self.with_sizes(sizes) else None

    def fakes(self, tensors: Sequence[Tensor], sizes: Sequence[Any], mode: Any) -> list[Tensor]:
        """Fake tensors in place of all inputs, of which the last are the batch's."""
        shapes = self.with_sizes(sizes)
        first = len(tensors) - len(shapes)
        batch = zip(tensors[first:], shapes, self.forms, strict=True)
        others = without_values(tensors[:first], mode)
        return others + [like(t, shape, form.of_shape(shape), mode) for t, shape, form in batch]

    def __str__(self) -> str:
        shapes = self.with_sizes([_letter(i) for i in range(len(self.places))])
        return ", ".join([f"[{','.join(map(str, shape))}]" for shape in shapes])


def _letter(i: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[i % 26] + str(i // 26 or "")


def recorded_with_symbols(
    inputs: Inputs, varying: Varying, written: frozenset[int], writes: bool
) -> tuple[Recorded, Symbols]:
    """Record a step for all sizes.

    Raises:
        NotForAll: It takes a number for a size, or goes another way where sizes are symbols.
    """
    try:
        return _recorded(inputs, varying, written, writes, in_python=False)
    except Exception as error:
        if isinstance(error, NotForAll) and not error.numbers:
            raise
    # PyTorch's C++ takes a number for a size in some operations (`F.pad`), its Python does not.
    return _recorded(inputs, varying, written, writes, in_python=True)


def _recorded(
    inputs: Inputs, varying: Varying, written: frozenset[int], writes: bool, in_python: bool
) -> tuple[Recorded, Symbols]:
    symbols, tensors = Symbols(varying.sizes), inputs.tensors()

    def record(sizes: Sequence[Any], mode: Any, in_python: bool) -> Recorded:
        fakes = varying.fakes(tensors, sizes, mode)
        with by_products():
            return Recorded(inputs, fakes, mode, written, writes, in_python)

    recorded = record(symbols.sizes, symbols.mode, in_python)
    check_numbers(symbols)
    others = _others(varying.sizes, symbols)

    def fill(value: Any) -> Any:
        return symbols.filled(value, others)

    again = record(others, fake_mode(), in_python)
    found = difference(recorded.graph, again.graph, fill)
    if found is None:
        # What is composed in Python may draw other numbers: layers of an LSTM, with dropout.
        plain = record(others, fake_mode(), in_python=False) if in_python else again
        found = "random numbers or metrics" if fill(_told(recorded)) != _told(plain) else None
    if found is not None:
        raise NotForAll(f"it differs where sizes are symbols: {found}")
    recorded.with_numbers = again.graph
    return recorded, symbols


def check_numbers(symbols: Symbols) -> None:
    """Refuse a recording that has taken a number for a symbol."""
    if numbers := symbols.fixed():
        raise NotForAll("it takes a number for a size", numbers)


def _told(recorded: Recorded) -> Any:
    """What a recording is, besides its graph."""
    _, metrics = recorded.metrics
    outputs = (recorded.written, recorded.stable, recorded.changed, recorded.copied, metrics)
    return outputs, recorded.makers, recorded.positions, [c.holds for _, c in recorded.checks]


def _others(sizes: Shape, symbols: Symbols) -> Shape:
    """Sizes, all of them different from these, that the recording holds for too."""
    found = [_another(sizes, i, symbols) for i in range(len(sizes))]
    if numbers := [i for i, size in enumerate(found) if size is None]:
        raise NotForAll("it holds for few numbers of a size", numbers)
    together = tuple([size for size in found if size is not None])
    if not symbols.admits(together):
        raise NotForAll("it holds for few sizes")
    return together


def _another(sizes: Shape, i: int, symbols: Symbols) -> int | None:
    """Another number for one of the sizes."""
    now = sizes[i]
    for number in (*[now + by for by in _STEPS], 2 * now, 3 * now):
        if symbols.admits((*sizes[:i], number, *sizes[i + 1 :])):
            return number
    return None


_STEPS = (1, -1, 2, -2, 4, -4, 8, -8, 16, 32, 64)


class _Program(Protocol):
    symbols: Any

    def of(self, sizes: Sequence[int]) -> Any: ...


P = TypeVar("P", bound=_Program)


class Family:
    """Batches that differ in sizes only, and what has been made for them."""

    def __init__(self) -> None:
        self._seen: list[tuple[Shape, ...]] = []
        self._made: list[tuple[Varying, Any]] = []
        self._numbers: Counter[Place] = Counter()
        self._failed = 0

    def known(self, shapes: tuple[Shape, ...]) -> Any:
        """A program that has been made for all sizes and holds for these; None if there is none."""
        for varying, program in self._made:
            sizes = varying.sizes_in(shapes)
            if sizes is not None and program.symbols.admits(sizes):
                return program.of(sizes)
        return None

    def make(
        self, shapes: tuple[Shape, ...], forms: tuple[Form, ...], build: Callable[[Varying], P]
    ) -> P | None:
        """Make a program for all sizes of what varies; None if nothing does, or it cannot be."""
        numbers = {place for place, count in self._numbers.items() if count >= _TRIES}
        try:
            while varying := self._varying(shapes, forms, numbers):
                try:
                    program = build(varying)
                    check_numbers(program.symbols)
                    self._made.append((varying, program))
                    return program.of(varying.sizes)
                except NotForAll as error:
                    if not error.numbers:
                        raise
                    places = [place for i in error.numbers for place in varying.places[i]]
                    self._numbers.update(places)
                    numbers |= {*places}
        except Exception as error:
            self._failed += 1
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _log.info("No graph for all sizes, but one for this shape: %s", reason)
        return None

    def saw(self, shapes: tuple[Shape, ...]) -> None:
        """Remember shapes for which a program has been made."""
        self._seen.append(shapes)

    def _varying(
        self, shapes: tuple[Shape, ...], forms: tuple[Form, ...], numbers: set[Place]
    ) -> Varying | None:
        """The sizes that have varied; those that have always been the same are one."""
        if self._failed >= _TRIES or any([0 in shape for shape in shapes]):
            return None
        columns: dict[Shape, list[Place]] = {}
        for i, shape in enumerate(shapes):
            for d, size in enumerate(shape):
                past = tuple([seen[i][d] for seen in self._seen])
                varies = any([before > 1 and before != size for before in past])
                if size > 1 and varies and (i, d) not in numbers:
                    columns.setdefault((*past, size), []).append((i, d))
        places = tuple(map(tuple, columns.values()))
        return Varying(places, shapes, forms) if places else None
