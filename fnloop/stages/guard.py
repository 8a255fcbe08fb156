"""``guard``: undo a step that a rule calls bad."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.base import Kind, Stage, StepStage
from fnloop.stages.rule import RulePart, as_rule, truth
from fnloop.trees.nodes import tree, tree_map
from fnloop.trees.show import short
from fnloop.values.choice import Flag, both, either, invert, select, stepped
from fnloop.values.counts import as_count
from fnloop.values.looking import look
from fnloop.values.merging import find
from fnloop.values.metrics import Metric, Sum, as_tensor, check_metrics
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class Guard(StepStage):
    """The stage that `guard` makes."""

    wraps: ClassVar[Kind | None] = "step"
    label: ClassVar[str] = "guard"
    inner: Any
    rule: Any
    then: str = "skip"
    every: int = 100
    name: str = "guard"

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = [p for p in self.inner.stages() if isinstance(p, Guard) and p.then == "rewind"]
        if inside and self.then == "rewind":
            raise ValueError(
                f"{self.describe()} wraps {inside[0].describe()}: two rewinding guards cannot be "
                "nested, because the snapshots of the inner one are stale once the outer one "
                'rewinds. Use then="skip" for one of them, or combine the rules into one function '
                'that adds "bad".'
            )

    def stages(self) -> Iterator[Stage]:
        yield from self.inner.stages()
        for part in self.rule.stages():
            yield RulePart(part)
        yield self

    def init_state(self, state: State) -> dict[str, Any]:
        if self.then == "skip":
            return {}
        return {
            "older": tree_map(torch.clone, self._snapshot(state)),
            "newer": tree_map(torch.clone, self._snapshot(state)),
            "since": torch.zeros_like(state.step),
            "seen": state.step.clone(),
        }

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        before = state
        after, metrics = self.inner(before, x)
        bad, remembered, added = self._judge(after, metrics)
        good = invert(bad)
        if self.then == "skip":
            slots = {**before.slots, **self._kept(before)}
            own, old = {}, _parts(before, before.params, slots)
        else:
            self._check_kept(before, after)
            own, old = self._keep(before, after, good)
        state = after
        if good is not True:
            new = _parts(after, after.params, after.slots)
            state = after.replace(**_taken_back(good, new, old))
        if own or remembered:
            state = state.replace(slots={**state.slots, **own, **remembered})
        reports = {**self._report(metrics, good, state), **added}
        return state, {**reports, self.name: Sum(as_tensor(bad, state.step.device))}

    def _judge(
        self, after: State, metrics: Mapping[str, Any]
    ) -> tuple[Flag, dict[str, Any], dict[str, Any]]:
        """Return whether the step was bad, the rule's memory by slot, and the metrics it adds."""
        for name in self.rule.needs():
            if find(metrics, name) is None:
                raise ValueError(
                    f"{self.describe()} waits for the metric {name!r}, which the step inside does "
                    f"not report; it reports: {', '.join(sorted(metrics))}. Metrics of callbacks "
                    "(val/...) are only computed after the step."
                )
        judged, told = self.rule(after, metrics)
        if "bad" not in told:
            raise ValueError(
                f'The rule of {self.describe()} must report its verdict as the metric "bad": '
                'return state, {**metrics, "bad": metrics["loss"].value() > 10}.'
            )
        verdict = told["bad"].value() if isinstance(told["bad"], Metric) else told["bad"]
        if isinstance(verdict, Tensor) and verdict.ndim:
            raise ValueError(
                f'The rule of {self.describe()} reports {short(verdict)} as "bad"; it must be one '
                "value: use .any() or .all()."
            )
        inside = {part.slot for part in self.inner.stages()} | {self.name}
        remembered = {
            name: memory
            for name, memory in judged.slots.items()
            if name not in inside and memory is not after.slots.get(name)
        }
        added = {n: m for n, m in told.items() if n not in metrics and n != "bad"}
        return truth(verdict), remembered, added

    def _keep(self, before: State, after: State, good: Flag) -> tuple[dict[str, Any], Any]:
        """Return the guard's memory after the step, and the snapshot to restore if it was bad."""
        own = before[self.name]
        older, newer, since = own["older"], own["newer"], own["since"]
        other = look(before.step != own["seen"])
        if other is not False:  # not the state that the guard returned last, e.g. a loaded one
            first, zero = self._snapshot(before), torch.zeros_like(since)
            older, newer, since = (
                select(invert(other), kept, now)
                for kept, now in ((older, first), (newer, first), (since, zero))
            )
        moved = both(good, stepped(before, after))
        since = since + (moved if isinstance(moved, Tensor) else int(moved))
        due = both(moved, look(since >= self.every))
        latest, back = newer, older
        if due is not False:
            latest = select(invert(due), newer, self._snapshot(after))
            older = select(invert(due), older, newer)
        # A rewind restores the older snapshot and drops the newer one: the damage may have
        # started before it was taken.
        return {
            self.name: {
                **own,
                "older": older,
                "newer": select(good, latest, back),
                "since": select(either(invert(good), due), torch.zeros_like(since), since),
                "seen": select(good, after.step, back["step"]),
            }
        }, back

    def _kept(self, state: State) -> dict[str, Any]:
        """The memory of the stages inside that is restored with a step (`Stage.taken_back`)."""
        return {
            part.slot: part.taken_back(state[part.slot])
            for part in self.inner.stages()
            if part.slot is not None
        }

    def _snapshot(self, state: State) -> Any:
        slots = {name: memory for name, memory in self._kept(state).items() if _is_some(memory)}
        return _parts(state, state.params.select(self.trained(state)), slots)

    def _check_kept(self, before: State, after: State) -> None:
        """Raise if the step changed something that the snapshot does not contain."""
        kept, own = before[self.name]["older"], {part.slot for part in self.stages()}
        lost = [f"slots/{n}" for n, m in after.slots.items() if m is not before.slots.get(n)]
        lost = [path for path in lost if path.removeprefix("slots/") not in own]
        if len(kept["params"]) < len(after.params):
            rest = [name for name in after.params if name not in kept["params"]]
            lost += [f"params/{n}" for n in rest if not _are_same(after.params, before.params, n)]
        if lost:
            raise ValueError(
                f"{self.describe()} cannot go back: the step changes {', '.join(lost)}, which it "
                "has no copy of. It copies the parameters that require gradients, and the slots "
                "that the stages inside own. To own a slot, a stage class needs a field name and a "
                "method init_state(state)."
            )

    def _report(self, metrics: Mapping[str, Any], good: Flag, state: State) -> dict[str, Any]:
        """Metrics of weight zero for a bad step, as `update` reports a skipped one."""
        shown = dict(metrics)
        zero, one = (Sum(as_tensor(n, state.step.device)) for n in (0, 1))
        shown["skipped"] = select(good, shown.get("skipped", zero), one)
        if good is True:
            return shown
        check_metrics(shown, f"The step inside {self.describe()}")
        counts = {p.name for p in self.inner.stages() if isinstance(p, Guard)} | {"skipped"}
        for name in [name for name in shown if name not in counts]:
            shown[name] = select(good, shown[name], shown[name].empty())
        return shown


