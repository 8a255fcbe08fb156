"""The base classes of stages: functions ``(state, x) -> (state, y)``."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, TypeAlias

from fnloop._torch.inference import outside_inference
from fnloop.distributed.mesh import Mesh
from fnloop.schedules.base import at, is_schedule
from fnloop.trees.nodes import fields_of, not_decorated
from fnloop.trees.show import is_default, short
from fnloop.values.grads import Grads
from fnloop.values.holders import own
from fnloop.values.looking import look
from fnloop.values.memory import fill
from fnloop.values.placing import whole_state
from fnloop.values.start import start
from fnloop.values.state import State
from fnloop.values.writes import Write

Kind: TypeAlias = Literal["grad", "step", "callback"]

Folding: TypeAlias = Callable[[Any, State, Any], tuple[State, Grads]]

KINDS = {"grad": "a gradient stage", "step": "a training step", "callback": "a callback"}


class Stage:
    """Base class of all stages.

    A stage is a tree (`fl.tree`) whose fields are its hyperparameters. A stage that wraps another
    has it in its field ``inner``. A stage with memory has a field ``name`` and defines
    `init_state`; its memory is ``state[self.name]``.

    Attributes:
        kind: ``"grad"``, ``"step"`` or ``"callback"``.
        wraps: The required kind of ``inner``; None without ``inner``.
        label: Name of the function that makes it, for messages and ``repr``; by default the class
            name.
    """

    explains_keywords: ClassVar[bool] = True
    kind: ClassVar[Kind]
    wraps: ClassVar[Kind | None] = None
    label: ClassVar[str]

    def __init_subclass__(cls, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not abstract and not hasattr(cls, "label"):
            cls.label = cls.__name__

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Trees are built from their leaves without this.
        if "__tree_children__" not in cls.__dict__:
            _check_decorated(cls, bool(args or kwargs))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.wraps is not None:
            _check_inner(self, getattr(self, "inner", None))
        once = [stage for stage in self.stages() if stage.is_for_once] if self.repeats else []
        if once:
            raise ValueError(
                f"{self.describe()} computes the gradient several times in a step, and "
                f"{once[0].describe()} in it may be called once only: each call gives something "
                f"away that {once[0].label} does not count. Put {once[0].label} behind "
                f"{self.label}."
            )
        owners: dict[str, Stage] = {}
        for owner in self.stages():
            name = owner.slot
            if name is None:
                continue
            if name in owners:
                raise ValueError(
                    f"Two stages keep their memory under the name {name!r}: "
                    f"{owners[name].describe()} and {owner.describe()}. Give one of them another "
                    f'name: {owner.label}(..., name="...").'
                )
            owners[name] = owner

    @property
    def slot(self) -> str | None:
        """Name of the slot that it owns; None if it has no memory."""
        return getattr(self, "name", None)

    def stages(self) -> Iterator[Stage]:
        """The stage and the stages inside it, innermost first."""
        inner = getattr(self, "inner", None)
        if isinstance(inner, Stage):
            yield from inner.stages()
        yield self

    def init(self, model: Any, seed: int = 0) -> State:
        """Make a state with the memory of every stage. Existing leaves of a state are kept.

        Args:
            model: An ``nn.Module``, a tree with ``__call__``, a function that builds one, or a
                `State` (of an earlier run, or of a pipeline with fewer stages).
            seed: Root of all randomness. Ignored for a `State`, which has its own key.

        Raises:
            TypeError: `model` is none of these.
            ValueError: An existing leaf has another shape or dtype.
        """
        with outside_inference():
            state = whole_state(start(model, seed))
            for part in self.stages():
                state = part.prepared(state)
            for part in self.stages():
                if part.slot is not None:
                    state = fill(state, part.slot, part.init_state(state))
            for part in self.stages():
                state = part.placed(state)
        if not isinstance(model, State):  # all is new
            own(state)
        return state

    def init_state(self, state: State) -> Any:
        """The stage's initial memory: new tensors, `fl.Tensors`, or dicts of them."""
        raise NotImplementedError(
            f"{type(self).__name__} has a slot, so it must define init_state(state)."
        )

    def prepared(self, state: State) -> State:
        """The state with its parameters as this stage wants them, before there is any memory."""
        return state

    def evaluating(self, function: Any) -> Any:
        """A function of a model and a batch, as it is called with the state of this stage."""
        return function

    def placed(self, state: State) -> State:
        """The state, placed as this stage wants it: divided among the ranks of a mesh."""
        return state

    def trained(self, state: State) -> tuple[str, ...]:
        """The names of the parameters that the stages inside train, at some time of the run."""
        inner = getattr(self, "inner", None)
        return inner.trained(state) if isinstance(inner, Stage) else state.skeleton.trainable

    def trained_now(self, state: State) -> tuple[str, ...]:
        """Those that they train in the step from `state`: all but what is frozen for now."""
        inner = getattr(self, "inner", None)
        if isinstance(inner, Stage):
            return inner.trained_now(state)
        parts = [stage for stage in self.stages() if stage is not self and stage.kind == "grad"]
        now = {name for part in parts for name in part.trained_now(state)}
        return tuple([name for name in self.trained(state) if name in now or not parts])

    def taken_back(self, memory: Any) -> Any:
        """The part of its memory that `fl.guard` restores when it undoes a step.

        By default all of it. Leave out what must survive an undone step, such as a loss scale.
        """
        return memory

    def at(self, state: State, *fields: str) -> list[Any]:
        """The values of some hyperparameters at ``state.step``; each may be a schedule.

        Args:
            state: The state that the stage was called with: at its step the optimizer's schedules
                are evaluated, too.
            *fields: Names of fields.

        Returns:
            Numbers or 0-d tensors, in the order of `fields`.

        >>> import torch, fnloop as fl
        >>> stage = fl.pipe(lambda m, b: m(b).sum(), fl.grad, fl.update(fl.optim.sgd(0.1)),
        ...                 fl.ema(fl.schedules.linear(0.9, 1.0, steps=10)))
        >>> stage.at(stage.init(torch.nn.Linear(2, 1)), "decay")
        [0.9]
        """
        step = look(state.step)
        return [at(getattr(self, field), step) for field in fields]

    repeats: ClassVar[bool] = False
    """Whether it calls its inner stage several times in a step."""

    is_for_once: ClassVar[bool] = False
    """Whether it may be called only once in a step."""

    reads_any_slot: ClassVar[bool] = False
    """Whether it may read and write slots of other stages."""

    def others(self, state: State, x: Any) -> Mapping[str, Any]:
        """Examples of the metrics that it reports at some calls only."""
        inner = getattr(self, "inner", None)
        return inner.others(state, x) if isinstance(inner, Stage) else {}

    @property
    def uncompiled(self) -> Stage:
        """The same stage without compilation."""
        return self

    def __call__(self, state: State, x: Any) -> tuple[State, Any]:
        raise NotImplementedError

    def describe(self) -> str:
        """Its own part of the ``repr``, without the wrapped stage: ``accumulate(4)``."""
        if not dataclasses.is_dataclass(self):
            return f"{self.label}()"
        fields = [
            f
            for f in dataclasses.fields(self)  # pyright: ignore
            if f.name not in ("inner", "loss") and f.repr
        ]
        values = [(field, getattr(self, field.name)) for field in fields]
        parts = [
            short(value) if field is fields[0] else f"{field.name}={short(value)}"
            for field, value in values
            if field is fields[0] or not is_default(field, value)
        ]
        return f"{self.label}({', '.join(parts)})"

    def __repr__(self) -> str:
        if not isinstance(getattr(self, "inner", None), Stage):
            return self.describe()
        return piped(self.script())

    def lines(self) -> list[str]:
        """Its own lines in the ``repr`` of the pipeline."""
        return [self.describe()]

    def script(self) -> list[str]:
        """The lines of the whole pipeline up to this stage."""
        inner = getattr(self, "inner", None)
        return [*(inner.script() if isinstance(inner, Stage) else ()), *self.lines()]


