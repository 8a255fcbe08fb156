"""``check_laws``: every check that applies to a stage, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.optim.algorithms.sgd import sgd
from fnloop.stages.base import Stage
from fnloop.stages.update import update
from fnloop.testing.agreement import check_compiles, check_layouts, check_vmaps
from fnloop.testing.comparison import LawError, name_of
from fnloop.testing.derivatives import check_differentiable
from fnloop.testing.laws import (
    check_accumulates,
    check_init,
    check_repeatable,
    check_resumes,
    check_skips,
    check_stable,
)
from fnloop.testing.purity import check_pure
from fnloop.trees.equal import tree_equal
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.values.key import fold
from fnloop.values.state import State

Check = Callable[[], None] | str
"""A check; or why it is left out."""


class Checked(NamedTuple):
    """What `check_laws` returns; as text, a table.

    Attributes:
        held: The checks that held.
        left_out: The others, and why.
    """

    held: tuple[str, ...]
    left_out: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name:<22}holds" for name in self.held]
        return "\n".join([*lines, *(f"{name:<22}{why}" for name, why in self.left_out.items())])


def check_laws(
    stage: Stage,
    state: State,
    x: Any,
    bad: Any = None,
    leave_out: Mapping[str, str] | None = None,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> Checked:
    """Every law that a stage can be held to, in one call.

    Of a training step all laws; of a gradient stage too, with a step of plain SGD behind it where a
    law is about steps; of a callback those about its memory. Data of a run are `x` over and over,
    members of a population have other keys and slightly other parameters, and derivatives are taken
    in float64. Law 4 is checked for the losses inside.

    Args:
        stage: A training step, a gradient stage or a callback; not compiled.
        state: Its state.
        x: A batch of at least three examples; for a callback, the metrics of a step.
        bad: A batch whose gradient is not finite; by default `x` with nan for all its numbers.
        leave_out: Checks that do not apply, by name, each with the reason, which is printed.
        rtol: Relative tolerance of the checks to rounding: compiled, vmapped, in other layouts.
        atol: Absolute tolerance of these.

    Returns:
        Which checks held, which were left out, and why.

    Raises:
        LawError: With what each check that failed has to say.
        TypeError: `stage` is no stage.
        ValueError: `leave_out` names no check.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)))
    >>> print(check_laws(step, step.init(torch.nn.Linear(2, 1)), torch.rand(4, 2)))
    check_pure            holds
    check_repeatable      holds
    check_init            holds
    check_accumulates     holds
    check_vmaps           holds
    check_layouts         holds
    check_compiles        holds
    check_resumes         holds
    check_skips           holds
    check_stable          holds
    check_differentiable  holds
    check_effects         about effects: check_effects(step, state, data, callbacks)
    ranks                 law 5 needs several processes
    """
    if not isinstance(stage, Stage):
        raise TypeError(
            f"check_laws takes a stage, and was given {name_of(stage)}. fl.stage(f, kind) makes "
            'one of a function; its kind is "grad", "step" or "callback".'
        )
    if stage.kind == "callback":
        checks = _of_callback(stage, state, x)
    else:
        checks = _of_step(stage, state, x, bad, {"rtol": rtol, "atol": atol})
    reasons = dict(leave_out or {})
    for name in reasons:
        if name not in checks:
            raise ValueError(
                f"check_laws(leave_out=) names {name!r}, which is no check of "
                f"{name_of(stage)}. There are: {', '.join(checks)}."
            )
    held: list[str] = []
    broken: list[tuple[str, Exception]] = []
    for name, check in {**checks, **reasons}.items():  # in the order of `checks`
        if isinstance(check, str):
            reasons[name] = check
            continue
        try:
            check()
        except Exception as error:
            broken.append((name, error))
        else:
            held.append(name)
    if broken:
        raise LawError(_told(stage, broken)) from broken[0][1]
    return Checked(tuple(held), reasons)


def _of_step(
    stage: Stage, state: State, x: Any, bad: Any, within: dict[str, float]
) -> dict[str, Check]:
    step: Any = stage
    if stage.kind == "grad":
        step = update(sgd(0.1))(step)
    whole = step.init(state)
    losses = [part for part in stage.stages() if getattr(part, "loss", None) is not None]
    skipped = _bad(losses, state, x) if bad is None else bad
    batches = [x, x] if isinstance(skipped, str) else [x, skipped, x]
    members = [_other(state, i) for i in range(3)]
    return {
        "check_pure": lambda: check_pure(stage, state, x),
        "check_repeatable": lambda: check_repeatable(stage, state, x),
        "check_init": lambda: check_init(stage, state),
        "check_accumulates": _accumulates(losses, state, x),
        "check_vmaps": lambda: check_vmaps(stage, members, x, **within),
        "check_layouts": lambda: check_layouts(stage, state, x, **within),
        "check_compiles": lambda: check_compiles(step, whole, batches, **within),
        "check_resumes": lambda: check_resumes(step, whole, [x, x, x], steps=3),
        "check_skips": (
            skipped if isinstance(skipped, str) else lambda: check_skips(step, whole, skipped)
        ),
        "check_stable": lambda: check_stable(stage, state, x),
        "check_differentiable": _differentiable(stage, losses, state, x),
        "check_effects": "about effects: check_effects(step, state, data, callbacks)",
        "ranks": "law 5 needs several processes",
    }


def _of_callback(stage: Stage, state: State, metrics: Any) -> dict[str, Check]:
    between = "callbacks run between steps, which alone are compiled and differentiated"
    of_run = "about a run: {}(step, state, data, callbacks=lambda: [callback])"
    return {
        "check_pure": lambda: check_pure(stage, state, metrics),
        "check_repeatable": lambda: check_repeatable(stage, state, metrics),
        "check_init": lambda: check_init(stage, state, metrics=metrics),
        "check_stable": lambda: check_stable(stage, state, metrics),
        "check_resumes": of_run.format("check_resumes"),
        "check_effects": of_run.format("check_effects"),
        **{f"check_{each}": between for each in ("compiles", "vmaps", "layouts", "differentiable")},
    }


def _accumulates(losses: list[Any], state: State, x: Any) -> Check:
    """Law 4 for some gradient stages of losses, if these have the same gradient each time."""
    sizes = [leaf.shape[0] for leaf in tree_leaves(x) if isinstance(leaf, Tensor) and leaf.ndim]
    ks = [k for k in (2, 3) if k <= min(sizes, default=0)]
    if not losses or not ks:
        return (
            "no loss of fl.grad inside" if ks else "the tensors of the batch have no two examples"
        )
    if any(p.dtype.itemsize < 4 for p in state.params.values()):
        return "half precision: check it in float32"
    for part in losses:
        after, grads = part(state, x)
        if not tree_equal(grads, part(state.replace(calls=state.calls + 1), x)[1]):
            return "the loss draws random numbers, and each part of a batch its own"
        if not tree_equal(after.buffers, state.buffers):
            return "batch statistics: each part of a batch has its own"

    def check() -> None:
        for part in losses:
            check_accumulates(part, state, x, ks)

    return check


def _differentiable(stage: Stage, losses: list[Any], state: State, x: Any) -> Check:
    if any(not tree_equal(part(state, x)[0].buffers, state.buffers) for part in losses):
        return "the model writes to buffers, which no derivative goes through"
    return lambda: check_differentiable(stage, _double(state), _double(x))


def _bad(losses: list[Any], state: State, x: Any) -> Any:
    """`x` with nan for its numbers; or, where that is not a bad batch, why there is none."""
    numbers = [leaf for leaf in tree_leaves(x) if _is_float(leaf)]
    if not numbers:
        return "no floating-point numbers in the batch to be nan: give bad="
    bad = tree_map(lambda leaf: torch.full_like(leaf, torch.nan) if _is_float(leaf) else leaf, x)
    if losses and all(bool(part(state, bad)[1].mean.all_finite()) for part in losses):
        return "the gradient is finite where the batch is nan: give bad="
    return bad


def _other(state: State, i: int) -> State:
    """A state of the same structure, with another key and slightly other parameters."""
    key = torch.full_like(state.key, fold(int(state.key), i))
    return state.replace(key=key, params=state.params.scale(1 + 0.05 * i))


def _double(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.double() if _is_float(leaf) else leaf, tree)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _told(stage: Any, broken: list[tuple[str, Exception]]) -> str:
    """What the checks that failed say."""
    said: list[str] = []
    for name, error in broken:
        kind = "" if isinstance(error, LawError) else f"{type(error).__name__}: "
        said.append(f"{name}: {kind}{error}")
    which = "one law" if len(broken) == 1 else f"{len(broken)} laws"
    first = broken[-1][0]
    if first == "check_differentiable":
        said.append("Derivatives need a smooth model: tanh in place of ReLU, no max, no threshold.")
    hint = (
        "Where a law is not about this stage, say so, with the reason: "
        f'check_laws(..., leave_out={{"{first}": "why"}}).'
    )
    return "\n\n".join([f"{name_of(stage)} breaks {which}.", *said, hint])
