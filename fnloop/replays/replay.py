"""``replay``: run one step again and inspect it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.replays.one_member import alone
from fnloop.replays.suspects import Suspect, suspects
from fnloop.replays.watch import Watch, watched
from fnloop.stages.base import Stage
from fnloop.stages.step_given import check_is_step
from fnloop.trees.equal import tree_equal
from fnloop.values.merging import numbers
from fnloop.values.nonfinite_values import Nonfinite, in_batch, in_state
from fnloop.values.stacked import members_of
from fnloop.values.state import State


class Norms(NamedTuple):
    """Euclidean norms for one parameter.

    Attributes:
        parameter: Norm before the step.
        gradient: Norm of the mean gradient that the optimizer gets; None if there is none.
        update: Norm of the change by the step.
    """

    parameter: float
    gradient: float | None
    update: float


@dataclasses.dataclass(frozen=True)
class Replay:
    """The details of one step; ``print(replay)`` prints a report.

    Attributes:
        before: The state before the step.
        after: The state after it, equal to the step's result to the bit. (To rounding for a
            compiled step, which is run uncompiled.)
        batch: The batch.
        metrics: The step's metrics.
        measured: The metrics of the loss; in `metrics` a skipped step has them empty.
        gradients: Mean gradients by parameter, unscaled, before the optimizer clips them.
        norms: Norms by parameter.
        gradient_norm: Norm of all gradients together; None if no gradient stage was seen.
        skipped: Whether the step was skipped: ``state.step`` did not change.
        nonfinite: All tensors with values that are nan or infinite, in the order of the step.
        first_nonfinite: The first of them that may be the cause; None if loss, gradients and new
            state are finite.
        examples: The examples of the batch that alone make the loss or the gradient non-finite.
        notes: Further information.
    """

    before: State
    after: State
    batch: Any
    metrics: Mapping[str, Any]
    measured: Mapping[str, Any]
    gradients: dict[str, Tensor]
    norms: dict[str, Norms]
    gradient_norm: float | None
    skipped: bool
    nonfinite: tuple[Nonfinite, ...]
    first_nonfinite: Nonfinite | None
    examples: tuple[Suspect, ...]
    notes: tuple[str, ...]

    @property
    def loss(self) -> float | None:
        """The loss, also if the step was skipped."""
        return numbers({**self.metrics, **self.measured}).get("loss")

    def __str__(self) -> str:
        from fnloop.replays.report import report

        return report(self)


@explained
def replay(step: Any, state: State, batch: Any, member: int | None = None) -> Replay:
    """Run one step and inspect it: module outputs, gradients, norms.

    A step is a pure function, so running it again on the same state and batch repeats it to the
    bit. The step may be any stage. Gradients are recorded if it has gradient stages, module outputs
    if the model is an ``nn.Module``. The user's module is not changed: hooks are on the state's
    private copy, and only during this call.

    Args:
        step: A training step. A compiled one is run uncompiled, which is equal to rounding.
        state: The state before the step.
        batch: The batch.
        member: Of the state of a population (`fl.ensemble`, `fl.sweep`), whose step to run. It is
            run alone, which is equal to rounding.

    Raises:
        ValueError: The state is of a population and no member is chosen, or the other way round.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).log().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Softplus()))
    >>> batch = torch.ones(4, 2)
    >>> batch[2] = -1e6 * state.params["0.weight"]
    >>> found = replay(step, state, batch)
    >>> found.first_nonfinite.kind, found.examples[0].index, found.skipped
    ('loss', 2, True)
    """
    check_is_step(step, "replay")
    plain = step.uncompiled if isinstance(step, Stage) else step
    compiled, step = plain is not step, plain
    of_member: list[str] = []
    if member is not None or members_of(state) is not None:
        step, state, batch, of_member = alone(step, state, batch, member)
    watch = Watch()
    with watch.watching(state.skeleton):
        after, metrics = watched(step)(state, batch)
    gradients: dict[str, Tensor] = {}
    measured: dict[str, Any] = {}
    for grads in watch.grads:
        gradients.update(grads.mean.items())
        measured.update(grads.metrics)
    found = [*in_state(state), *in_batch(batch), *watch.outputs, *_loss(watch)]
    found += [*_in_gradients(watch, state, gradients), *_in_update(state, after)]
    wrong = any(bad.kind in ("loss", "gradient", "update") for bad in found)
    blamed = [bad for bad in found if not bad.masks] or found
    who, notes = _examples(watch) if wrong else ([], [])
    empty = bool(watch.grads) and not any(float(grads.weight) for grads in watch.grads)
    notes += ["The batch has weight zero, so the step is skipped."] if empty else []
    notes += [_COMPILED] if compiled else []
    notes += of_member
    notes += [] if watch.grads else [_UNSEEN]
    if watch.scale is not None and wrong:
        notes.append(_SCALED.format(scale=watch.scale))
    return Replay(
        before=state,
        after=after,
        batch=batch,
        metrics=metrics,
        measured=measured,
        gradients=gradients,
        norms=_norms(state, after, gradients),
        gradient_norm=_norm(list(gradients.values())) if gradients else None,
        skipped=bool((after.step == state.step).all()),
        nonfinite=tuple(found),
        first_nonfinite=blamed[0] if wrong else None,
        examples=tuple(who),
        notes=tuple(notes),
    )


_COMPILED = "The step is compiled, and was run uncompiled here: equal to rounding."
_UNSEEN = (
    "The gradients were not seen: the step has no gradient stage, or transforms it (torch.func)."
)
_SCALED = (
    "The loss is multiplied by {scale:g} (fl.amp): a gradient that only overflows float16 is an "
    "ordinary skip, after which the scale is smaller."
)


def _loss(watch: Watch) -> Iterator[Nonfinite]:
    for grads in watch.grads:
        loss = numbers({"loss": grads.metrics["loss"]}) if "loss" in grads.metrics else {}
        value = torch.tensor(loss.get("loss", 0.0), dtype=torch.float64)
        if float(grads.weight) and (found := Nonfinite.of("loss", "loss", value)):
            yield found


def _in_gradients(
    watch: Watch, state: State, gradients: Mapping[str, Tensor]
) -> Iterator[Nonfinite]:
    """Non-finite gradients, in the order of the backward pass if it was recorded."""
    seen: set[str] = set()
    before: Nonfinite | None = None  # a module output that the bad gradient came through first
    for event in watch.arrived:
        if event.kind == "forward":
            before = before or (event if not seen else None)
        elif event.path not in seen:
            note = event.note if seen else _passed(before, watch, event.note)
            seen.add(event.path)
            yield dataclasses.replace(event, note=note)
    for name in reversed(state.skeleton.trainable):
        path = f"params/{name}"
        if path in seen or name not in gradients:
            continue
        if found := Nonfinite.of("gradient", path, gradients[name]):
            yield found


def _passed(before: Nonfinite | None, watch: Watch, note: str) -> str:
    if before is not None:
        note += f"; it is not finite already where it reaches the output of {before.path}"
    if watch.finite_at is not None:
        note += f"; it is finite at the output of {watch.finite_at}"
    return note.removeprefix("; ")


def _in_update(before: State, after: State) -> Iterator[Nonfinite]:
    was = {bad.path: bad for bad in in_state(before, "update")}
    for bad in in_state(after, "update"):
        if bad.path not in was:
            yield bad


def _examples(watch: Watch) -> tuple[list[Suspect], list[str]]:
    if watch.culprit is None:
        return [], []
    found, note = suspects(watch.culprit)
    return found, [note] if note else []


def _norms(before: State, after: State, gradients: Mapping[str, Tensor]) -> dict[str, Norms]:
    norms: dict[str, Norms] = {}
    for name, old in before.params.items():
        new = after.params[name]
        changed = new is not old and not tree_equal(new, old)
        update = _norm([new.double() - old.double()] if not old.is_complex() else [new - old])
        gradient = _norm([gradients[name]]) if name in gradients else None
        norms[name] = Norms(_norm([old]), gradient, update if changed else 0.0)
    return norms


def _norm(tensors: list[Tensor]) -> float:
    norms = [
        torch.linalg.vector_norm(
            t.detach(), dtype=torch.complex128 if t.is_complex() else torch.float64
        )
        for t in tensors
    ]
    return float(torch.stack(norms).norm()) if norms else 0.0