@explained
def guard(
    rule: Callable[[State, Any], Any],
    then: Literal["skip", "rewind"] = "skip",
    every: int = 100,
    name: str = "guard",
) -> Callable[[StepStage], Guard]:
    """Undo a step that a rule calls bad. It guards the stages before it, so put it last.

    A rule is a callback: `fl.rules.spike`, `fl.rules.nonfinite`, one of your own, or a function
    ``(state, metrics) -> (state, metrics)``. It receives the state after the step, and reports its
    verdict as the metric ``"bad"``: a bool, a tensor bool[], or a metric such as ``fl.Sum(1.0)``.
    Of its changes to the state, only those to its own slot are kept.

    After a bad step:

    - ``then="skip"`` restores parameters, buffers, the memory of all stages inside and
      ``state.step`` from before the step, bit for bit.
    - ``then="rewind"`` restores them from a snapshot that is `every` to ``2 * every`` good steps
      old (less after the start or a rewind), and continues with the next batch: a spike often
      shows only after the damage is done. (PaLM, Chowdhery et al., 2022, section 5.1, rewound
      about 100 steps and skipped batches.) ``state["guard"]`` holds two snapshots, which are saved
      with it.

    Not restored are the cursor, ``state.calls`` (so later steps draw new random numbers), the loss
    scale of `fl.amp`, the multipliers of `fl.scale`, and the memory of rules and callbacks. A bad
    step reports metrics of weight zero, and one for ``skipped`` and for ``guard``; a good step
    reports zero for ``guard``. Until the rule finds a bad step, results equal those without a
    guard, bit for bit.

    In an eager step on the CPU a snapshot takes no time, and shares memory with the states of the
    run. Compiled or on an accelerator, every step selects by the verdict, which reads and writes
    both snapshots.

    Args:
        rule: Decides which steps are bad.
        then: ``"skip"`` or ``"rewind"``.
        every: Good steps between two snapshots; only for ``"rewind"``. Choose it well below the
            number of steps between spikes, or the run keeps rewinding to the same snapshot.
        name: Name of the slot and of the metric.

    Raises:
        TypeError: It wraps something other than a training step, or `rule` is not a callback.
        ValueError: `then` or `every` is invalid, or two rewinding guards are nested; or, at the
            call, the rule reports no verdict or needs a metric that the step does not report, or
            the step changes something that the guard has no copy of.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> too_high = lambda state, metrics: (state, {**metrics, "bad": metrics["loss"].value() > 9})
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), guard(too_high))
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> after, metrics = step(state, torch.full((3, 2), 1e3))
    >>> fl.tree_equal(after.params, state.params), int(after.step), float(metrics["guard"])
    (True, 0, 1.0)
    """
    every = as_count(every, "guard(every=...)", 1)
    return functools.partial(Guard, rule=as_rule(rule), then=then, every=every, name=name)


def _parts(state: State, params: Tensors, slots: dict[str, Any]) -> dict[str, Any]:
    return {"step": state.step, "params": params, "buffers": state.buffers, "slots": slots}


def _taken_back(good: Flag, new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """The fields of the state after the step if it was good, else the old ones."""
    kept = new["params"].select(old["params"])
    params = new["params"].updated(select(good, kept, old["params"]))
    return {**select(good, new, {**old, "params": new["params"]}), "params": params}


def _are_same(a: Tensors, b: Tensors, name: str) -> bool:
    """Whether both hold the same tensor object, or the same storage for it."""
    place = a.names.index(name)  # not by name: who has only a piece of each gives none
    if a.peek()[place] is b.peek()[place]:
        return True
    ours, theirs = a.select([name]).peek_storages(), b.select([name]).peek_storages()
    return ours[0] is theirs[0]


def _is_some(memory: Any) -> bool:
    return not isinstance(memory, dict) or bool(memory)
