"""A step recorded as one graph, and what it takes and returns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import optree
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher

from fnloop._torch import graph
from fnloop._torch.conditions import Checks
from fnloop._torch.draws import Draws
from fnloop._torch.fakes import is_fake
from fnloop._torch.products import short_attention
from fnloop._torch.read_only import ReadOnly
from fnloop._torch.transformable import transformable
from fnloop.transforms.compile_errors import CompileError
from fnloop.transforms.kept import Kept
from fnloop.transforms.plan import Plan
from fnloop.transforms.recording import Hidden, Recording, check_after
from fnloop.trees.named import restored
from fnloop.trees.paths import tree_items
from fnloop.values.changed_kind import changed_kind
from fnloop.values.close_look import check_draws
from fnloop.values.host_random import GLOBAL, host_seeded
from fnloop.values.questions import Counts, all_counts
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


class Recorded:
    """A step, recorded.

    Args:
        inputs: What it is recorded from.
        fakes: Fake tensors in place of those of `inputs`.
        mode: Their mode.
        written: Indices of the state's tensors that it may overwrite.
        writes: Whether it does so in the graph, at its end.
        in_python: Whether operations are composed of others by PyTorch's Python where it can, in
            place of its C++.

    Attributes:
        fakes: As given.
        graph: The graph, a function of `fakes` and `drawn`.
        with_numbers: The same, with numbers for all sizes.
        drawn: Fake tensors in place of random numbers.
        makers: What draws those, by block; `positions` are those of the blocks, and `parts` the
            members that draw there.
        written, writes: As given, but for what is not written after all.
        stable: Whether the other changed tensors keep their strides.
        changed, copied: Pairs: index among the state's tensors, index among the graph's outputs.
            The latter are to be copied into the state.
        asked, rounded: See `Recording`.
        checks: Conditions of the step, with their index among the outputs.
        metrics: Structure of the metrics; for each leaf, its index among the outputs, and if that
            is None the leaf itself.
    """

    def __init__(
        self,
        inputs: Inputs,
        fakes: Sequence[Tensor],
        mode: Any,
        written: frozenset[int],
        writes: bool,
        in_python: bool = False,
    ) -> None:
        self.fakes, self.written, self.writes = fakes, written, writes
        members = inputs.state.step.numel()
        counts = all_counts(inputs.state)  # they cannot be read while it is recorded
        draws = Draws(graph.another_input, members)
        within = enable_python_dispatcher if in_python else contextlib.nullcontext
        with within():
            self.graph = graph.record(
                lambda *given: self._record(inputs, given, draws, counts), fakes, mode, members
            )
        places = sorted(draws.found)
        blocks = range(len(draws.seeds))
        self.makers = [[draws.found[p] for p in places if p.block == i] for i in blocks]
        self.positions, self.parts = draws.seeds, draws.parts
        self.drawn = [draws.drawn[place] for place in places]
        self.with_numbers = self.graph

    def _record(
        self, inputs: Inputs, fakes: Sequence[Tensor], draws: Draws, counts: Counts
    ) -> list[Tensor]:
        """Run the step on fake tensors, and choose what the graph returns."""
        plan, m = inputs.kept.plan, len(inputs.kept.inputs)
        recording = Recording(draws, counts)
        self.asked = recording.asked
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
        with (
            Checks() as checks,
            recording.of(state),
            short_attention(),
            transformable(),
        ):
            with self._read_only(inputs, fakes), host_seeded(GLOBAL) as host:
                after, results = step(state, restored(batch))
            if host.drew:  # for a loss, it is an error already
                check_draws(host.drew, "a stage of the step")
            self.rounded = recording.rounded
            check_after(state, after, set(plan.slots))
            written = [i for i, t in enumerate(fakes) if t._version != versions[i]]
            if written:
                raise CompileError(_WRITTEN.format(what=inputs.name(written[0])))
            new = _storages(units, plan.flatten(after))
            _check_kinds(inputs, fakes[: plan.size], new)
            self.writes = self.writes and not checks.found  # they come before anything is written
            outputs = self._outputs(fakes, fakes[: plan.size], new, results)
            self.checks = list(enumerate(checks.found, len(outputs)))
            return [*outputs, *[check.tensor for check in checks.found]]

    def _read_only(self, inputs: Inputs, fakes: Sequence[Tensor]) -> ReadOnly:
        """Refuse writes to what the step is given, also those that versions do not show."""

        def refusal(place: str) -> CompileError:
            if not place:
                return CompileError(_OUTSIDE)
            return CompileError(_WRITTEN.format(what=inputs.name(int(place))))

        given = {str(i): tensor for i, tensor in enumerate(fakes)}
        return ReadOnly(given, refusal, lambda tensor: None if is_fake(tensor) else "")

    def _outputs(
        self, fakes: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor], metrics: Any
    ) -> list[Tensor]:
        taken = {t.untyped_storage()._cdata for t in fakes}
        outputs: list[Tensor] = []
        writes: list[tuple[Tensor, Tensor]] = []
        self.changed: list[tuple[int, int]] = []
        self.copied: list[tuple[int, int]] = []
        self.stable = True
        written: set[int] = set()
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            if after is before:
                continue
            if i in self.written:
                written.add(i)
                if self.writes:
                    writes.append((before, _apart(after, taken)))
                    continue
                self.copied.append((i, len(outputs)))
            else:
                self.changed.append((i, len(outputs)))
                self.stable = self.stable and after.stride() == before.stride()
            outputs.append(_apart(after, taken))
        leaves, structure = optree.tree_flatten(metrics)
        found: list[tuple[int | None, Any]] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                found.append((len(outputs), None))
                outputs.append(_apart(leaf, taken))
            else:
                found.append((None, leaf))
        self.metrics = (structure, found)
        self.written = frozenset(written)
        for before, after in writes:  # after everything has been read
            before.copy_(after)
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


def _check_kinds(inputs: Inputs, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if _kind(old) != _kind(new):
            raise CompileError(changed_kind(inputs.name(i), old, new))


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


def _apart(tensor: Tensor, taken: set[int]) -> Tensor:
    """`tensor`, or a copy if it shares memory with an input or another output."""
    address = tensor.untyped_storage()._cdata
    if address in taken:  # which may be written over
        return tensor.clone()
    taken.add(address)
    return tensor.detach() if tensor.requires_grad else tensor
