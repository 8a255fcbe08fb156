"""The one shape: ``(state, x) -> (state, y)``."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from fnloop.trees.nodes import is_tree, tree
from fnloop.trees.show import is_default, short
from fnloop.values.grads import Grads
from fnloop.values.memory import fill
from fnloop.values.start import start
from fnloop.values.state import State

Kind: TypeAlias = Literal["grad", "step", "callback"]

_KINDS = {"grad": "a gradient stage", "step": "a training step", "callback": "a callback"}


class Stage:
    """What all stages have in common.

    A stage is a tree (`fl.tree`) whose fields are its hyperparameters. One that wraps another
    holds it in its field ``inner``; one that remembers defines `init_state`, and finds its memory
    again in ``state[self.name]``.

    Attributes:
        kind: What it is.
        wraps: The kind of stage that ``inner`` must be, if it has one.
        label: The function that makes it, for messages and ``repr``; default the class's name.
    """

    kind: ClassVar[Kind]
    wraps: ClassVar[Kind | None] = None
    label: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__module__ != __name__ and not hasattr(cls, "label"):
            cls.label = cls.__name__

    def __post_init__(self) -> None:
        if self.wraps is not None:
            _check_inner(self, getattr(self, "inner", None))
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
        """The name of the slot that it owns; None if it keeps no memory."""
        return getattr(self, "name", None)

    def stages(self) -> Iterator[Stage]:
        """The stage and all that it is made of, innermost first."""
        inner = getattr(self, "inner", None)
        if isinstance(inner, Stage):
            yield from inner.stages()
        yield self

    def init(self, model: Any, seed: int = 0) -> State:
        """Ask every stage for its memory; fills only what is missing, by leaf path.

        Args:
            model: An ``nn.Module``, a tree with ``__call__``, a function that builds one, or a
                `State` (of an earlier run, or of a pipeline with fewer stages).
            seed: Root of all randomness; not used for a `State`, which has its own.

        Raises:
            ValueError: A leaf is there already with another shape or dtype.
        """
        state = start(model, seed)
        for part in self.stages():
            if part.slot is not None:
                state = fill(state, part.slot, part.init_state(state))
        return state

    def init_state(self, state: State) -> Any:
        """The stage's memory before the first step: new tensors, `fl.Tensors` and dicts of them."""
        raise NotImplementedError(
            f"{type(self).__name__} has a slot, so it must define init_state(state)."
        )

    def taken_back(self, memory: Any) -> Any:
        """The part of its memory that goes back when a step is taken back (`fl.guard`).

        Default all of it; what must survive a skipped step, as a loss scale does, is left out.
        """
        return memory

    reads_any_slot: ClassVar[bool] = False
    """Whether it may read and write slots that it does not own."""

    @property
    def uncompiled(self) -> Stage:
        """The same stage, but run as it is."""
        return self

    def __call__(self, state: State, x: Any) -> tuple[State, Any]:
        raise NotImplementedError

    def describe(self) -> str:
        """The stage itself, without what it wraps: ``accumulate(4)``."""
        fields = [f for f in dataclasses.fields(self) if f.name not in ("inner", "loss")]  # pyright: ignore
        values = [(field, getattr(self, field.name)) for field in fields]
        parts = [
            short(value) if field is fields[0] else f"{field.name}={short(value)}"
            for field, value in values
            if field is fields[0] or not is_default(field, value)
        ]
        return f"{self.label}({', '.join(parts)})"

    def __repr__(self) -> str:
        inner = getattr(self, "inner", None)
        if not isinstance(inner, Stage):
            return self.describe()
        lines = [line for part in self.stages() for line in part.lines()]
        return "pipe(\n" + "".join(f"    {line},\n" for line in lines) + ")"

    def lines(self) -> list[str]:
        """What it contributes to the pipeline's text."""
        return [self.describe()]


class GradStage(Stage):
    """A gradient stage: ``(state, batch) -> (state, Grads)``."""

    kind: ClassVar[Kind] = "grad"
    loss: Any = None
    """The loss function that it takes the gradients of; None if it wraps another stage."""

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        raise NotImplementedError


