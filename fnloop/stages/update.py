"""``update``: apply an optimizer to gradients, which makes a training step."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Set
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop._torch.constants import are_untouched, constant
from fnloop.names.keywords import explained
from fnloop.optim.base import Optimizer, narrowed, widened
from fnloop.optim.checked import wrong_part
from fnloop.optim.drawing import draws_inside
from fnloop.optim.pieces import applied
from fnloop.schedules.base import Schedule, is_schedule
from fnloop.stages.base import GradStage, Kind, StepStage
from fnloop.stages.donating import Donating
from fnloop.stages.loss_at import loss_of
from fnloop.trees.equal import table
from fnloop.trees.nodes import is_tree, not_decorated, tree, tree_leaves
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.choice import Flag, all_of, invert, select
from fnloop.values.grads import Grads
from fnloop.values.holders import free_memory, free_params
from fnloop.values.looking import counted, look_all
from fnloop.values.metrics import Last, Mean, Metric, Sum, as_tensor, check_metrics, exact
from fnloop.values.parameter_attributes import knowing
from fnloop.values.randomness import stream
from fnloop.values.state import State
from fnloop.values.tensors import Tensors
from fnloop.values.writes import Write

_NOTHING = contextlib.nullcontext()


@tree
class Update(StepStage):
    """The stage that `update` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "update"
    inner: Any
    optimizer: Any
    name: str = "update"

    def taken_back(self, memory: Any) -> Any:
        # The multipliers of `fl.scale` stay.
        return {name: own for name, own in memory.items() if name != "scale"}

    def init_state(self, state: State) -> dict[str, Any]:
        names = self.optimizer.hyperparameters()
        one = torch.ones((), dtype=torch.float64, device=state.step.device)
        with knowing(state.skeleton.attributes):
            memory = self.optimizer.init(state.params.select(self.inner.trained(state)))
        return {
            "scale": {name: one.clone() for name in names},
            **memory,
        }

    def trained(self, state: State) -> tuple[str, ...]:
        """The parameters that it moves: not those that the optimizer leaves alone."""
        return self._moved(self.inner.trained(state), state)

    def trained_now(self, state: State) -> tuple[str, ...]:
        return self._moved(self.inner.trained_now(state), state)

    def _moved(self, names: tuple[str, ...], state: State) -> tuple[str, ...]:
        skeleton, left = self.__dict__.get("_left_alone", (None, ()))
        if skeleton is not state.skeleton:  # to label names takes time
            everything = state.params.select(self.inner.trained(state))
            with knowing(state.skeleton.attributes):
                left = frozenset(self.optimizer.discards(everything))
            self.__dict__["_left_alone"] = (state.skeleton, left)
        return tuple([name for name in names if name not in left]) if left else names

    def __call__(self, state: State, x: Any) -> tuple[State, dict[str, Any]]:
        after, metrics, _ = self._step(state, x, False)
        return after, metrics

    def donating(self) -> StepStage:
        return Donating(self) if self.optimizer.has_fused else self

    def writing(self, state: State, x: Any) -> tuple[State, dict[str, Any], list[Write]]:
        return self._step(state, x, self.optimizer.has_fused)

    def _step(
        self, state: State, x: Any, donate: bool
    ) -> tuple[State, dict[str, Any], list[Write]]:
        # What is no state is refused by the first stage.
        if isinstance(state, State) and state.skeleton.attributes:
            with knowing(state.skeleton.attributes):
                return self._made(state, x, donate)
        return self._made(state, x, donate)

    def _made(
        self, state: State, x: Any, donate: bool
    ) -> tuple[State, dict[str, Any], list[Write]]:
        after, grads = self.inner(state, x)
        names = self.inner.trained(state)
        _check(grads, names)
        free: Set[int] = frozenset()
        if donate:
            free = free_params(state, after) | free_memory(state, after, self.name)
        own = state[self.name]
        step, calls, weight, finite, *multipliers = look_all(
            (state.step, state.calls, grads.weight, grads.finite, *own["scale"].values())
        )
        if isinstance(step, Tensor):  # powers of numbers would be float32 by an integer
            step = step.double()
        some = bool(grads.mean.names) and grads.mean.is_finite()
        finite = all_of(finite, weight > 0, weight < math.inf, some)
        factors = _other_than_one(own["scale"], multipliers)
        optimizer, values = self.optimizer, self._constants
        if factors or values is None:
            optimizer = optimizer.resolve(step, factors)
            values = optimizer.hyperparameters()
        if finite is not True or (factors and not _are_positive(factors)):
            free = frozenset()
        if optimizer.evaluates:
            writes = list[Write]()
            with self._drawing(state):
                params, memory = self._search(optimizer, state, x, grads, step, finite, factors)
        else:
            params, memory, writes = self._apply(
                optimizer, state, names, grads.mean, own, step, finite, factors, free
            )
        new = after.replace(
            step=select(finite, counted(state.step, step), state.step),
            calls=counted(state.calls, calls),
            params=state.params.updated(params),
            buffers=select(finite, after.buffers, state.buffers),
            slots={**after.slots, self.name: memory},
        )
        measured = optimizer.measured(memory)
        added = self._added(finite, values, state.step.device)
        return new, _report(grads.metrics, finite, measured, added), writes

    @functools.cached_property
    def _constants(self) -> dict[str, Any] | None:
        """The reported hyperparameters, if all are numbers, which need not be resolved."""
        values = self.optimizer.hyperparameters()
        return values if set(map(type, values.values())) <= {float} else None

    def _added(
        self, finite: Flag, values: dict[str, Any], device: torch.device
    ) -> dict[str, Metric]:
        """Whether the step is skipped, and the hyperparameters: the same objects, where equal."""
        usual = finite is True and values is self._constants
        if usual and (known := self.__dict__.get("_added_before")):
            before, made, tensors = known
            if before == device and are_untouched(tensors):
                return made
        made: dict[str, Metric] = {"skipped": Sum(as_tensor(invert(finite), device))}
        for name, value in values.items():
            made[name] = Last(as_tensor(value, device))
        if usual:
            self.__dict__["_added_before"] = (device, made, tree_leaves(made))
        return made

    @functools.cached_property
    def _draws(self) -> bool:
        return draws_inside(self.optimizer)

    def _drawing(self, state: State) -> contextlib.AbstractContextManager[Any]:
        """A context manager: what the optimizer draws is a function of the state."""
        return stream(state, self.name) if self._draws else _NOTHING

    def _search(
        self,
        optimizer: Optimizer,
        state: State,
        x: Any,
        grads: Grads,
        step: Any,
        finite: Flag,
        factors: dict[str, Any],
    ) -> tuple[Tensors, dict[str, Any]]:
        """The parameters and the memory after a step that evaluates the loss at others, too.

        Buffers and memory of gradient stages are those of the first evaluation.
        """

        def evaluate(params: Tensors) -> tuple[Tensor, Tensors]:
            there = state.replace(params=state.params.updated(params))
            found = self.inner(there, x)[1]
            return loss_of(found), found.mean

        own, params = state[self.name], state.params.select(self.inner.trained(state))
        _check_shapes(grads.mean, params.select(grads.mean))
        loss = loss_of(grads)
        try:
            new, made = optimizer.search(evaluate, loss, grads.mean, own, params, step, finite)
        except Exception as error:
            _explain(error, self, state, own)
            raise
        return new, _rested(made, own, factors)

    def _apply(
        self,
        optimizer: Optimizer,
        state: State,
        names: tuple[str, ...],
        grads: Tensors,
        own: dict[str, Any],
        step: Any,
        finite: Flag,
        factors: dict[str, Any],
        free: Set[int],
    ) -> tuple[Tensors, dict[str, Any], list[Write]]:
        """The parameters that have a gradient, and the memory, after the step.

        What is `free` may be overwritten: the calls that do so are returned, for the end.
        """
        # Without a gradient, a parameter and its memory stay; an earlier step may have trained more
        # parameters, whose memory is there.
        every = state.skeleton.trainable
        some = not grads.names == names == every
        params = state.params.select(grads)
        _check_shapes(grads, params)
        memory = narrowed(own, set(every).difference(grads.names)) if some else own
        try:
            with self._drawing(state):
                fused = optimizer.fused(grads, memory, params, step, finite) if free else None
            writes: list[Write] = []
            if fused is None:
                with self._drawing(state):
                    new, made = applied(optimizer, grads, memory, params, step, finite)
            elif fused.may_write(free):
                writes = [fused.call]
                new, made = fused.in_place()
            else:
                new, made = fused.on_copies()
            if made.keys() != own.keys():
                raise KeyError(
                    "The optimizer returned memory with other entries than it was given."
                )
            return new, _rested(widened(made, own) if some else made, own, factors), writes
        except Exception as error:
            wrong = wrong_part(optimizer, grads, memory, params, step)
            if wrong is not None:
                raise wrong from error
            _explain(error, self, state, own)
            raise


