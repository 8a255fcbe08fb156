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
from fnloop.transforms.layout import Layout
from fnloop.transforms.recording import Recording
from fnloop.values import State, fold

Step = Callable[[State, Any], tuple[State, Any]]


@dataclasses.dataclass
class Inputs:
    """What a graph is recorded from.

    Attributes:
        state: As it was given; its tensors are not looked at.
        tensors: Those of the state, as its layout has them.
        step: The step's flat form: its leaves and their structure.
        batch: The batch's.
    """

    state: State
    tensors: Sequence[Tensor]
    step: tuple[list[Any], Any]
    batch: tuple[list[Any], Any]


class Program:
    """A step as a function from tensors to tensors.

    Attributes:
        operations: The number of operations in the graph.
        seconds: That recording and building it took.
    """

    def __init__(self, inputs: Inputs, layout: Layout, donate: bool, mode: str, backend: Any) -> None:
        self._layout = layout
        self._donate = donate
        everything = _tensors(inputs)
        mode = graph.fake_mode()
        fakes = [mode.from_tensor(t) for t in everything]
        draws = Draws()
        with mode:
            self._record(inputs, fakes, draws)
        self._draws = draws.found
        drawn = [mode.from_tensor(draw.make()) for draw in draws.found]
        recorded = graph.record(
            lambda *t: self._record(inputs, t[: len(fakes)], Draws(t[len(fakes) :])),
            [*fakes, *drawn],
            mode,
        )
        self.operations = sum(node.op == "call_function" for node in recorded.graph.nodes)
        self._used, used = graph.prune(recorded, [*fakes, *drawn])
        device = inputs.state.step.device
        self._run = graph.build(recorded, used, backend, graph.options(device, mode))

    def __call__(
        self, state: State, tensors: list[Tensor], others: list[Tensor]
    ) -> tuple[dict[int, Tensor], Any]:
        """The state's tensors that have changed, by their place, and the metrics.

        Args:
            state: For its key and step, from which random numbers follow.
            tensors: The state's.
            others: Those of step and batch.
        """
        everything = tensors + others
        if self._draws:
            everything += draw_all(self._draws, state)
        results = self._run(*[everything[i] for i in self._used])
        return {i: results[place] for i, place in self._changed}, self._metrics(results)

    def _record(self, inputs: Inputs, fakes: Sequence[Tensor], draws: Draws) -> list[Tensor]:
        """Run the step on tensors without values; decide what the graph returns."""
        n = len(inputs.tensors)
        rest = iter(fakes[n:])
        units = self._layout.packed(fakes[:n])
        state = self._layout.build(inputs.state, units)
        step, batch = [
            optree.tree_unflatten(
                structure, [next(rest) if isinstance(x, Tensor) else x for x in leaves]
            )
            for leaves, structure in (inputs.step, inputs.batch)
        ]
        with draws, compiling(Recording(draws, state.key, state.step)):
            after, metrics = step(state, batch)
            new = self._layout.join(self._layout.flatten(after))
            return self._outputs(fakes, new, metrics)

    def _outputs(self, fakes: Sequence[Tensor], new: Sequence[Tensor], metrics: Any) -> list[Tensor]:
        outputs: list[Tensor] = []
        theirs = {t.untyped_storage()._cdata for t in fakes}
        self._changed: list[tuple[int, int]] = []
        vectors = self._layout.vectors
        for i, (old, tensor) in enumerate(zip(fakes, new, strict=False)):
            if tensor is old:
                continue
            if self._donate and i in vectors:
                old.copy_(tensor)
                continue
            self._changed.append((i, len(outputs)))
            outputs.append(_apart(tensor, theirs))
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


def _tensors(inputs: Inputs) -> list[Tensor]:
    leaves = [*inputs.step[0], *inputs.batch[0]]
    return [*inputs.tensors, *[leaf for leaf in leaves if isinstance(leaf, Tensor)]]


def _apart(tensor: Tensor, theirs: set[int]) -> Tensor:
    """`tensor`, or a copy where it shares memory with an input, which may be written over."""
    if tensor.untyped_storage()._cdata in theirs:
        return tensor.clone()
    return tensor.detach() if tensor.requires_grad else tensor