class StepStage(Stage):
    """A training step: ``(state, batch) -> (state, metrics)``.

    >>> import torch, fnloop as fl
    >>> @fl.tree
    ... class Halve(fl.StepStage):
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


class Callback(Stage):
    """A callback: ``(state, metrics) -> (state, metrics)``, after every training step.

    >>> import torch, fnloop as fl
    >>> @fl.tree
    ... class lowest(fl.Callback):
    ...     label = "lowest"
    ...     monitor: str
    ...     name: str = "lowest"
    ...     def init_state(self, state, metrics):
    ...         return torch.tensor(float("inf"), dtype=torch.float64)
    ...     def __call__(self, state, x):
    ...         value = torch.minimum(state[self.name], torch.tensor(float(x[self.monitor])))
    ...         return state.put(self.name, value), {**x, self.name: fl.Last(value)}
    >>> step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(1, 1))
    >>> watch = lowest("loss")
    >>> for state, metrics in fl.run(step, state, [torch.ones(2, 1)], steps=3, callbacks=[watch]):
    ...     pass
    >>> float(metrics["lowest"]) == float(metrics["loss"])  # it falls at every step here
    True
    """

    kind: ClassVar[Kind] = "callback"

    def init(self, state: State, metrics: Mapping[str, Any]) -> State:  # type: ignore[override]  # pyright: ignore
        """Give the callback its memory; called after the first step.

        Args:
            state: The state after the first step.
            metrics: That step's metrics, with what earlier callbacks will add, as an example.
        """
        if self.slot is None:
            return state
        return fill(state, self.slot, self.init_state(state, metrics))

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> Any:  # type: ignore[override]  # pyright: ignore
        """The callback's memory before its first call: new tensors, and dicts of them."""
        raise NotImplementedError(
            f"{type(self).__name__} has a slot, so it must define init_state(state, metrics)."
        )

    reads: ClassVar[bool] = True
    """Whether it looks at the metrics that it is given; under `fl.every` they are merged for it."""

    def needs(self) -> tuple[str, ...]:
        """Names of metrics without which it can never do anything."""
        return ()

    def adds(self, state: State, metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """An example of the metrics that it adds; None if that cannot be told in advance."""
        return {}

    def stopped(self, state: State) -> str | None:
        """Why it had asked for a stop at `state`, by its memory: asked when a run is resumed."""
        return None

    def __call__(self, state: State, x: Any) -> tuple[State, Mapping[str, Any]]:
        raise NotImplementedError


@tree
class Function:
    """A bare function as a field of a stage; it compares by identity and prints as its name."""

    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __repr__(self) -> str:
        return short(self.call)


def as_function(value: Any, arguments: str) -> Any:
    """`value` if it is a tree already, else wrapped in `Function`.

    A function that is a tree keeps its fields visible: they can be swept and differentiated.
    """
    if is_tree(value):
        return value
    if not callable(value):
        raise TypeError(f"Expected a function {arguments}, got {type(value).__name__}.")
    return Function(value)


def takes_state(function: Any) -> bool:
    """Whether a loss wants ``(model, batch, state)`` rather than ``(model, batch)``."""
    call = function.call if isinstance(function, Function) else function
    if is_tree(call):
        return _takes_three(type(call).__call__, 4)  # with self
    try:
        return _takes_three(call)
    except TypeError:  # no hash
        return _takes_three.__wrapped__(call)


@functools.lru_cache(maxsize=1024)
def _takes_three(call: Callable[..., Any], required_arguments: int = 3) -> bool:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return len(required) >= required_arguments


def _check_inner(stage: Stage, inner: Any) -> None:
    assert stage.wraps is not None
    wanted = _KINDS[stage.wraps]
    if getattr(inner, "outermost", False):
        raise TypeError(
            f"{stage.label} wraps {inner.label}, which makes one graph of all that it wraps "
            f"and goes last: fl.pipe(..., {stage.label}(...), fl.{inner.label})."
        )
    if isinstance(inner, Stage):
        if inner.kind == stage.wraps:
            return
        got = f"{inner.describe()}, {_KINDS[inner.kind]}"
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
            "A loss function becomes a gradient stage by fl.grad: fl.pipe(loss, fl.grad, "
            "fl.update(optimizer)); any other function by fl.stage(f, kind)."
            if callable(inner)
            else "The first thing in a pipe is a loss function."
        )
    raise TypeError(f"{stage.label} wraps {wanted}, but was given {got}. {hint}")
