"""``sequence``: training steps that take turns on one batch."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fnloop.stages.base import KINDS, Kind, Stage, StepStage, unfinished
from fnloop.trees.nodes import is_tree, rebuilt, tree
from fnloop.trees.show import short
from fnloop.values.choice import Flag, either, invert, select, stepped
from fnloop.values.counts import as_count
from fnloop.values.looking import counted, look
from fnloop.values.metrics import Sum, as_tensor
from fnloop.values.questions import EveryNth, answer
from fnloop.values.state import State


@tree
class Clock(Stage):
    """Owns the count of the committed steps of one part: ``state["generator/step"]``."""

    kind: ClassVar[Kind] = "step"
    label: ClassVar[str] = "sequence"
    name: str

    def init_state(self, state: State) -> Tensor:
        return torch.zeros_like(state.step)


class Turn(NamedTuple):
    """One part of a sequence.

    Attributes:
        folder: What its names begin with: ``"generator/"``.
        step: The step; its slots carry the folder in their names.
        clock: Owns its count of steps.
        every: It is called at each call of the sequence that is a multiple of this.
    """

    folder: str
    step: StepStage
    clock: Clock
    every: int


@tree
class Sequence(StepStage):
    """The stage that `sequence` makes.

    Attributes:
        parts: The steps, in order; as they were given.
        names: Their names.
        every: Names of parts, each with a number n: it is called every n-th time.
        folder: What all names begin with, in a sequence inside of another.
    """

    label: ClassVar[str] = "sequence"
    parts: tuple[Any, ...]
    names: tuple[str, ...]
    every: tuple[tuple[str, int], ...] = ()
    folder: str = ""

    def __post_init__(self) -> None:
        for name, part in zip(self.names, self.parts, strict=True):
            _check_part(name, part)
        counts = [
            (name, as_count(n, f"sequence(every={{{name!r}: ...}})", 1)) for name, n in self.every
        ]
        object.__setattr__(self, "every", tuple(counts))
        if unknown := [name for name, _ in counts if name not in self.names]:
            raise ValueError(
                f"sequence(every=...) has {unknown[0]!r}, which is none of its parts; there are: "
                f"{', '.join(self.names)}."
            )
        _check_sharded(self)
        super().__post_init__()

    @functools.cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The parts as they are called."""
        every = dict(self.every)
        found: list[Turn] = []
        for name, part in zip(self.names, self.parts, strict=True):
            folder, n = f"{self.folder}{name}/", every.get(name, 1)
            found.append(Turn(folder, _within(part, folder, n), Clock(f"{folder}step"), n))
        return tuple(found)

    def others(self, state: State, x: Any) -> Mapping[str, Any]:
        sequences = [stage for stage in self.stages() if isinstance(stage, Sequence)]
        if all([n == 1 for each in sequences for _, n in each.every]):
            return {}
        return self(state.within(all_due=True), x)[1]

    def stages(self) -> Iterator[Stage]:
        for turn in self.turns:
            yield from turn.step.stages()
            yield turn.clock
        yield self

    def trained(self, state: State) -> tuple[str, ...]:
        found = {name for turn in self.turns for name in turn.step.trained(state)}
        return tuple([name for name in state.skeleton.trainable if name in found])

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        after, metrics, moved = state, dict[str, Any](), False
        for turn in self.turns:
            if not (state.context.all_due or _is_due(state, turn)):
                continue
            given = after.replace(
                step=after[turn.clock.name],
                calls=state.calls,  # one call of the sequence is one call for each part
                context=state.context.replace(part=turn.folder),
            )
            made, reported = turn.step(given, x)
            moved = either(moved, stepped(given, made))
            metrics.update(_in_folder(reported, turn.folder))
            after = made.put(turn.clock.name, made.step)
        new = after.replace(
            step=_turned(state.step, moved),
            calls=counted(state.calls, look(state.calls)),
            context=state.context,
        )
        metrics["skipped"] = Sum(as_tensor(invert(moved), state.step.device))
        return new, metrics

    def describe(self) -> str:
        every = f", every={dict(self.every)}" if self.every else ""
        return f"sequence({', '.join(self.names)}{every})".replace("'", '"')

    def __repr__(self) -> str:
        items = [f"{name}={part!r},\n" for name, part in zip(self.names, self.parts, strict=True)]
        if self.every:
            items.append(f"every={dict(self.every)},\n".replace("'", '"'))
        return "sequence(\n" + textwrap.indent("".join(items), "    ") + ")"

    def lines(self) -> list[str]:
        return [repr(self)]


