"""A step gives the same result compiled, vmapped, and with its tensors packed: as checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fnloop.testing.comparison import LawError, Step, apart, copy_of, name_of
from fnloop.transforms.compile import compile as compiled
from fnloop.transforms.plan import packed
from fnloop.trees.equal import alike, table, tree_diff, tree_equal
from fnloop.trees.nodes import tree_map
from fnloop.trees.paths import tree_items
from fnloop.values.grads import Grads
from fnloop.values.state import State


def check_compiles(
    step: Step,
    state: State,
    batches: Sequence[Any],
    backend: Any = "aot_eager",
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Law 7: `compile(step)` is `step`, to rounding, in one graph, donating or not.

    Both run over the batches in sequence, and are compared after each. They may disagree if the
    step normalizes rounding noise: Adam does so if a gradient is zero up to rounding, such as that
    of a bias before BatchNorm.

    Args:
        step: A training step that is not compiled.
        state: Its state.
        batches: Batches of one shape; include a non-finite one, which is skipped.
        backend: As in `fl.compile`; the default only records.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        LawError: With the leaves that differ, or another difference to the uncompiled step.
        CompileError: The step cannot be one graph.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    >>> batches = [torch.ones(3, 2), torch.full((3, 2), torch.nan), torch.zeros(3, 2)]
    >>> check_compiles(step, step.init(torch.nn.Linear(2, 1)), batches)
    """
    given, kinds = copy_of(state), dict(tree_items(state))
    for donate in (False, True):
        fast = compiled(step, donate=donate, backend=backend)
        who = "the compiled step" if not donate else "the compiled step, donating,"
        expected, got = state, state.replace()
        for i, batch in enumerate(batches):
            watched = batch if donate else (got, batch)
            before = copy_of(watched)
            expected, reports = step(expected, batch)
            got, reported = fast(got, batch)
            if not tree_equal(before, watched):
                raise LawError(
                    f"law 7, compiling: {who} changed its input in place:\n"
                    + tree_diff(before, watched)
                )
            rows = apart(expected, got, rtol, atol) + apart(reports, reported, rtol, atol)
            if rows:
                raise LawError(
                    f"law 7, compiling: {who} differs from the step after {i + 1} batches:\n"
                    + table(("leaf", "the step", "compiled", "difference"), rows)
                )
            wrong = [path for path, leaf in tree_items(got) if not alike(leaf, kinds[path])]
            if wrong:
                raise LawError(f"law 7, compiling: {who} changed the kind of {', '.join(wrong)}")
            names, reported_names = _metric_names(reports), _metric_names(reported)
            if names != reported_names:
                raise LawError(
                    f"law 7, compiling: {who} reports {', '.join(reported_names)} instead of "
                    f"{', '.join(names)}"
                )
            if fast.graphs != 1:
                raise LawError(
                    f"law 7, compiling: {who} has {fast.graphs} graphs after {i + 1} batches; the "
                    "usual causes are batches of several shapes, numbers in them that are no "
                    "tensors, and a state whose structure changes"
                )
    if not tree_equal(given, state):
        raise LawError(
            "law 7, compiling: the compiled step, donating, wrote into tensors that the caller "
            f"still holds:\n{tree_diff(given, state)}"
        )


def check_vmaps(
    step: Step,
    states: Sequence[State],
    x: Any,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """A step runs under ``torch.func.vmap``, and each member agrees with a run alone, to rounding.

    Args:
        step: A stage that is not compiled.
        states: The members' states, of one structure, such as from several seeds.
        x: The batch, the same for all.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        LawError: With the leaves that differ.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)))
    >>> states = [step.init(lambda: torch.nn.Linear(2, 1), seed=seed) for seed in range(3)]
    >>> check_vmaps(step, states, torch.ones(4, 2))
    """
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *states)
    vmapped = torch.func.vmap(step, in_dims=(0, None), randomness="different")
    after, reports = vmapped(stacked, x)
    for i, state in enumerate(states):
        expected = step(state, x)
        member = tree_map(lambda leaf, i=i: leaf[i], (after, reports))
        rows = apart(expected, member, rtol, atol)
        if rows:
            raise LawError(
                f"vmap: member {i} of {name_of(step)} differs from the step alone:\n"
                + table(("leaf", "alone", "vmapped", "difference"), rows)
            )


def check_layouts(step: Step, state: State, x: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """A step gives the same result whether its tensors are packed or not, to rounding.

    Raises:
        LawError: With the leaves that differ.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)))
    >>> check_layouts(step, step.init(torch.nn.Linear(2, 1)), torch.ones(4, 2))
    """
    expected, got = step(state, x), step(packed(state), x)
    rows = apart(expected, got, rtol, atol)
    if rows:
        raise LawError(
            f"layouts: {name_of(step)} gives another result on packed tensors:\n"
            + table(("leaf", "separate", "packed", "difference"), rows)
        )


def _metric_names(results: Any) -> list[str]:
    """The names of the metrics that a step or a gradient stage reports, in order."""
    return list(results.metrics if isinstance(results, Grads) else results)
