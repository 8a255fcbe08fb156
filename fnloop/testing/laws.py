"""The laws of stages as checks, to call on your own stages."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import optree
import torch
from torch import Tensor, nn

from fnloop.effects.effect import Effect
from fnloop.loop.run import run
from fnloop.stages.accumulate import accumulate
from fnloop.stages.base import Callback, GradStage, Stage
from fnloop.store.load import load
from fnloop.store.save import save
from fnloop.transforms.compile import compile as compiled
from fnloop.transforms.plan import packed
from fnloop.trees.equal import alike, same_structure, table, tree_diff, tree_equal
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.trees.paths import join, tree_items
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.start import start
from fnloop.values.state import State

Step = Callable[[State, Any], tuple[State, Any]]


class LawError(AssertionError):
    """A stage broke one of the laws; the message says which, and where."""


def check_pure(step: Step, state: State, x: Any, model: nn.Module | None = None) -> None:
    """Law 1: a stage changes neither inputs, nor global random state, nor the user's module.

    Args:
        step: Any stage, or a function with the same signature.
        state: Its state.
        x: Its input: a batch, or metrics.
        model: The module that the state was made from, to check too.

    Raises:
        LawError: With the leaves that changed.

    >>> def bad(state, batch):
    ...     state.params["weight"].add_(1.0)
    ...     return state, {}
    >>> from fnloop.values.start import start
    >>> check_pure(bad, start(nn.Linear(2, 1)), None)
    Traceback (most recent call last):
    ...
    fnloop.testing.laws.LawError: law 1, purity: bad changed its input in place: params/weight
    """
    watched: dict[str, Any] = {"state": state, "x": x}
    if model is not None:
        watched["model"] = dict(model.state_dict(keep_vars=True))
    before = _copy(watched)
    versions = _versions(watched)
    random = torch.get_rng_state()
    step(state, x)
    touched = [path for path, version in _versions(watched).items() if version != versions[path]]
    if touched or not tree_equal(before, watched):
        changed = touched or [
            line.split()[0] for line in tree_diff(before, watched).splitlines()[1:]
        ]
        names = ", ".join(path.removeprefix("state/") for path in changed)
        raise LawError(f"law 1, purity: {_name(step)} changed its input in place: {names}")
    if not torch.equal(random, torch.get_rng_state()):
        raise LawError(
            f"law 1, purity: {_name(step)} changed torch's global random state; randomness is a "
            'function of (state.key, state.calls): with fl.randomness(state, "name")'
        )


def check_repeatable(step: Step, state: State, x: Any) -> None:
    """Law 2: same inputs, same bits, whatever the global random state is.

    Raises:
        LawError: With a table of the leaves that differ.
    """
    random = torch.get_rng_state()
    try:
        first = step(state, x)
        torch.manual_seed(int(torch.randint(1 << 30, ())))
        second = step(state, x)
    finally:
        torch.set_rng_state(random)
    if not tree_equal(first, second):
        raise LawError(
            f"law 2, repeatability: two calls of {_name(step)} differ:\n{tree_diff(first, second)}"
        )


def check_init(
    step: Stage, model: Any, seed: int = 0, metrics: Mapping[str, Any] | None = None
) -> None:
    """Law 3: `init` is idempotent, and keeps everything that a state has.

    Args:
        step: Any stage.
        model: As in `Stage.init`.
        seed: As in `Stage.init`.
        metrics: For a callback, an example of the metrics, whose memory is made from them.

    Raises:
        TypeError: `metrics` lacks one that the callback needs.
        LawError: With a table of the leaves that differ.
    """
    init = _init_of(step, metrics)
    state = init(model, seed)
    again = init(state)
    if not tree_equal(state, again):
        raise LawError(f"law 3, init: init twice is not init once:\n{tree_diff(state, again)}")
    old = state.put("somebody_else", {"memory": torch.arange(3)}).replace(step=state.step + 7)
    kept = init(old)
    if not tree_equal(old, kept):
        raise LawError(f"law 3, init: init changed what was there:\n{tree_diff(old, kept)}")


def check_accumulates(
    grad: GradStage,
    state: State,
    batch: Any,
    ks: Sequence[int] = (2, 3),
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Law 4: `accumulate(k)` gives the gradient of the one big batch, to rounding.

    Holds for losses without batch statistics or randomness.

    Args:
        grad: A gradient stage.
        state: Its state.
        batch: A batch with at least ``max(ks)`` examples; best not a multiple of any of `ks`.
        ks: Numbers of micro-batches.
        rtol: Relative tolerance.
        atol: Absolute tolerance for mean gradients.

    Raises:
        LawError: With the leaf.
    """
    _, whole = grad(state, batch)
    for k in ks:
        _, parts = accumulate(k)(grad)(state, batch)
        for name, expected in whole.mean.items():
            got = parts.mean[name]
            if not torch.allclose(expected, got, rtol=rtol, atol=atol):
                raise LawError(
                    f"law 4, accumulation: the gradient of {name} over {k} parts is off by "
                    f"{float((expected - got).abs().max()):.3g}"
                )
        if not math.isclose(float(whole.weight), float(parts.weight), rel_tol=1e-6):
            raise LawError(
                f"law 4, accumulation: the weight of {k} parts is {float(parts.weight)}, that of "
                f"the whole {float(whole.weight)}"
            )


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
    >>> check_compiles(step, step.init(nn.Linear(2, 1)), batches)
    """
    given, kinds = _copy(state), dict(tree_items(state))
    for donate in (False, True):
        fast = compiled(step, donate=donate, backend=backend)
        who = "the compiled step" if not donate else "the compiled step, donating,"
        expected, got = state, state.replace()
        for i, batch in enumerate(batches):
            watched = batch if donate else (got, batch)
            before = _copy(watched)
            expected, reports = step(expected, batch)
            got, reported = fast(got, batch)
            if not tree_equal(before, watched):
                raise LawError(
                    f"law 7, compiling: {who} changed its input in place:\n"
                    + tree_diff(before, watched)
                )
            rows = _apart(expected, got, rtol, atol) + _apart(reports, reported, rtol, atol)
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


def check_resumes(
    step: Step,
    state: State,
    data: Any,
    steps: int = 5,
    at: Sequence[int] | None = None,
    callbacks: Callable[[], Sequence[Any]] = tuple,
) -> None:
    """Law 8: a run that is stopped, saved, loaded and resumed ends with the same bits.

    Args:
        step: A training step.
        state: Its state.
        data: What `fl.run` takes; it must be able to restart at a cursor.
        steps: Length of the run.
        at: After how many steps to stop; default after each.
        callbacks: A function that makes the callbacks of one run.

    Raises:
        LawError: With a table of the leaves that differ.
    """
    whole = _last(run(step, state, data, steps=steps, callbacks=callbacks()), state)
    for k in range(steps + 1) if at is None else at:
        with tempfile.TemporaryDirectory() as folder:
            stopped = _last(run(step, state, data, steps=k, callbacks=callbacks()), state)
            resumed = load(save(stopped, folder), like=state)
            resumed = _last(
                run(step, resumed, data, steps=steps - k, callbacks=callbacks()), resumed
            )
        # By path: the memory of a callback that has not run since loading is still nested dicts.
        if not tree_equal(dict(tree_items(whole)), dict(tree_items(resumed))):
            raise LawError(
                f"law 8, resuming: stopped after {k} of {steps} steps, the run ends differently:\n"
                + tree_diff(whole, resumed)
            )


def check_effects(
    step: Step, state: State, data: Any, callbacks: Callable[[], Sequence[Any]], steps: int = 5
) -> None:
    """Law 9: removing every effect changes no bit of the state.

    Args:
        step: A training step.
        state: Its state.
        data: What `fl.run` takes.
        callbacks: A function that makes the callbacks and effects of one run.
        steps: Length of the run.

    Raises:
        LawError: With a table of the leaves that differ.
    """
    pure = [callback for callback in callbacks() if not isinstance(callback, Effect)]
    without = _last(run(step, state, data, steps=steps, callbacks=pure), state)
    with_all = _last(run(step, state, data, steps=steps, callbacks=callbacks()), state)
    if not tree_equal(without, with_all):
        raise LawError(
            f"law 9, effects: an effect changed the state:\n{tree_diff(without, with_all)}"
        )


def check_skips(step: Step, state: State, bad: Any) -> None:
    """Law 10: a batch with a non-finite gradient changes nothing but what counts such batches.

    That is ``state.calls``, and memory that a stage keeps when a step is taken back (see
    `Stage.taken_back`), such as the loss scale.

    Args:
        step: A training step.
        state: Its state.
        bad: A batch whose gradient is not finite, or whose weight is zero.

    Raises:
        LawError: With a table of the leaves that changed.
    """
    after, metrics = step(state, bad)
    kept = _kept_slots(step, state)
    frozen = {name: state.slots[name] for name in after.slots if name not in kept}
    expected = state.replace(calls=after.calls, slots={**after.slots, **frozen})
    if not tree_equal(expected, after):
        raise LawError(
            f"law 10, skipping: a bad batch changed the state:\n{tree_diff(expected, after)}"
        )
    if float(metrics["skipped"]) != 1:
        raise LawError("law 10, skipping: the skipped step did not report skipped = 1")


def check_stable(step: Step, state: State, x: Any) -> None:
    """Law 11: the new state has the old one's structure, shapes, dtypes and devices.

    Raises:
        LawError: With the leaves that changed.
    """
    after, _ = step(state, x)
    if not isinstance(after, State):
        raise LawError(
            f"law 11, stability: {_name(step)} returned {type(after).__name__}, not a State"
        )
    old, new = dict(tree_items(state)), dict(tree_items(after))
    wrong = [path for path in {**old, **new} if path not in old or path not in new]
    wrong += [path for path in old if path in new and not alike(old[path], new[path])]
    if wrong:
        raise LawError(f"law 11, stability: {_name(step)} changed the kind of {', '.join(wrong)}")
    if not same_structure(state, after):
        raise LawError(f"law 11, stability: {_name(step)} changed the state's static structure")


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
    >>> states = [step.init(lambda: nn.Linear(2, 1), seed=seed) for seed in range(3)]
    >>> check_vmaps(step, states, torch.ones(4, 2))
    """
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *states)
    vmapped = torch.func.vmap(step, in_dims=(0, None), randomness="different")
    after, reports = vmapped(stacked, x)
    for i, state in enumerate(states):
        expected = step(state, x)
        member = tree_map(lambda leaf, i=i: leaf[i], (after, reports))
        rows = _apart(expected, member, rtol, atol)
        if rows:
            raise LawError(
                f"vmap: member {i} of {_name(step)} differs from the step alone:\n"
                + table(("leaf", "alone", "vmapped", "difference"), rows)
            )