class GradStage(Stage, abstract=True):
    """A gradient stage: ``(state, batch) -> (state, Grads)``."""

    kind: ClassVar[Kind] = "grad"
    loss: Any = None
    """The loss function that it differentiates; None if it wraps another stage."""

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        raise NotImplementedError

    def folded(self, fold: Folding, state: State, x: Any) -> tuple[State, Grads]:
        """Its gradients of a batch whose parts are computed one by one, or on several ranks.

        Args:
            fold: A function of a stage, a state and a batch: the weighted mean of what the stage
                gives for each part. A stage that adds gradients calls it for each of them, since
                they have weights of their own.
            state: The state.
            x: The whole batch.
        """
        return fold(self, state, x)


class StepStage(Stage, abstract=True):
    """A training step: ``(state, batch) -> (state, metrics)``.

    >>> import torch, fnloop as fl
    >>> @fl.tree
    ... class Halve(fl.base.StepStage):
    ...     wraps = "step"
    ...     label = "halve"
    ...     inner: Any
    ...     def __call__(self, state, x):
    ...         state, metrics = self.inner(state, x)
    ...         return state.replace(params=state.params.scale(0.5)), metrics
    >>> loss = lambda model, batch: model(batch).mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.0)), Halve)
    >>> state = step.init(torch.nn.Linear(1, 1))
    >>> new, _ = step(state, torch.ones(2, 1))
    >>> torch.equal(new.params["weight"], state.params["weight"] / 2)
    True
    """

    kind: ClassVar[Kind] = "step"

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        raise NotImplementedError

    def donating(self) -> StepStage:
        """The same step for a caller that does not use a state again: it may write over it."""
        return self

    @property
    def keeping(self) -> StepStage:
        """The same step for a call after which the state that it was given is used again."""
        return self

    def writing(self, state: State, x: Any) -> tuple[State, dict[str, Any], list[Write]]:
        """The step; and calls, yet to be made, which write new tensors over those of `state`.

        Until they have been made, nothing may read what they write.
        """
        return *self(state, x), []


