"""Early checks of a run, for clear error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import optree
from torch import Tensor

from fnloop.distributed.gates import RankError, first_difference, gate
from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Run
from fnloop.effects.points import check_names
from fnloop.stages.base import Stage
from fnloop.stages.step_given import check_is_step
from fnloop.trees.equal import alike, same_structure, table
from fnloop.trees.named import by_name
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.merging import find
from fnloop.values.metrics import check_metrics
from fnloop.values.monitored import OneNumber, one_number
from fnloop.values.placing import check_same
from fnloop.values.stacked import members_of
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def check_slots(step: Any, state: State) -> None:
    """Check that the state has all memory that the step needs, and can be trained."""
    if not isinstance(step, Stage):
        check_is_step(step, "run")
        return
    if step.kind != "step":
        hint = " Add fl.update(optimizer) to the pipe." if step.kind == "grad" else ""
        raise TypeError(
            f"run takes a training step, but {step.describe()} is a {step.kind} stage.{hint}"
        )
    for part in step.stages():
        if part.slot is not None and part.slot not in state.slots:
            raise ValueError(
                f"The state has no memory for {part.describe()} (no slot {part.slot!r}). Add it "
                "with state = step.init(state), which keeps all that is there; or start with "
                "step.init(model)."
            )
    if any(map(Tensor.is_inference, _tensors(state))):
        raise ValueError(
            "The state has tensors that were made inside of torch.inference_mode(), and these "
            "cannot be trained on. Copy it outside of that block, state = "
            "fl.tree_map(torch.clone, state), or use torch.no_grad() there instead."
        )


def _tensors(state: State) -> Iterator[Tensor]:
    """The tensors as they are stored; to hand out those of `Tensors` would keep them from a step
    that writes over them.
    """
    units: list[Any] = optree.tree_leaves(
        state,  # pyright: ignore[reportArgumentType]
        is_leaf=lambda node: isinstance(node, Tensors),
    )
    for unit in units:
        found = unit.peek_storages() if isinstance(unit, Tensors) else (unit,)
        yield from [tensor for tensor in found if isinstance(tensor, Tensor)]


def check_ranks(mesh: Mesh, step: Any, state: State, about: Run) -> None:
    """Check that all ranks are about to do the same; and give the run one identity."""
    if mesh.data == 1:
        return
    gate(mesh, "the beginning of the run")
    lines = [
        *[line.strip(" ,") for line in f"the step {step!r}".splitlines()],
        f"the key {state.key.tolist()} (seed= of init)",
        f"the cursor {state.cursor.tolist()}",
        f"{about.total} batches to draw",
        f"the data {dict(about.data)}",
        f"the checkpoint {about.continues} to go on from",
        f"the effects {[each.name for each in about.effects if each.ranks == 'all']} on all ranks",
    ]
    if difference := first_difference(mesh, lines):
        raise RankError(
            f"The ranks are about to do different things: {difference}. Every rank runs the same "
            "program, with the same seed and all of the data."
        )
    check_same(mesh, state)
    about.id = mesh.exchange(about.id)[0]


def outline(state: State) -> State:
    """`state` by name with its structure, shapes, dtypes and devices, but without its data."""
    return tree_map(lambda leaf: leaf.new_empty(()).expand(leaf.shape), by_name(state))


def check_result(stage: Any, before: State, result: Any) -> None:
    """Check that a step or callback returned metrics and a state like the one it was given."""
    who = f"The {stage.kind if isinstance(stage, Stage) else 'step'} "
    who += stage.describe() if isinstance(stage, Stage) else short(stage)
    if not isinstance(result, tuple) or len(result) != 2:
        got = "a State alone" if isinstance(result, State) else type(result).__name__
        raise TypeError(f"{who} must return (state, metrics), and returned {got}.")
    after, metrics = result
    if not isinstance(after, State):
        raise TypeError(
            f"{who} returned {type(after).__name__} in place of a State; it must return "
            "(state, metrics)."
        )
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{who} returned metrics of type {type(metrics).__name__}; they are a dict such as "
            '{"loss": fl.Mean(total, weight)}.'
        )
    check_names(metrics, who)
    check_metrics(metrics, who)
    left, right = by_name(before).replace(cursor=after.cursor), by_name(after)
    if same_structure(left, right) and all(map(alike, tree_leaves(left), tree_leaves(right))):
        return
    raise ValueError(
        f"{who} must return a state of the same structure, shapes and dtypes as it was given:\n"
        + _changes(left, right)
    )


def check_sent(sent: Any) -> None:
    """Check that ``send`` was given a state."""
    if not isinstance(sent, State):
        raise TypeError(f"send takes a state, it was given {type(sent).__name__}.")


def check_metric_names(
    who: str, names: Iterable[str], available: Mapping[str, Any], state: State
) -> None:
    """Check that `available` has each of the metrics `names`, of a `OneNumber` one number."""
    for name in names:
        value = find(available, name)
        if value is not None:
            if isinstance(name, OneNumber):
                one_number(value, name, who, members_of(state))
            continue
        known = sorted(available)
        prefix, slash, _ = name.partition("/")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f' Did you mean "{close[0]}"?' if close else ""
        if slash and not any(other.startswith(prefix + slash) for other in known):
            hint = (
                f' No callback before it adds metrics named "{prefix}/...": put '
                f'fl.every(..., fl.validate(loss, data, name="{prefix}")) before it in callbacks.'
            )
        raise ValueError(
            f'{who} waits for the metric "{name}", which nothing in this run produces.{hint} '
            f"There are: {', '.join(known)}. A callback of your own that adds it declares that "
            "in its method adds(state, metrics)."
        )


def _changes(before: State, after: State) -> str:
    a, b = dict(tree_items(before)), dict(tree_items(after))
    rows = [
        (path, short(a[path]) if path in a else "-", short(b[path]) if path in b else "-")
        for path in [*a, *(p for p in b if p not in a)]
        if path not in a or path not in b or not alike(a[path], b[path])
    ]
    if not rows:
        return "its static parts (the model's skeleton, or the kinds of containers) differ"
    return table(("leaf", "given", "returned"), rows)