def check_layouts(step: Step, state: State, x: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """A step gives the same result whether its tensors are packed or not, to rounding.

    Raises:
        LawError: With the leaves that differ.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)))
    >>> check_layouts(step, step.init(nn.Linear(2, 1)), torch.ones(4, 2))
    """
    expected, got = step(state, x), step(packed(state), x)
    rows = _apart(expected, got, rtol, atol)
    if rows:
        raise LawError(
            f"layouts: {_name(step)} gives another result on packed tensors:\n"
            + table(("leaf", "separate", "packed", "difference"), rows)
        )


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
    >>> state = step.init(nn.Linear(2, 1).double())
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
                f"law 12, derivatives: {_name(step)} silently cuts derivatives off; "
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
                f"law 12, derivatives: through {_name(step)}, {name} gives {got:.8g} where finite "
                f"differences give {expected:.8g}. Moved alone, the leaf that is off most is "
                f"{worst(found)}"
            )


def _init_of(step: Stage, metrics: Mapping[str, Any] | None) -> Callable[..., State]:
    """The `init` of a stage; a callback's is called with a state and an example of the metrics."""
    if not isinstance(step, Callback):
        return step.init
    example = dict(metrics or {})
    missing = [name for name in step.needs() if name not in example]
    if missing:
        raise TypeError(
            f"The memory of {step.describe()} is made from the first step's metrics; it needs "
            f"{', '.join(missing)}. Give an example: check_init(callback, model, "
            f'metrics={{"{missing[0]}": fl.Mean(1.0, 1)}}), or the metrics of a step.'
        )
    return lambda model, seed=0: step.init(start(model, seed), example)


