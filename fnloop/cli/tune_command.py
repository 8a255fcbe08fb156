"""``fnloop find-lr`` and ``fnloop find-batch-size``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fnloop.cli import run_report
from fnloop.cli.config import flat
from fnloop.cli.forward import first_batch, train_of
from fnloop.cli.given import Given, given_in
from fnloop.cli.messages import Problem, shown, usage
from fnloop.cli.source import parameters
from fnloop.stages.scale import multipliers
from fnloop.trees.nodes import tree_leaves
from fnloop.trees.show import short
from fnloop.tuning.batch_size_finder import find_batch_size
from fnloop.tuning.lr_finder import find_lr
from fnloop.tuning.lr_search import reason_of
from fnloop.values.state import State


def run_find_lr(arguments: Sequence[str]) -> int:
    """``fnloop find-lr RECIPE.py``."""
    given = given_in("find-lr", arguments)
    options = given.flags.options
    _check_candidates(options)
    plot = given.picture()
    recipe = given.recipe()
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    _check_rate(options.get("of"), state)
    own = {"of": "name", "from": "min_lr", "to": "max_lr", "candidates": "steps"}
    settings: dict[str, Any] = {own[k]: v for k, v in options.items() if k in own}
    found = find_lr(recipe.step, state, recipe.data, **settings)
    print(found.table())
    rows = list[tuple[str, str]]()
    if plot is not None:
        found.plot(plot)
        rows.append(("plot", shown(Path(plot))))
    if found.suggestion is not None:
        flag = _flag_of_rate(given, state)
        text = f"{found.name} = {found.suggestion:.3g}"
        rows.append(("suggestion", f"--{flag} {found.suggestion:.3g}" if flag else text))
    if rows:
        print(f"\n{run_report.columns(rows)}")
    if found.suggestion is None:
        reason = reason_of(found, "--from", "--to", "--candidates")
        raise Problem(f"There is no suggestion for {found.name}: {reason}.")
    return 0


def run_find_batch_size(arguments: Sequence[str]) -> int:
    """``fnloop find-batch-size RECIPE.py``."""
    given = given_in("find-batch-size", arguments)
    options = given.flags.options
    _check_sizes(options)
    flag = _size_flag(given, options.get("of", "batch_size"))
    recipe = given.recipe()
    state = recipe.step.init(recipe.model, seed=recipe.seed)
    own = {"from": "start", "to": "max_size", "search": "search"}
    settings: dict[str, Any] = {own[k]: v for k, v in options.items() if k in own}
    examples = run_report.examples_of(train_of(recipe))
    if examples is not None:
        settings["max_size"] = min(settings.get("max_size", examples), examples)
    found = find_batch_size(recipe.step, state, _maker(given, flag, int(state.key)), **settings)
    print(found.table())
    if found.suggestion is None:
        raise Problem(f"There is no suggestion for --{flag}: {found.reason}.")
    rows = [("suggestion", f"--{flag} {found.suggestion}"), ("because", found.reason)]
    print(f"\n{run_report.columns(rows)}")
    return 0


def _check_candidates(options: Mapping[str, Any]) -> None:
    usual = parameters(find_lr)
    first = options.get("from", usual["min_lr"].default)
    last = options.get("to", usual["max_lr"].default)
    if not 0 < first < last < math.inf:
        raise usage(
            f"Candidates go from --from, above 0, to --to, which is larger; got {first:g} and "
            f"{last:g}."
        )
    if options.get("candidates", 2) < 2:
        raise usage(f"--candidates takes a number, 2 or more, got {options['candidates']}.")


def _check_sizes(options: Mapping[str, Any]) -> None:
    for name in ("from", "to"):
        if options.get(name, 1) < 1:
            raise usage(f"--{name} takes a size, 1 or more, got {options[name]}.")
    if options.get("search", "power") not in ("power", "binary"):
        raise usage(f"--search takes power or binary, got {options['search']!r}.")


def _check_rate(name: str | None, state: State) -> None:
    """Check that one learning rate is meant; `find_lr` tells of a step without any."""
    rates, known = _rates(state), [rate for rate, _, _ in multipliers(state)]
    if name is None and len(rates) > 1:
        raise usage(f"Which learning rate? --of NAME, one of: {', '.join(rates)}.")
    if name is not None and rates and name not in known:
        raise usage(f"--of {name}: there is no such learning rate. There are: {', '.join(rates)}.")


def _rates(state: State) -> list[str]:
    return [rate for rate, _, _ in multipliers(state) if rate.endswith(".lr")]


def _flag_of_rate(given: Given, state: State) -> str | None:
    """The flag that sets the only learning rate, as far as names tell.

    It is one of the recipe's own; or, if these have none, one within another: ``optimizer.lr``.
    """
    numbers = (int, float, type(None))
    names = [name for name, value in flat(given.flags.plain) if isinstance(value, numbers)]
    last = {name: name.rpartition(".")[2] for name in names}
    rates = [n for n in names if f"_{last[n]}".endswith(("_lr", "_learning_rate"))]
    depth = min([name.count(".") for name in rates], default=0)
    nearest = [name for name in rates if name.count(".") == depth]
    named = [name for name in nearest if last[name] in ("lr", "learning_rate")]
    found = named or nearest
    return found[0] if len(found) == 1 and len(_rates(state)) == 1 else None


def _size_flag(given: Given, name: str) -> str:
    name = name.lstrip("-").replace("-", "_")
    flags = {n: value for n, value in given.flags.values.items() if type(value) is int}
    if name not in flags:
        known = ", ".join(flags) or "none"
        raise usage(
            f"Which flag is the batch size? {shown(given.file)} has no whole number called "
            f"{name!r}; --of takes one of: {known}."
        )
    return name


def _maker(given: Given, flag: str, key: int) -> Callable[[int], Any]:
    """A function that makes the recipe's first batch for a value of the flag."""
    seen: dict[str, int] = {}

    def make(size: int) -> Any:
        batch = first_batch(given.recipe(**{flag: size}), key)
        shapes = ", ".join(short(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        other = seen.setdefault(shapes, size)
        if other != size:
            raise Problem(
                f"--{flag} {size} gives the same first batch as {other}: {shapes}. Usual causes: "
                "the flag is not the batch size (--of names another), or there are no more "
                f"examples (--to {other})."
            )
        return batch

    return make
