"""One graph of a step: recorded, built, and called."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import optree
from torch import Tensor

from fnloop._torch import graph, products
from fnloop._torch.conditions import Checks
from fnloop._torch.draws import Draws, draw
from fnloop._torch.read_only import ReadOnly
from fnloop._torch.references import storage_of
from fnloop.transforms.compile_errors import CompileError
from fnloop.transforms.kept import Kept
from fnloop.transforms.plan import Plan
from fnloop.transforms.recording import Hidden, Recording, check_after
from fnloop.trees.named import restored
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.close_look import check_draws
from fnloop.values.context import no_casting
from fnloop.values.host_random import GLOBAL, host_seeded
from fnloop.values.key import fold
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@dataclasses.dataclass
class Inputs:
    """What a graph is recorded from; tensor values are not read.

    Attributes:
        state: The given state.
        kept: Its tensors.
        step: The step's leaves and their structure.
        batch: The batch's leaves and their structure.
    """

    state: State
    kept: Kept
    step: tuple[list[Any], Any]
    batch: tuple[list[Any], Any]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order in which the graph takes them."""
        leaves = [*self.step[0], *self.batch[0]]
        others = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return [*self.kept.inputs, self.state.cursor, *others]

    def name(self, place: int) -> str:
        """The name of the input at `place`, for messages."""
        leaves, structure = self.batch
        batch = tree_items(structure.unflatten(leaves))
        known = {id(t): f"the batch ({path})" if path else "the batch" for path, t in batch}
        known.update((id(t), path) for path, t in tree_items(self.state))
        for unit in self.kept.units:
            if isinstance(unit, Tensors):
                names = ", ".join(unit.names)
                known.update((id(t), names) for t in unit.peek_storages())
                known.update((id(t), n) for n, t in zip(unit.names, unit.peek(), strict=True))
        return known.get(id(self.tensors()[place]), "a tensor that it was given")


_WRITTEN = (
    "The step writes to {what} in place. A step is a function: make a new tensor (x = x * 2 in "
    "place of x *= 2)."
)

_OUTSIDE = (
    "The step writes in place to a tensor that it was not given and has not made: one that the "
    "model keeps as an attribute, or that the loss finds outside. Its graph would change it in "
    "each step. Make a new tensor (x = x * 2 in place of x *= 2); what is to last belongs in a "
    "buffer of the model, self.register_buffer(...), or in the memory of a stage."
)

_FAILED = (
    "What the step asserts does not hold:\n{lines}\nThe state is the one before this step. For the "
    "values, and the error's own message, call the step without fl.compile: step.uncompiled."
)

_CHANGED = (
    "The step makes {now} of {what}, which was {was}. A state keeps its shapes, dtypes and devices "
    "from step to step: make the memory so from the beginning, in init_state(state), or convert "
    "back (x.to(old.dtype))."
)


