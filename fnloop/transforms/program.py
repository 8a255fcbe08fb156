"""One graph of a step: recorded, built, and called."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import optree
from torch import Tensor

from fnloop._torch import graph
from fnloop._torch.draws import Draws, draw
from fnloop.transforms.arena import Arena
from fnloop.transforms.compile_errors import CompileError
from fnloop.transforms.recording import Hidden, Recording, check_after
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.key import fold
from fnloop.values.state import State


@dataclasses.dataclass
class Inputs:
    """What a graph is recorded from; values of tensors are not looked at.

    Attributes:
        state: As it was given.
        arena: Its memory.
        step: The step's leaves and their structure.
        batch: The batch's.
    """

    state: State
    arena: Arena
    step: tuple[list[Any], Any]
    batch: tuple[list[Any], Any]

    def tensors(self) -> list[Tensor]:
        """All of them, in the order in which a graph takes them."""
        leaves = [*self.step[0], *self.batch[0]]
        others = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return [*self.arena.inputs, self.state.cursor, *others]

    def name(self, place: int) -> str:
        """What a person calls the tensor at `place`."""
        leaves, structure = self.batch
        batch = tree_items(structure.unflatten(leaves))
        known = {id(t): f"the batch ({path})" if path else "the batch" for path, t in batch}
        known.update((id(t), path) for path, t in tree_items(self.state))
        for layout_place, views in zip(self.arena.layout.places, self.arena.views, strict=True):
            if layout_place.pack is not None:
                names = layout_place.pack.grouped
                known.update((id(v), n) for n, v in zip(names, views or (), strict=True))
                vectors = self.arena.tensors[layout_place.start :]
                groups = zip(layout_place.pack.groups, vectors, strict=False)
                known.update((id(vector), ", ".join(group.names)) for group, vector in groups)
        return known.get(id(self.tensors()[place]), "a tensor that it was given")


_WRITTEN = (
    "The step writes to {what} in place. A step is a function: make a new tensor (x = x * 2 in "
    "place of x *= 2); of the layers of torch, an embedding with max_norm writes to its weight."
)

_CHANGED = (
    "The step makes {now} of {what}, which was {was}. A state keeps its shapes, dtypes and devices "
    "from step to step: make the memory so from the beginning, in memory(state), or convert back "
    "(x.to(old.dtype))."
)


class Program:
    """A step as a function from tensors to tensors.

    Attributes:
        operations: The number of operations in the graph.
        written: Places of the state's tensors that it writes over.
        stable: Whether the other tensors that have changed have the strides that they had.
    """

    def __init__(self, inputs: Inputs, donate: bool, mode: str, backend: Any) -> None:
        layout = inputs.arena.layout
        self.written = layout.writable if donate else frozenset[int]()
        fakes = graph.fake_mode()
        tensors = graph.without_values(inputs.tensors(), fakes)
        draws = Draws()
        with fakes:
            self._record(inputs, tensors, draws)
        places = self._draws = list(draws.found)
        blocks = range(len(draws.seeds))
        self._makers = [[m for p, m in draws.found.items() if p.block == i] for i in blocks]
        self._micro = draws.seeds
        with fakes:
            drawn = [maker() for block in self._makers for maker in block]

        def function(*given: Tensor) -> list[Tensor]:
            replay = Draws(dict(zip(places, given[len(tensors) :], strict=True)))
            return self._record(inputs, given[: len(tensors)], replay)

        recorded = graph.record(function, [*tensors, *drawn], fakes)
        first = len(inputs.arena.tensors)
        for vector in self.written & layout.vectors:
            cuts = {first + i: cut for i, cut in layout.parts_of(vector)}
            graph.read_before_writing(recorded, vector, cuts)
        used = graph.prune(recorded)
        self._pick = itemgetter(*used) if len(used) > 1 else lambda given: [given[i] for i in used]
        self.operations = sum(node.op == "call_function" for node in recorded.graph.nodes)
        options = graph.options(inputs.state.step.device, mode, self.operations)
        self._run = graph.build(recorded, self._pick([*tensors, *drawn]), backend, options)

    def __call__(
        self, state: State, inputs: list[Tensor], others: list[Tensor]
    ) -> tuple[dict[int, Tensor], Any]:
        """The state's tensors that have changed, by their place, and the metrics.

        Args:
            state: For its key and step, from which random numbers follow.
            inputs: The state's.
            others: The cursor, and those of step and batch.
        """
        everything = inputs + others
        if self._draws:
            key, step = int(state.key.item()), int(state.step.item())
            seeds = [fold(key, step, micro) for micro in self._micro]
            everything += draw(self._makers, seeds, state.key.device)
        results = self._run(list(self._pick(everything)))
        return {i: results[place] for i, place in self._changed}, self._metrics(results)

    def _record(self, inputs: Inputs, fakes: Sequence[Tensor], draws: Draws) -> list[Tensor]:
        """Run the step on tensors without values; decide what the graph returns."""
        layout, n, m = inputs.arena.layout, len(inputs.arena.tensors), len(inputs.arena.inputs)
        recording = Recording(draws)
        units = layout.noted(recording.vectors, fakes[:n], fakes[n:m])
        state = layout.build(inputs.state, units)
        hidden = {name: Hidden(name) for name in state.slots if name not in layout.slots}
        cursor, *others = fakes[m:]
        state = state.replace(cursor=cursor, slots={**state.slots, **hidden})
        rest = iter(others)
        step: Any
        step, batch = (
            structure.unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves])
            for leaves, structure in (inputs.step, inputs.batch)
        )
        versions = [t._version for t in fakes]
        with recording.of(state):
            after, results = step(state, batch)
            check_after(state, after, set(layout.slots))
            written = [i for i, t in enumerate(fakes) if t._version != versions[i]]
            if written:
                raise CompileError(_WRITTEN.format(what=inputs.name(written[0])))
            new = layout.join(layout.flatten(after))
            for i, (before, now) in enumerate(zip(fakes[:n], new, strict=True)):
                if _kind(before) != _kind(now):
                    raise CompileError(
                        _CHANGED.format(what=inputs.name(i), was=short(before), now=short(now))
                    )
            return self._outputs(fakes, fakes[:n], new, results)

    def _outputs(
        self, fakes: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor], metrics: Any
    ) -> list[Tensor]:
        theirs = {t.untyped_storage()._cdata for t in fakes}
        outputs: list[Tensor] = []
        writes: list[tuple[Tensor, Tensor]] = []
        self._changed: list[tuple[int, int]] = []
        self.stable = True
        written: set[int] = set()
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if after is before:
                continue
            if i in self.written:
                written.add(i)
                writes.append((before, _apart(after, theirs)))
            else:
                self._changed.append((i, len(outputs)))
                outputs.append(_apart(after, theirs))
                self.stable = self.stable and after.stride() == before.stride()
        leaves, structure = optree.tree_flatten(metrics)
        places: list[int | None] = []
        for leaf in leaves:
            places.append(len(outputs) if isinstance(leaf, Tensor) else None)
            if isinstance(leaf, Tensor):
                outputs.append(_apart(leaf, theirs))
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.written = frozenset(written)
        for before, after in writes:  # after everything has been read
            before.copy_(after)

        def rebuild(results: Sequence[Tensor]) -> Any:
            found = [
                constant if place is None else results[place]
                for constant, place in zip(constants, places, strict=True)
            ]
            return structure.unflatten(found)

        self._metrics = rebuild
        return outputs


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


def _apart(tensor: Tensor, theirs: set[int]) -> Tensor:
    """`tensor`, or a copy where it shares memory with an input, which may be written over."""
    if tensor.untyped_storage()._cdata in theirs:
        return tensor.clone()
    return tensor.detach() if tensor.requires_grad else tensor
