"""One graph of a step: recorded, built, and called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fnloop._torch import graph
from fnloop._torch.draws import Draw, Draws
from fnloop._torch.random import seeded
from fnloop._torch.tracing import compiling
from fnloop.transforms.arena import Arena
from fnloop.transforms.recording import Recording
from fnloop.values import State, fold


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
        return [*self.arena.inputs, *[leaf for leaf in leaves if isinstance(leaf, Tensor)]]


class Program:
    """A step as a function from tensors to tensors.

    Attributes:
        operations: The number of operations in the graph.
    """

    def __init__(self, inputs: Inputs, donate: bool, mode: str, backend: Any) -> None:
        layout = inputs.arena.layout
        self._written = layout.vectors if donate else frozenset[int]()
        fakes = graph.fake_mode()
        tensors = [fakes.from_tensor(t) for t in inputs.tensors()]
        draws = Draws()
        with fakes:
            self._record(inputs, tensors, draws)
        self._draws = draws.found
        drawn = [fakes.from_tensor(draw.make()) for draw in draws.found]
        recorded = graph.record(
            lambda *t: self._record(inputs, t[: len(tensors)], Draws(t[len(tensors) :])),
            [*tensors, *drawn],
            fakes,
        )
        first = len(inputs.arena.tensors)
        for vector in self._written:
            cuts = {first + i: cut for i, cut in layout.parts_of(vector)}
            graph.read_before_writing(recorded, vector, cuts)
        self._used = graph.prune(recorded)
        used = [[*tensors, *drawn][i] for i in self._used]
        self.operations = sum(node.op == "call_function" for node in recorded.graph.nodes)
        options = graph.options(inputs.state.step.device, mode)
        self._run = graph.build(recorded, used, backend, options)

    def __call__(
        self, state: State, inputs: list[Tensor], others: list[Tensor]
    ) -> tuple[dict[int, Tensor], Any]:
        """The state's tensors that have changed, by their place, and the metrics.

        Args:
            state: For its key and step, from which random numbers follow.
            inputs: The state's.
            others: Those of step and batch.
        """
        everything = inputs + others
        if self._draws:
            everything += draw_all(self._draws, state)
        results = self._run(*[everything[i] for i in self._used])
        return {i: results[place] for i, place in self._changed}, self._metrics(results)

    def _record(self, inputs: Inputs, fakes: Sequence[Tensor], draws: Draws) -> list[Tensor]:
        """Run the step on tensors without values; decide what the graph returns."""
        layout, n, m = inputs.arena.layout, len(inputs.arena.tensors), len(inputs.arena.inputs)
        state = layout.build(inputs.state, layout.packed(fakes[:n], fakes[n:m]))
        rest = iter(fakes[m:])
        step, batch = [
            optree.tree_unflatten(
                structure, [next(rest) if isinstance(x, Tensor) else x for x in leaves]
            )
            for leaves, structure in (inputs.step, inputs.batch)
        ]
        with draws, compiling(Recording(draws, state.key, state.step)):
            after, metrics = step(state, batch)
            new = layout.join(layout.flatten(after))
            return self._outputs(fakes, fakes[:n], new, metrics)

    def _outputs(
        self, fakes: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor], metrics: Any
    ) -> list[Tensor]:
        theirs = {t.untyped_storage()._cdata for t in fakes}
        outputs: list[Tensor] = []
        self._changed: list[tuple[int, int]] = []
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if after is before:
                continue
            if i in self._written:
                before.copy_(after)
            else:
                self._changed.append((i, len(outputs)))
                outputs.append(_apart(after, theirs))
        leaves, structure = optree.tree_flatten(metrics)
        places: list[int | None] = []
        for leaf in leaves:
            places.append(len(outputs) if isinstance(leaf, Tensor) else None)
            if isinstance(leaf, Tensor):
                outputs.append(_apart(leaf, theirs))
        constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

        def rebuild(results: Sequence[Tensor]) -> Any:
            found = [
                constant if place is None else results[place]
                for constant, place in zip(constants, places, strict=True)
            ]
            return structure.unflatten(found)

        self._metrics = rebuild
        return outputs


def draw_all(draws: Sequence[Draw], state: State) -> list[Tensor]:
    """The random numbers of a step: those that it draws when it is not compiled."""
    key, step = int(state.key.item()), int(state.step.item())
    drawn: list[Tensor] = []
    i = 0
    while i < len(draws):
        micro = draws[i].micro
        with seeded(fold(key, step, micro), state.key.device), torch.no_grad():
            while i < len(draws) and draws[i].micro == micro:
                drawn.append(draws[i].make())
                i += 1
    return drawn


def _apart(tensor: Tensor, theirs: set[int]) -> Tensor:
    """`tensor`, or a copy where it shares memory with an input, which may be written over."""
    if tensor.untyped_storage()._cdata in theirs:
        return tensor.clone()
    return tensor.detach() if tensor.requires_grad else tensor