class Program:
    """A step as a function from tensors to tensors.

    Attributes:
        operations: Number of operations in the graph.
        written: Indices of the state's tensors that it overwrites.
        stable: Whether the other changed tensors keep their strides.
    """

    def __init__(self, inputs: Inputs, donate: bool, mode: str, backend: Any) -> None:
        plan = inputs.kept.plan
        device = inputs.state.step.device
        self.written = plan.writable if donate else frozenset[int]()
        # Only a graph that is one call into machine code writes all or nothing when Python is
        # interrupted. And memory that a CUDA graph owns must not become the state.
        self._writes = backend == "inductor" and device.type == "cpu"
        self._calls: tuple[int, int] | None = None
        fakes = graph.fake_mode()
        tensors = graph.without_values(inputs.tensors(), fakes)
        members = inputs.state.step.numel()
        draws = Draws(members=members)
        with fakes:
            self._record(inputs, tensors, draws)
        self._writes = self._writes and not self._checks  # they come before anything is written
        places = self._draws = list(draws.found)
        blocks = range(len(draws.seeds))
        self._makers = [[m for p, m in draws.found.items() if p.block == i] for i in blocks]
        self._positions = draws.seeds
        with fakes:
            drawn = [maker() for block in self._makers for maker in block]

        def function(*given: Tensor) -> list[Tensor]:
            drawn = dict(zip(places, given[len(tensors) :], strict=True))
            replay = Draws(drawn, members)
            return self._record(inputs, given[: len(tensors)], replay)

        recorded = graph.record(function, [*tensors, *drawn], fakes, members)
        if self._writes:
            self._order(recorded, inputs.kept)
        else:
            self._calls = self._take_calls(recorded, inputs)
        used = graph.prune(recorded)
        self._pick = itemgetter(*used) if len(used) > 1 else lambda given: [given[i] for i in used]
        operations = graph.operations_of(recorded)
        self.operations = operations.total()
        options = graph.options(device, mode, operations)
        with no_casting(device):  # the recorded graph holds the casts already
            self._run = graph.build(recorded, self._pick([*tensors, *drawn]), backend, options)
        self._clones = device.type != "cpu"
        faster = products.gain(recorded) > 0 and products.available()
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
        with no_casting(state.step.device), self._products():
            results = self._run(list(self._pick(everything)))
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
        return {i: results[place] for i, place in self._changed}, self._metrics(results)

    def _take_calls(self, recorded: Any, inputs: Inputs) -> tuple[int, int] | None:
        """Take the count of calls, which stays on the CPU, out: its place, and what to add."""
        own = next(i for i, tensor in enumerate(inputs.kept.inputs) if tensor is inputs.state.calls)
        found = [place for i, place in (*self._copied, *self._changed) if i == own]
        count = graph.take_count(recorded, own, found[0]) if found else None
        return None if count is None else (found[0], count)

    def _seeds(self, state: State) -> list[list[int]]:
        keys, calls = (t.reshape(-1).tolist() for t in (state.key, state.calls))
        members = list(zip(keys, calls, strict=True))
        return [[fold(*member, *position) for member in members] for position in self._positions]

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

    def _record(self, inputs: Inputs, fakes: Sequence[Tensor], draws: Draws) -> list[Tensor]:
        """Run the step on fake tensors, and choose what the graph returns."""
        plan, m = inputs.kept.plan, len(inputs.kept.inputs)
        recording = Recording(draws)
        units = _units(plan, inputs.kept, fakes[:m])
        state = plan.build(inputs.state, units)
        state.__dict__.pop("_kept", None)
        hidden = {name: Hidden(name) for name in state.slots if name not in plan.slots}
        cursor, *others = fakes[m:]
        state = state.replace(cursor=cursor, slots={**state.slots, **hidden})
        rest = iter(others)
        step: Any
        step, batch = (
            structure.unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves])
            for leaves, structure in (inputs.step, inputs.batch)
        )
        versions = [t._version for t in fakes]
        with Checks() as checks, recording.of(state), products.short_attention():
            with self._read_only(inputs, fakes), host_seeded(GLOBAL) as host:
                after, results = step(state, restored(batch))
            if host.drew:  # for a loss, it is an error already
                check_draws(host.drew, "a stage of the step")
            check_after(state, after, set(plan.slots))
            written = [i for i, t in enumerate(fakes) if t._version != versions[i]]
            if written:
                raise CompileError(_WRITTEN.format(what=inputs.name(written[0])))
            new = _storages(units, plan.flatten(after))
            for i, (before, now) in enumerate(zip(fakes[: plan.size], new, strict=True)):
                if _kind(before) != _kind(now):
                    raise CompileError(
                        _CHANGED.format(what=inputs.name(i), was=short(before), now=short(now))
                    )
            outputs = self._outputs(fakes, fakes[: plan.size], new, results)
            self._checks = list(enumerate(checks.found, len(outputs)))
            return [*outputs, *[check.tensor for check in checks.found]]

    def _read_only(self, inputs: Inputs, fakes: Sequence[Tensor]) -> ReadOnly:
        """Refuse writes to what the step is given, also those that versions do not show."""

        def refusal(place: str) -> CompileError:
            if not place:
                return CompileError(_OUTSIDE)
            return CompileError(_WRITTEN.format(what=inputs.name(int(place))))

        given = {str(i): tensor for i, tensor in enumerate(fakes)}
        return ReadOnly(given, refusal, graph.is_fake)

    def _outputs(
        self, fakes: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor], metrics: Any
    ) -> list[Tensor]:
        taken = {t.untyped_storage()._cdata for t in fakes}
        outputs: list[Tensor] = []
        writes: list[tuple[Tensor, Tensor]] = []
        self._changed: list[tuple[int, int]] = []
        self._copied: list[tuple[int, int]] = []
        self.stable = True
        written: set[int] = set()
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if after is before:
                continue
            if i in self.written:
                written.add(i)
                if self._writes:
                    writes.append((before, _apart(after, taken)))
                    continue
                self._copied.append((i, len(outputs)))
            else:
                self._changed.append((i, len(outputs)))
                self.stable = self.stable and after.stride() == before.stride()
            outputs.append(_apart(after, taken))
        leaves, structure = optree.tree_flatten(metrics)
        places: list[int | None] = []
        for leaf in leaves:
            places.append(len(outputs) if isinstance(leaf, Tensor) else None)
            if isinstance(leaf, Tensor):
                outputs.append(_apart(leaf, taken))
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


def _units(plan: Plan, kept: Kept, fakes: Sequence[Tensor]) -> list[Any]:
    """The units of the state that is recorded, made of fake tensors."""
    units: list[Any] = []
    for i, (start, stop, layout) in enumerate(plan.places):
        if layout is None:
            units.append(fakes[start])
        elif i != plan.params:
            units.append(Tensors.of(layout, fakes[start:stop]))
        else:
            # Parameters by name are separate inputs: code that reads one is then the same for all
            # layers of a kind, and is compiled once.
            params: Any = kept.units[i]
            same = params.peek() is params.peek_storages()
            views = fakes[start:stop] if same else fakes[plan.size :]
            units.append(Tensors.of(layout, fakes[start:stop], tuple(views)))
    return units


def _storages(before: Sequence[Any], after: Sequence[Any]) -> list[Tensor]:
    """Units after the step as graph outputs, in the layouts of those before it."""
    found: list[Tensor] = []
    for old, new in zip(before, after, strict=True):
        found += old.like(new).peek_storages() if isinstance(old, Tensors) else [new]
    return found


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


def _apart(tensor: Tensor, taken: set[int]) -> Tensor:
    """`tensor`, or a copy if it shares memory with an input or another output."""
    address = tensor.untyped_storage()._cdata
    if address in taken:  # which may be written over
        return tensor.clone()
    taken.add(address)
    return tensor.detach() if tensor.requires_grad else tensor
