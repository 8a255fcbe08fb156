"""Lists among a recipe's flags, and the numbers of the step that they set."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.cli.class_types import alternatives, is_chosen
from fnloop.cli.differences import Mismatch, differences
from fnloop.cli.flag_types import UNFIT, is_simple, kind_text, read, types_of
from fnloop.cli.given import Given
from fnloop.cli.messages import shown, usage
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import folder_of
from fnloop.cli.source import load_function, parameters
from fnloop.cli.sweep_folder import Lists, Sweep, as_flags, points_of
from fnloop.stages.named_numbers import settings, with_settings


class Grid(NamedTuple):
    """All combinations of the values of some flags.

    Attributes:
        recipe: The recipe of the first point.
        numbers: The numbers of the step that differ: a value for each point.
    """

    recipe: Recipe
    numbers: dict[str, list[float]]


def taken_lists(
    function: Callable[..., Any], arguments: Sequence[str], found: Lists
) -> Sequence[str]:
    """Read lists, such as ``--lr 0.1,0.2``, into `found`.

    A flag that may be text, or a list itself, is left as it is.

    Returns:
        The arguments with the first value of each list.

    Raises:
        Problem: An item is no number, or is there twice.
    """
    kinds, rest, left = types_of(function), list(arguments), list[str]()
    while rest:
        token = rest.pop(0)
        option, equals, value = token.partition("=")
        if not equals:
            value = rest[0] if rest else ""
        name, _, part = option[2:].partition(".")
        name = name.replace("-", "_")
        if not option.startswith("--") or "," not in value or name not in kinds:
            left.append(token)
            continue
        kind = _number_of(kinds[name], value) if not part else _number_of(Any, value)
        if kind is None:
            _refuse_classes(option, value, kinds[name])
            left.append(token)
            continue
        rest = rest if equals else rest[1:]
        name = f"{name}.{part}" if part else name
        found[name] = _numbers(option, value, kind)
        left.append(f"--{name}={found[name][0]!r}")
    return left


def _number_of(kind: Any, text: str) -> Any:
    """The type of the numbers in a list for a flag; None if it may be no such list.

    A flag may be a number or a schedule, an argument of a class anything.
    """
    if is_simple(kind):
        return None if read(text, kind) is not UNFIT else kind
    number = int | float
    if kind is not Any and not any(each in (int, float) for each in alternatives(kind)):
        return None
    return None if read(text.split(",")[0], number) is UNFIT else number


def _refuse_classes(option: str, text: str, kind: Any) -> None:
    names = text.split(",")
    if not is_chosen(kind) or not all(re.fullmatch(r"[A-Za-z_][\w.]*", name) for name in names):
        return
    each = " and ".join(f"{option} {name}" for name in names)
    raise usage(
        f"{option} {text}: a sweep takes numbers, and members of a population have the same "
        f"classes. Train each by itself: fnloop fit with {each}, each in a folder of its own; "
        "fnloop runs compares them."
    )


def _numbers(option: str, text: str, kind: Any) -> list[Any]:
    values = [read(item, kind) for item in text.split(",")]
    for item, value in zip(text.split(","), values, strict=True):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            what = "nothing stands where a number is expected" if not item else f"{item!r} is none"
            raise usage(
                f"{option} {text}: a sweep takes numbers, with commas and no spaces between them, "
                f"and {what}. The flag takes {kind_text(kind)}."
            )
    if len({float(value) for value in values}) < len(values):
        raise usage(f"{option} {text}: a number is there twice.")
    return values


def grid_of(given: Given, lists: Lists, changes: Mapping[str, Any]) -> Grid:
    """Build the recipe for each combination, and see which numbers of the step differ.

    What differs between two recipes of the same flags, such as random weights, is not counted.

    Args:
        given: The recipe.
        lists: Values of some flags.
        changes: Values of others.

    Raises:
        Problem: A flag sets no number of the step, or something else too.
    """
    points = points_of(lists)
    first = given.recipe(**points[0], **changes)
    again = given.recipe(**points[0], **changes) if lists else first
    usual = {found.place for found in _apart(first, again)}
    rows = [_scalars(first.step.uncompiled)]
    for point in points[1:]:
        other = given.recipe(**point, **changes)
        flags = {name: value for name, value in point.items() if value != points[0][name]}
        wrong = [found for found in _apart(first, other) if found.place not in usual]
        if wrong:
            raise usage(_refusal(given, flags, wrong[0]))
        rows.append(_scalars(other.step.uncompiled))
    if idle := [flag for flag in lists if not _moves(flag, points, rows)]:
        raise usage(
            f"--{idle[0]} sets no number of the step, so its values {_texts(lists[idle[0]])} would "
            f"give the same run. The step has: {', '.join(rows[0]) or 'none'}."
        )
    names = [name for name in rows[0] if len({row[name] for row in rows}) > 1]
    return Grid(first, {name: [row[name] for row in rows] for name in names})


def _moves(flag: str, points: list[dict[str, Any]], rows: list[dict[str, float]]) -> bool:
    """Whether numbers change with a flag, for any values of the others."""
    known = {tuple(point.values()): row for point, row in zip(points, rows, strict=True)}
    first = {flag: points[0][flag]}
    pairs = zip(points, rows, strict=True)
    return any(row != known[tuple({**point, **first}.values())] for point, row in pairs)


def command_with(given: Given, flags: Mapping[str, Any]) -> str:
    """The command that trains with these values of the flags, and the others as given."""
    return f"fnloop fit {shlex.quote(shown(given.file))} {as_flags(flags)}".rstrip()


def sweep_again(sweep: Sweep, folder: Path) -> str:
    """The command of a sweep in this folder, without the flags that are at their default."""
    usual = {n: each.default for n, each in parameters(load_function(sweep.recipe)).items()}
    given = {n: v for n, v in sweep.flags.items() if n not in usual or repr(v) != repr(usual[n])}
    given |= {"folder": str(folder)} if "folder" in sweep.flags else {}  # a sweep has another one
    given |= {name: ",".join(map(str, values)) for name, values in sweep.lists.items()}
    if len(sweep.seeds) > 1:
        given["seeds"] = len(sweep.seeds)
    if sweep.chunk is not None:
        given["chunk"] = sweep.chunk
    words = ["fnloop", "sweep", shown(sweep.recipe)]
    for name, value in given.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join([*words, *(["--loop"] if sweep.loop else [])])


def _refusal(given: Given, flags: Mapping[str, Any], found: Mismatch) -> str:
    what, parts = as_flags(flags), found.place.split(".")
    place = ".".join([part for part in parts if not part.startswith("_")])
    return (
        f"{what} cannot be swept: it changes more than numbers of the step, {place} "
        f"({found.text}). Members of a population have the same model, data and length, and differ "
        f"in floats of the step alone. Run by itself: {command_with(given, flags)}"
    )


def _apart(a: Recipe, b: Recipe) -> list[Mismatch]:
    """Where two recipes differ, but for numbers of the step and the folder."""
    places = folder_of(a), folder_of(b)
    found = differences(_without_numbers(a), _without_numbers(b))
    return [each for each in found if places[0] == places[1] or not _is_folder(each, places)]


def _without_numbers(recipe: Recipe) -> dict[str, Any]:
    parts = {name: value for name, value in vars(recipe).items() if name != "folder"}
    step = recipe.step.uncompiled
    return {**parts, "step": with_settings(step, dict.fromkeys(_scalars(step), 0.0))}


def _is_folder(found: Mismatch, places: tuple[Path | None, Path | None]) -> bool:
    both = zip((found.one, found.other), places, strict=True)
    return all(str(value).startswith(str(place)) for value, place in both)


def _scalars(step: Any) -> dict[str, float]:
    """The numbers of a step that may vary, by name."""
    found = settings(step).items()
    return {name: float(v) for name, v in found if not isinstance(v, Tensor) or v.numel() == 1}


def _texts(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