def sequence(*unnamed: Any, every: Mapping[str, int] | None = None, **parts: StepStage) -> Sequence:
    """Training steps that take turns on one batch: a GAN's two players, an actor and a critic.

    Each part is a pipeline of its own, with its own loss, optimizer, loss scale, accumulation,
    averages and guards. It sees the parameters as the parts before it have left them, and as
    ``state.step`` the count of its own steps: schedules, averages and skips are its own. With
    ``fl.grad(only=...)`` each part trains some of the parameters.

    All that is a part's carries its name:

    - its slots: ``state["generator/update"]``, ``state["generator/ema"]``, and its count of steps,
      ``state["generator/step"]``;
    - its metrics: ``"generator/loss"``, ``"generator/adamw.lr"``, ``"generator/skipped"``;
    - its hyperparameters in `fl.scale`: ``"generator/adamw.lr"``;
    - its random numbers: two parts draw different ones.

    ``state.step`` counts the turns in which a part took its step; ``skipped`` is one for others. A
    loss of the form ``(model, batch, state)`` sees the memory of all parts.

    Args:
        *unnamed: None; a step without a name is an error.
        every: Parts that are called at every n-th call of the sequence only, by name: with
            ``{"generator": 5}`` at the fifth, the tenth, and so on. At the others such a part
            takes no time and reports nothing. Compiled, each combination of parts has its graph.
        **parts: The steps, in order.

    Raises:
        TypeError: A part has no name, or is no training step; or there is none.
        ValueError: `every` names no part or a number below 1; or the parts are sharded in
            different ways.

    >>> import fnloop as fl
    >>> class Pair(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.G, self.D = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    >>> softplus = torch.nn.functional.softplus
    >>> def fake(model, batch):
    ...     return model.D(model.G(torch.randn(len(batch), 2)))
    >>> def d_loss(model, batch):
    ...     return (softplus(-model.D(batch)) + softplus(fake(model, batch))).mean()
    >>> def g_loss(model, batch):
    ...     return softplus(-fake(model, batch)).mean()
    >>> step = sequence(
    ...     discriminator=fl.pipe(d_loss, fl.grad(only="D"), fl.update(fl.optim.adam(2e-4))),
    ...     generator=fl.pipe(g_loss, fl.grad(only="G"), fl.update(fl.optim.adam(1e-4))),
    ...     every={"generator": 2},
    ... )
    >>> state = step.init(Pair)
    >>> for _ in range(4):
    ...     state, metrics = step(state, torch.ones(8, 3))
    >>> int(state.step), int(state["discriminator/step"]), int(state["generator/step"])
    (4, 4, 2)
    >>> "generator/loss" in metrics, sorted(state["generator/update"]["adam"]["mu"])
    (True, ['G.bias', 'G.weight'])
    """
    if unnamed:
        raise TypeError(
            f"sequence takes its parts by name, and {_told(unnamed[0])} has none: "
            "fl.sequence(discriminator=step, generator=other)."
        )
    if not parts:
        raise TypeError("sequence has no parts: fl.sequence(discriminator=step, generator=other).")
    if every is not None and not isinstance(every, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f'sequence(every=...) takes numbers by the names of parts, {{"{[*parts][-1]}": 5}}; '
            f"got {short(every)}."
        )
    return Sequence(tuple(parts.values()), tuple(parts), tuple((every or {}).items()))


def _told(value: Any) -> str:
    return value.describe() if isinstance(value, Stage) else short(value)


def _check_part(name: str, part: Any) -> None:
    if "/" in name:
        raise ValueError(
            f"The part {name!r} of fl.sequence has a slash in its name, which separates the names "
            "of parts from others."
        )
    if getattr(part, "outermost", False):
        raise TypeError(
            f"The part {name!r} of fl.sequence is compiled, which makes one graph of the whole "
            f"step and goes last: fl.compile(fl.sequence({name}=..., ...))."
        )
    if isinstance(part, StepStage):
        return
    if isinstance(part, Stage) and part.kind == "step":
        return
    hint = "fl.pipe(loss, fl.grad, fl.update(optimizer))"
    if isinstance(part, Stage):
        got = f"{part.describe()}, {KINDS[part.kind]}"
        if part.kind == "grad":
            hint = "add fl.update(optimizer) to its pipe"
    elif unfinished(part):
        got = f"{part.func.label}(...), which waits for the stage that it wraps"
    else:
        got = short(part)
        if callable(part):
            hint = 'fl.stage(f, "step") makes one of a function (state, batch) -> (state, metrics)'
    raise TypeError(
        f"The part {name!r} of fl.sequence must be a training step, and is {got}: {hint}."
    )


def _check_sharded(sequence: Sequence) -> None:
    """Refuse parts that are divided among ranks in different ways."""
    plans = [
        {s.describe() for s in part.stages() if getattr(s, "mesh", None) is not None}
        for part in sequence.parts
    ]
    for name, plan in zip(sequence.names, plans, strict=True):
        if plan != plans[0]:
            first, other = (", ".join(sorted(p)) or "not sharded" for p in (plans[0], plan))
            raise ValueError(
                f"The part {sequence.names[0]!r} of fl.sequence is {first}, and {name!r} is "
                f"{other}. They share one state, which is divided in one way: "
                "fl.shard(fl.sequence(...), mesh, plan)."
            )


def _within(stage: Any, folder: str, every: int) -> Any:
    """The stage, and the stages in it, with their memory in a folder of a part."""
    if not is_tree(stage):
        return stage
    own = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    for name, value in own.items():
        if isinstance(value, Stage):
            own[name] = _within(value, folder, every)
    if isinstance(stage, Sequence):
        own["folder"] = folder
        own["every"] = tuple([(n, dict(stage.every).get(n, 1) * every) for n in stage.names])
    elif stage.slot is not None and "name" in own:
        own["name"] = folder + own["name"]
    return rebuilt(stage, **own)


def _is_due(state: State, turn: Turn) -> bool:
    """Whether a part is called at the call that is given `state`."""
    what = f"The part {turn.folder.rstrip('/')!r} is called at every {turn.every}. call"
    return turn.every == 1 or bool(answer(state, EveryNth(turn.every), what))


def _turned(step: Tensor, moved: Flag) -> Tensor:
    return step if moved is False else select(moved, counted(step, look(step)), step)


def _in_folder(metrics: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Metrics with the name of their part, which those named after a slot have already."""
    return {n if n.startswith(folder) else folder + n: m for n, m in metrics.items()}