@explained
def update(optimizer: Optimizer, name: str = "update") -> Callable[[GradStage], Update]:
    """Apply an optimizer to the gradients; the result is a training step.

    A step is skipped if a gradient is not finite, or if the batch's weight is zero, negative or not
    finite: parameters, optimizer state, averages and buffers keep their values bit for bit,
    ``state.step`` does not increase, the metrics have weight zero, and ``skipped`` is one.
    Parameters that the loss does not use have no gradient; they and their optimizer state stay
    unchanged, as in ``torch.optim``.

    Reports the current learning rate and weight decay, and every hyperparameter given by a
    schedule, under names such as ``"adamw.lr"``. `fl.scale` multiplies them.

    Args:
        optimizer: Such as ``fl.optim.adamw(1e-3)`` or
            ``fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.sgd(0.1))``.
        name: Name of the slot.

    Raises:
        TypeError: `optimizer` is not an optimizer, or a chain without one.
        ValueError: The optimizer is named ``"scale"``; or, at the call, gradients have names that
            are no trained parameters, or other shapes than these.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(2, 1))
    >>> new, metrics = step(state, torch.ones(3, 2))
    >>> int(new.step), float(metrics["sgd.lr"]), float(metrics["skipped"])
    (1, 0.1, 0.0)
    >>> new, metrics = step(state, torch.full((3, 2), torch.inf))
    >>> fl.tree_equal(new.params, state.params), float(metrics["skipped"])
    (True, 1.0)
    """
    _check_optimizer(optimizer)
    return functools.partial(Update, optimizer=optimizer, name=name)