def piped(lines: list[str]) -> str:
    """A pipeline of these lines as code."""
    return "pipe(\n" + textwrap.indent("".join(f"{line},\n" for line in lines), "    ") + ")"


def unfinished(value: Any) -> bool:
    """Whether `value` is a stage that still waits for the one that it wraps: ``fl.ema(0.9)``."""
    return (
        isinstance(value, functools.partial)
        and isinstance(value.func, type)
        and issubclass(value.func, Stage)
    )


def _check_decorated(cls: type[Stage], has_arguments: bool) -> None:
    """Check that a stage class is a tree if it needs to be.

    It does if it has fields; if it has arguments and no ``__init__``; or, as it is compiled and
    vmapped, if it is part of a step. A callback without fields may set itself up.
    """
    own = "__init__" in vars(cls)
    part = getattr(cls, "kind", "callback") != "callback"
    plain = cls.__init__ is object.__init__
    if fields_of(cls) or (plain and has_arguments) or (own and part):
        raise not_decorated(cls, "stage")


def _check_inner(stage: Stage, inner: Any) -> None:
    assert stage.wraps is not None
    wanted = KINDS[stage.wraps]
    if getattr(inner, "outermost", False):
        raise TypeError(
            f"{stage.label} wraps {inner.label}, which compiles everything before it into one "
            f"graph and goes last: fl.pipe(..., {stage.label}(...), fl.{inner.label})."
        )
    if isinstance(inner, Stage):
        if inner.kind == stage.wraps:
            return
        got = f"{inner.describe()}, {KINDS[inner.kind]}"
        if stage.wraps == "grad" and inner.kind == "step":
            hint = (
                f"Put it before the update: fl.pipe(loss, fl.grad, ..., {stage.label}(...), "
                "fl.update(optimizer))."
            )
            if stage.label == "update":
                hint = "One pipeline has one update; fl.optim.chain combines gradient transforms."
        elif stage.wraps == "step" and inner.kind == "grad":
            hint = (
                f"Put it after the update: fl.pipe(loss, fl.grad, ..., fl.update(optimizer), "
                f"{stage.label}(...))."
            )
        else:
            hint = "Callbacks go into fl.run(..., callbacks=[...])."
    else:
        got = f"the {type(inner).__name__} {short(inner)}"
        hint = (
            "fl.grad makes a gradient stage from a loss function: fl.pipe(loss, fl.grad, "
            "fl.update(optimizer)); fl.stage(f, kind) makes a stage from any other function."
            if callable(inner) and not is_schedule(inner)
            else "The first thing in a pipe is a loss function."
        )
        fields = [f.name for f in dataclasses.fields(stage) if f.name != "inner"]  # pyright: ignore
        if fields and (not callable(inner) or is_schedule(inner)):
            hint += (
                f" To give {type(stage).__name__} its settings and leave the stage to the pipe, "
                f"write functools.partial({type(stage).__name__}, {fields[0]}=...)."
            )
    raise TypeError(f"{stage.label} wraps {wanted}, but was given {got}. {hint}")


def mesh_of(step: Any) -> Mesh | None:
    """The ranks that call a step together: those of a stage inside; None if it runs alone."""
    parts = step.stages() if isinstance(step, Stage) else [step]
    found = [getattr(part, "mesh", None) for part in parts]
    return next((mesh.everyone for mesh in found if mesh is not None), None)
