"""One graph of a step: built, and called."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from torch import Tensor

from fnloop._torch import graph, machine_code, products, recurrent
from fnloop._torch.draws import Maker, draw
from fnloop._torch.fakes import fake_mode, without_values
from fnloop._torch.freed_memory import keep_freed
from fnloop._torch.references import storage_of
from fnloop._torch.tf32 import tf32
from fnloop.transforms.kept import Kept
from fnloop.transforms.recorded import Inputs, Recorded
from fnloop.transforms.varying import Varying, recorded_with_symbols
from fnloop.values.context import no_casting
from fnloop.values.key import fold
from fnloop.values.state import State

_FAILED = (
    "What the step asserts does not hold:\n{lines}\nThe state is the one before this step. For the "
    "values, and the error's own message, call the step without fl.compile: step.uncompiled."
)


class Program:
    """A step as a function from tensors to tensors.

    Args:
        inputs: What it is recorded from.
        donate, mode, backend, memory: As in `fl.compile`.
        varying: Sizes of the batch that it is to be for all of.

    Attributes:
        operations: Number of operations in the graph.
        written: Indices of the state's tensors that it overwrites.
        stable: Whether the other changed tensors keep their strides.
        symbols: The sizes of `varying`, and what the graph assumes about them.
        outside: Tensors from outside that the graph contains.
        asked: Questions for whose other answers another graph is needed.

    Raises:
        NotForAll: It cannot be recorded for all sizes of `varying`.
    """

    def __init__(
        self,
        inputs: Inputs,
        donate: bool,
        mode: str,
        backend: Any,
        memory: float,
        varying: Varying | None = None,
    ) -> None:
        keep_freed()
        device = inputs.state.step.device
        written = inputs.kept.plan.writable if donate else frozenset[int]()
        # Only a graph that is one call into machine code writes all or nothing when Python is
        # interrupted. And memory that a CUDA graph owns must not become the state.
        writes = backend == "inductor" and device.type == "cpu"
        self.symbols = None
        if varying is None:
            fakes = fake_mode()
            tensors = without_values(inputs.tensors(), fakes)
            # Other backends of torch.compile call a graph with gradients disabled.
            with contextlib.nullcontext() if writes else recurrent.by_products():
                recorded = Recorded(inputs, tensors, fakes, written, writes)
        else:
            recorded, self.symbols = recorded_with_symbols(inputs, varying, written, writes)
        self.written, self.stable = recorded.written, recorded.stable
        self.asked = recorded.asked
        self._checks = recorded.checks
        self._changed, self._copied = recorded.changed, recorded.copied
        self._makers: list[list[Maker]] = recorded.makers
        self._draws = any(self._makers)
        self._blocks = list(zip(recorded.positions, recorded.parts, strict=True))
        self._structure, self._metrics = recorded.metrics
        self._calls: tuple[int, int] | None = None
        self.outside = [*graph.constants(recorded.graph).values()]
        if memory < 1:
            from fnloop._torch.recompute import recompute  # which imports Inductor, for a second

            recompute(recorded.graph, memory)
        if recorded.writes:
            self._order(recorded.graph, inputs.kept)
        else:
            self._calls = self._take_calls(recorded.graph, inputs)
        used = graph.prune(recorded.graph)
        self._pick = itemgetter(*used) if len(used) > 1 else lambda given: [given[i] for i in used]
        operations = graph.operations_of(recorded.graph)
        self.operations = operations.total()
        options = machine_code.options(device, mode, operations, memory)
        given = self._pick([*recorded.fakes, *recorded.drawn])
        self._rounding = tf32 if recorded.rounded else contextlib.nullcontext
        with no_casting(device), self._rounding():  # the recorded graph holds the casts already
            self._run = machine_code.build(recorded.graph, given, backend, options)
        self._mode = recurrent.mode_for(recorded.graph)
        self._clones = device.type != "cpu"
        faster = products.available() and products.gain(recorded.with_numbers) > 0
        self._products = products.by_onednn if faster else contextlib.nullcontext

    def __call__(
        self, state: State, inputs: list[Tensor], others: list[Tensor]
    ) -> tuple[dict[int, Tensor], Any]:
        """Run the step: the state's changed tensors by index, and the metrics.

        Tensors that it overwrites are written by one call into machine code.

        Args:
            state: Its key and calls determine the random numbers.
            inputs: The state's tensors.
            others: The cursor, and the tensors of step and batch.
        """
        everything = inputs + others
        if self._draws:
            everything += draw(self._makers, self._seeds(state), state.step.device)
        given = list(self._pick(everything))
        del everything  # so that the graph can free random numbers, once it has read them
        with no_casting(state.step.device), self._rounding(), self._products(), self._mode():
            results = self._run(given)
        for place, check in self._checks:
            if bool(results[place]) is not check.holds:
                raise AssertionError(_FAILED.format(lines=check.lines))
        if self._clones:
            results = graph.copies(results, {place for _, place in self._copied})
        if self._calls is not None:
            place, count = self._calls
            results = [*results[:place], state.calls + count, *results[place + 1 :]]
        if self._copied:
            graph.copy_all(
                [inputs[i] for i, _ in self._copied], [results[place] for _, place in self._copied]
            )
        metrics = [
            constant if place is None else results[place] for place, constant in self._metrics
        ]
        return {i: results[place] for i, place in self._changed}, self._structure.unflatten(metrics)

    def of(self, sizes: Sequence[int]) -> Program:
        """The same program for these sizes: its random numbers, and metrics that are numbers."""
        symbols: Any = self.symbols
        one = copy.copy(self)
        one._makers = [[Maker(*symbols.filled(m, sizes)) for m in block] for block in self._makers]
        one._metrics = symbols.filled(self._metrics, sizes)
        return one

    def _take_calls(self, recorded: Any, inputs: Inputs) -> tuple[int, int] | None:
        """Take the count of calls, which stays on the CPU, out: its place, and what to add."""
        own = next(i for i, tensor in enumerate(inputs.kept.inputs) if tensor is inputs.state.calls)
        found = [place for i, place in (*self._copied, *self._changed) if i == own]
        count = graph.take_count(recorded, own, found[0]) if found else None
        return None if count is None else (found[0], count)

    def _seeds(self, state: State) -> list[list[int]]:
        keys, calls = (t.reshape(-1).tolist() for t in (state.key, state.calls))
        members = list(zip(keys, calls, strict=True))
        return [
            [fold(*member, *position) for member in members[part]]
            for position, part in self._blocks
        ]

    def _order(self, recorded: Any, kept: Kept) -> None:
        """Order the graph so that parameters are read by name before they are overwritten."""
        params: Any = kept.units[kept.plan.params]
        start, first = kept.plan.places[kept.plan.params].start, kept.plan.size
        storages = [storage_of(s)._cdata for s in params.peek_storages()]
        cuts: dict[int, dict[int, Any]] = {start + i: {} for i in range(len(storages))}
        for i, view in enumerate(params.peek()):
            owner = start + storages.index(storage_of(view)._cdata)
            cuts[owner][first + i] = (view.shape, view.stride(), view.storage_offset())
        for owner, views in cuts.items():
            if owner in self.written:
                graph.read_before_writing(recorded, owner, views)