def _check_optimizer(optimizer: Optimizer) -> None:
    if not is_tree(optimizer):
        raise not_decorated(type(optimizer), "optimizer")
    if optimizer.makes == "gradients":
        raise TypeError(
            f"{short(optimizer)} transforms gradients, but makes no update from them. "
            f"Put an optimizer after it: fl.optim.chain({short(optimizer)}, "
            "fl.optim.sgd(0.1))."
        )
    for name, value in optimizer.hyperparameters().items():
        if isinstance(value, Schedule) and not is_schedule(value):
            raise not_decorated(type(value), "schedule")
        if not isinstance(value, (Real, torch.Tensor)) and not is_schedule(value):
            raise TypeError(
                f"{name} is {short(value)} ({type(value).__name__}); it takes a number, a "
                "tensor, or a schedule such as fl.schedules.cosine(1e-3, steps=1000)."
            )
        if isinstance(value, Real) and value < 0:
            raise ValueError(f"{name} is {value}; it takes a number of at least 0.")
    if "scale" in optimizer.names():
        raise ValueError(
            'An optimizer cannot be named "scale": fl.update keeps its multipliers under that '
            'name. Give it another: name="...".'
        )


def _check(grads: Any, names: tuple[str, ...]) -> None:
    if not isinstance(grads, Grads):
        raise TypeError(
            f"update got {type(grads).__name__} from the gradient stage, which must return "
            "(state, fl.Grads)."
        )
    if not isinstance(grads.mean, Tensors):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"Grads.mean is {type(grads.mean).__name__} and must be fl.Tensors: grads.replace("
            "mean=...) takes a dict too."
        )
    wrong = () if grads.mean.names == names else grads.mean.keys() - names
    if wrong:
        raise ValueError(
            "The gradient stage returned gradients of names that are no trained parameters: "
            f"{', '.join(sorted(wrong))}."
        )