def _metric_names(results: Any) -> list[str]:
    """The names of the metrics that a step or a gradient stage reports, in order."""
    return list(results.metrics if isinstance(results, Grads) else results)


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


def _apart(expected: Any, got: Any, rtol: float, atol: float) -> list[tuple[str, ...]]:
    """The leaves that differ by more than rounding, as rows: path, both values, difference."""
    left, right = dict(tree_items(expected)), dict(tree_items(got))
    rows: list[tuple[str, ...]] = []
    for path in [*left, *(p for p in right if p not in left)]:
        x, y = left.get(path, "-"), right.get(path, "-")
        how = _difference(x, y, rtol, atol)
        if how:
            rows.append((path, short(x), short(y), how))
    return rows


def _difference(x: Any, y: Any, rtol: float, atol: float) -> str:
    """How two leaves differ by more than rounding; empty if they do not."""
    if isinstance(x, str) or isinstance(y, str):
        return "" if x == y else "value"
    a, b = torch.as_tensor(x), torch.as_tensor(y)  # a number of the step may be a compiled tensor
    if a.shape != b.shape:
        return "shape"
    wide = torch.complex128 if a.is_complex() else torch.float64
    if a.is_floating_point() or a.is_complex():
        off = ~torch.isclose(a.detach().to(wide), b.detach().to(wide), rtol, atol, equal_nan=True)
    else:
        off = a != b
    if not off.any():
        return ""
    most = (a[off].to(wide) - b[off].to(wide)).abs().max()
    return f"{int(off.sum())} of {off.numel()} values, at most {float(most):.3g}"


def _kept_slots(step: Step, state: State) -> set[str]:
    """The slots whose memory is kept when a step is taken back."""
    parts = step.stages() if isinstance(step, Stage) else ()
    owned = [part for part in parts if part.slot is not None]
    return {
        part.slot
        for part in owned
        if part.slot is not None
        and state[part.slot] != {}
        and part.taken_back(state[part.slot]) == {}
    }


def _copy(value: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, value)


def _versions(value: Any) -> dict[str, int]:
    return {path: leaf._version for path, leaf in tree_items(value) if isinstance(leaf, Tensor)}


def _last(loop: Any, state: State) -> State:
    for state, _ in loop:  # noqa: B007
        pass
    return state


def _name(step: Any) -> str:
    return step.describe() if isinstance(step, Stage) else short(step)
