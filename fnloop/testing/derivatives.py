"""Derivatives through a step, compared with finite differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import optree
import torch
from torch import Tensor

from fnloop.testing.comparison import LawError, Step, name_of
from fnloop.trees.nodes import tree_leaves
from fnloop.trees.paths import join
from fnloop.values.state import State


def check_differentiable(
    step: Step, state: State, x: Any, steps: int = 2, rtol: float = 1e-5
) -> None:
    """Law 12: derivatives through a step agree with finite differences, or the step refuses.

    Differentiates all floating results of a few steps with respect to the parameters and to the
    tensors among the stage's hyperparameters, along one direction: by ``torch.autograd.grad``, by
    ``torch.func.grad``, and by central differences. Use a smooth model (tanh, not ReLU) and smooth
    metrics: differences across a kink or a jump are meaningless.

    Args:
        step: A stage; hyperparameters that are floating tensors are differentiated too.
        state: A state in float64, as rounding would dominate the differences.
        x: The batch.
        steps: Number of steps in sequence.
        rtol: Relative tolerance.

    Raises:
        LawError: Two of the derivatives disagree.

    >>> import fnloop as fl
    >>> rate = torch.tensor(0.1, dtype=torch.float64)
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(rate)))
    >>> state = step.init(torch.nn.Linear(2, 1).double())
    >>> check_differentiable(step, state, torch.ones(4, 2).double())
    """
    tree: Any = (step, state.params)
    leaves, structure = optree.tree_flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    first = [leaves[i].detach().double() for i in places]

    def run_from(values: Sequence[Tensor]) -> Tensor:
        given = list(leaves)
        for i, value in zip(places, values, strict=True):
            given[i] = value
        stage, params = cast("tuple[Any, Any]", structure.unflatten(given))
        after, made = state.replace(params=params), []
        for _ in range(steps):
            after, results = stage(after, x)
            made.append(results)
        return _projected((after.replace(step=state.step), made))

    way = [torch.cos(torch.arange(v.numel(), dtype=torch.float64) + 1).view(v.shape) for v in first]

    def by_differences(moved: Sequence[Tensor]) -> float:
        def at(t: float) -> float:
            return float(run_from([v + t * w for v, w in zip(first, moved, strict=True)]))

        h = 1e-5
        return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)

    def worst(found: Sequence[Tensor | None]) -> str:
        """The leaf whose derivative disagrees most, moved alone."""
        rows: list[tuple[float, str]] = []
        for i, g in enumerate(found):
            alone = [w if j == i else torch.zeros_like(w) for j, w in enumerate(way)]
            expected = by_differences(alone)
            got = 0.0 if g is None else float((g * way[i]).sum())
            off = abs(got - expected)
            path = _leaf_name(optree.tree_paths(tree)[places[i]])
            text = f"{path}: {got:.8g} where finite differences give {expected:.8g}"
            rows.append((math.inf if math.isnan(off) else off, text))
        return max(rows)[1]

    try:
        inputs = [v.clone().requires_grad_() for v in first]
        by_autograd = torch.autograd.grad(run_from(inputs), inputs, allow_unused=True)
        by_func = torch.func.grad(lambda values: run_from(values))(first)
    except RuntimeError as error:
        if "cannot be differentiated" in str(error):
            return
        if "does not require grad" in str(error):
            raise LawError(
                f"law 12, derivatives: {name_of(step)} silently cuts derivatives off; "
                "the usual causes are detach() and torch.no_grad() in a stage"
            ) from error
        raise
    expected = by_differences(way)
    engines: list[tuple[str, Any]] = [
        ("torch.autograd.grad", by_autograd),
        ("torch.func.grad", by_func),
    ]
    for name, found in engines:
        got = sum(float((g * w).sum()) for g, w in zip(found, way, strict=True) if g is not None)
        if not math.isclose(got, expected, rel_tol=rtol, abs_tol=1e-7):
            raise LawError(
                f"law 12, derivatives: through {name_of(step)}, {name} gives {got:.8g} where "
                f"finite differences give {expected:.8g}. Moved alone, the leaf that is off most "
                f"is {worst(found)}"
            )


def _leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf of ``(step, params)``: the path of a hyperparameter, or of a parameter."""
    return f"the {'parameter' if path[0] else 'hyperparameter'} {join(path[1:])}"


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _projected(tree: Any) -> Tensor:
    """One number that depends on every floating leaf of a tree."""
    total = torch.zeros((), dtype=torch.float64)
    for i, leaf in enumerate(tree_leaves(tree)):
        if _is_float(leaf):
            weights = torch.sin(torch.arange(leaf.numel(), dtype=torch.float64) + i)
            total = total + (leaf.double().reshape(-1) * weights).sum()
    return total