def _check_shapes(grads: Tensors, params: Tensors) -> None:
    if grads.shaped_like(params):
        return
    pairs = zip(grads.names, grads.shapes(), params.shapes(), strict=True)
    rows = [(name, str(tuple(a)), str(tuple(b))) for name, a, b in pairs if a != b]
    raise ValueError(
        "The gradient stage returned gradients of other shapes than the parameters':\n"
        + table(("name", "gradient", "parameter"), rows[:8])
        + (f"\nand {len(rows) - 8} more." if len(rows) > 8 else "")
        + "\nThe usual cause is a reduction that keeps a dimension of 1, such as "
        "g.mean(0, keepdim=True) for g - g.mean(0, keepdim=True); broadcasting would make it the "
        "gradient of every row."
    )


def _rested(
    memory: dict[str, Any], before: dict[str, Any], factors: dict[str, Any]
) -> dict[str, Any]:
    """Keep an optimizer's old memory while the multiplier of its learning rate is zero."""
    for name, factor in factors.items():
        owner = name.removesuffix(".lr")
        if owner != name:
            moves = select(factor != 0, memory[owner], before[owner])
            memory = {**memory, owner: moves}
    return memory


def _are_positive(factors: dict[str, Any]) -> bool:
    """Whether all are known, and none is zero, at which the memory rests."""
    return all([type(factor) is float and factor for factor in factors.values()])


def _other_than_one(names: Iterable[str], multipliers: list[Any]) -> dict[str, Any]:
    """The multipliers by name, without those that are known to be one."""
    named = zip(names, multipliers, strict=True)
    return {name: m for name, m in named if type(m) is not float or m != 1.0}


def _report(
    metrics: dict[str, Any], finite: Flag, measured: dict[str, Any], added: dict[str, Metric]
) -> dict[str, Any]:
    """The metrics, of weight zero for a skipped step, with those that `update` adds."""
    reported = {**metrics}
    for name, value in measured.items():
        reported[name] = Mean(exact(value), constant(1, torch.int64, value.device))
    if finite is not True:
        check_metrics(reported, "The gradient stage")
        reported = {name: select(finite, m, m.empty()) for name, m in reported.items()}
    reported.update(added)
    if len(reported) < len(metrics) + len(measured) + len(added):
        taken = ", ".join(repr(name) for name in (*added, *measured) if name in metrics)
        raise ValueError(
            f"The loss reports a metric named {taken}, which fl.update reports itself. Give it "
            "another name."
        )
    return reported


def _explain(error: Exception, stage: Update, state: State, own: dict[str, Any]) -> None:
    """Add a table to an error if the optimizer state in the slot does not fit the model."""
    trained = state.params.select(stage.inner.trained(state))
    try:
        wanted = dict(tree_items(stage.optimizer.init(trained)))
    except Exception:  # the optimizer itself fails
        return
    there = dict(tree_items({name: own[name] for name in own if name != "scale"}))
    rows = [
        (f"slots/{stage.name}/{path}", short(there.get(path, "missing")), short(leaf))
        for path, leaf in wanted.items()
        if path not in there or there[path].shape != leaf.shape
    ]
    if rows:
        error.add_note(
            "The optimizer state does not fit the model's parameters:\n"
            + table(("leaf", "the state has", "the optimizer wants"), rows)
            + "\nThe usual cause is a state from another model or optimizer; step.init(state) "
            "adds what is missing."
        )
