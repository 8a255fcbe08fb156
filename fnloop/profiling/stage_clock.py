"""``StageClock``: which stage of a step runs, and for how long."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeAlias

import optree
import torch
from torch.profiler import record_function

from fnloop.profiling.names_in_trace import STAGE, trace_name
from fnloop.stages.base import GradStage, Stage, StepStage
from fnloop.stages.donating import Donating
from fnloop.stages.functions import Function, in_place_of
from fnloop.trees.nodes import tree
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.state import State

Role: TypeAlias = Literal["loss", "grad", "step"]


class StageTime(NamedTuple):
    """The time of one stage, without the stages inside it.

    Attributes:
        name: The stage as the pipeline prints it; the loss by its name.
        seconds: In a step.
        calls: In a step.
        role: ``"loss"`` for the forward pass, ``"grad"`` for a gradient stage (that of `fl.grad`
            is the backward pass), ``"step"`` for others.
    """

    name: str
    seconds: float
    calls: int
    role: Role


class _Frame:
    """A stage that is running; `inside` are the seconds of the stages in it."""

    def __init__(self, path: tuple[str, ...], role: Role, owner: Any) -> None:
        self.path, self.inside, self.owner = path, 0.0, owner
        self.role: Role = role


class StageClock:
    """Measures the stages of `clocked` steps within the block of `running`.

    Args:
        device: Where the step runs. Other devices than the CPU are waited for at the ends of
            each stage.
        traced: Whether each stage is a range in a trace of PyTorch's profiler, too.

    Attributes:
        on_grads: Called with what each gradient stage returns; None for nothing.
    """

    def __init__(self, device: torch.device, traced: bool = False) -> None:
        self.on_grads: Callable[[Grads], None] | None = None
        self._device, self._traced = device, traced
        self._frames: list[_Frame] = []
        self._found: dict[tuple[str, ...], list[float]] = {}  # of the step that runs
        self._steps: list[dict[tuple[str, ...], list[float]]] = []
        self._roles: dict[tuple[str, ...], Role] = {}
        self._names: dict[int, str] = {}

    @property
    def role(self) -> Role | None:
        """The role of what runs; None outside of the step."""
        return self._frames[-1].role if self._frames else None

    @property
    def stage(self) -> str:
        """The name of what runs."""
        return self._frames[-1].path[-1] if self._frames else ""

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Within the block, `clocked` stages report here."""
        token = _CLOCK.set(self)
        try:
            yield
        finally:
            _CLOCK.reset(token)

    def end_step(self) -> None:
        """Note that what runs now belongs to the next step."""
        self._steps.append(self._found)
        self._found = {}

    def times(self, last: int = 1) -> tuple[StageTime, ...]:
        """The stages of the shortest of the last steps, the innermost first."""
        step = min(self._steps[-last:], key=lambda step: sum(own for own, _ in step.values()))
        return tuple(
            StageTime(path[-1], seconds, int(calls), self._roles[path])
            for path, (seconds, calls) in step.items()
        )

    @contextlib.contextmanager
    def within(self, name: str, role: Role, owner: Any = None) -> Generator[None]:
        """Measure the block as a stage of this name; once, if its `owner` is the same again."""
        before = self._frames[-1] if self._frames else None
        if before is not None and owner is not None and before.owner is owner:
            yield
            return
        frame = _Frame((*before.path, name) if before else (name,), role, owner)
        with record_function(trace_name(STAGE, name)) if self._traced else _NOTHING:
            wait_for(self._device)
            start = time.perf_counter()
            self._frames.append(frame)
            try:
                yield
            finally:
                wait_for(self._device)
                seconds = time.perf_counter() - start
                self._frames.pop()
                own = self._found.setdefault(frame.path, [0.0, 0])
                own[0] += seconds - frame.inside
                own[1] += 1
                self._roles[frame.path] = role
                if before is not None:
                    before.inside += seconds

    def name_of(self, stage: Stage, state: State) -> str:
        """The name of a stage, with the part of a sequence that it is in."""
        name = self._names.get(id(stage))
        if name is None:  # to print an optimizer takes longer than many a stage
            name = IN_PLACE if isinstance(stage, Donating) else stage.describe()
            self._names[id(stage)] = name
        return state.context.part + name


def wait_for(device: torch.device) -> None:
    """Wait for a device, if it is another than the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


IN_PLACE = "written in place"
"""The name of what update and averages have put off to the end, to write over the old state."""

_NOTHING = contextlib.nullcontext()
_CLOCK: ContextVar[StageClock | None] = ContextVar("stage_clock", default=None)


def clocked(step: Any) -> Any:
    """The same step, to the bit, whose stages report to the active `StageClock`.

    Args:
        step: A step that is not compiled: stages, or a function.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state, clock = step.init(torch.nn.Linear(2, 1)), StageClock(torch.device("cpu"))
    >>> with clock.running():
    ...     after, metrics = clocked(step)(state, torch.ones(3, 2))
    >>> clock.end_step()
    >>> [(time.name, time.role) for time in clock.times()][:2]
    [('<lambda>', 'loss'), ('grad', 'grad')]
    """
    if not isinstance(step, Stage):
        return functools.partial(_function, step)
    return optree.tree_map(_clocked, step, is_leaf=lambda node: isinstance(node, Stage))  # pyright: ignore


def _function(step: Any, state: State, batch: Any) -> Any:
    clock = _CLOCK.get()
    with _NOTHING if clock is None else clock.within(short(step), "step"):
        return step(state, batch)


def _clocked(leaf: Any) -> Any:
    if not isinstance(leaf, Stage):
        return leaf
    new = object.__new__(_kind(type(leaf)))  # a subclass, so that isinstance still holds
    # Nothing that is cached goes along: it may hold stages without a clock.
    for field in dataclasses.fields(leaf):  # pyright: ignore[reportArgumentType]
        value = getattr(leaf, field.name)
        new.__dict__[field.name] = clocked(value) if isinstance(value, Stage) else _inside(value)
    if getattr(leaf, "loss", None) is not None:
        new.__dict__["loss"] = _loss(leaf.loss)  # pyright: ignore
    return new


def _inside(value: Any) -> Any:
    """The parts of a sequence, which are a tuple."""
    if isinstance(value, tuple) and any(isinstance(each, Stage) for each in value):
        return tuple(clocked(each) for each in value)
    return value


@functools.cache
def _kind(kind: type[Stage]) -> type[Stage]:
    role: Role = "grad" if issubclass(kind, GradStage) else "step"

    def call(self: Any, state: State, x: Any) -> Any:
        clock = _CLOCK.get()
        if clock is None:
            return kind.__call__(self, state, x)
        with clock.within(clock.name_of(self, state), role, self):
            result = kind.__call__(self, state, x)
            if clock.on_grads is not None and role == "grad" and isinstance(result[1], Grads):
                clock.on_grads(result[1])
        return result

    def writing(self: StepStage, state: State, x: Any) -> Any:
        clock = _CLOCK.get()
        with _NOTHING if clock is None else clock.within(clock.name_of(self, state), role, self):
            return kind.writing(self, state, x)  # pyright: ignore

    own: dict[str, Any] = {"__call__": call, "__module__": kind.__module__}
    if getattr(kind, "writing", StepStage.writing) is not StepStage.writing:  # which calls `call`
        own["writing"] = writing
    made: Any = type(kind.__name__, (kind,), own)
    return tree(made)


def _loss(loss: Any) -> Function:
    def call(*given: Any) -> Any:
        clock = _CLOCK.get()
        with _NOTHING if clock is None else clock.within(short(loss), "loss"):
            return loss(*given)

    return in_place_of(loss, call)
