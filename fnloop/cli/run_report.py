"""Text that the commands print, and files that they write."""

from __future__ import annotations

import csv
import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.cli.messages import shown
from fnloop.cli.recipe import Recipe
from fnloop.cli.runs import effects_of
from fnloop.data.bundle import Data, sets_of
from fnloop.data.sources import as_source
from fnloop.loop.history import History
from fnloop.trackers.aim import Aim
from fnloop.trackers.tensorboard import TensorBoard
from fnloop.trackers.track import track
from fnloop.values.state import State


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns: names and texts."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def recipe_text(file: Path, flags: Mapping[str, str]) -> str:
    """A recipe and its flags; as wide as the terminal, in a row of `columns` called recipe."""
    text = "  ".join([shown(file), " ".join(f"{name}={value}" for name, value in flags.items())])
    if not sys.stderr.isatty():
        return text.rstrip()
    indent = " " * len("recipe  ")
    width = shutil.get_terminal_size().columns - len(indent) - 1
    return f"\n{indent}".join(textwrap.wrap(text, width, break_on_hyphens=False))


def numbers_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table of metrics (columns) by part of the data (lines).

    >>> print(numbers_table({"val": {"loss": 0.25, "accuracy": 1.0}, "test": {"loss": 12.5}}))
          loss  accuracy
    val   0.25         1
    test  12.5
    """
    names = list(dict.fromkeys(name for numbers in rows.values() for name in numbers))
    lines = [["", *names]]
    for part, numbers in rows.items():
        lines.append([part, *(f"{numbers[n]:.4g}" if n in numbers else "" for n in names)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def model_text(state: State) -> str:
    """A model's name, size and device."""
    sizes = {name: p.numel() for name, p in state.params.outlines()}  # some may be divided
    count, trained = sum(sizes.values()), sum(sizes[name] for name in state.skeleton.trainable)
    frozen = f", {trained:,} of them trained" if trained < count else ""
    return f"{state.skeleton}: {count:,} parameters{frozen}, on {state.step.device}"


def parts_of(data: Any) -> dict[str, Any]:
    """The parts of the data to evaluate, by name."""
    if not isinstance(data, Data):
        return {"train": data}
    parts = {"train": data.train, "val": data.validate, "test": data.test}
    return {
        name: each
        for part, data in parts.items()
        if data is not None
        for name, each in named(part, data).items()
    }


def named(part: str, data: Any) -> dict[str, Any]:
    """A part of the data by its name, or several sets of it by theirs: ``"val/day"``."""
    sets = sets_of(data)
    return {part: data} if sets is None else {f"{part}/{name}": each for name, each in sets.items()}


def data_text(data: Any) -> str:
    """The sizes of the data's parts."""
    return ", ".join(f"{name} {_size(part)}" for name, part in parts_of(data).items())


def where(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """How to view the output of the recipe's trackers."""
    for effect in effects_of(recipe):
        for tracker in effect.trackers if isinstance(effect, track) else ():
            if isinstance(tracker, Aim) and importlib.util.find_spec("aim"):
                yield "aim", f"aim up --repo {shown(Path(tracker.repo))}"
            elif isinstance(tracker, TensorBoard):
                yield "tensorboard", f"tensorboard --logdir {shown(tracker.folder)}"


def write_history(history: History, folder: Path) -> list[tuple[str, str]]:
    """Write ``history.csv`` and ``curves.png``; return their paths, or why they are missing."""
    if not history.names:
        return []
    names = ["epoch", "step", *history.names]
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history.rows)
    try:
        history.plot(folder / "curves.png")
        curves = shown(folder / "curves.png")
    except ImportError as error:
        curves = f"not drawn: {error}"
    return [("curves", curves), ("history", shown(folder / "history.csv"))]


def examples_of(data: Any) -> int | None:
    """How many examples the data has, if it is known."""
    own = getattr(as_source(data), "examples", None)
    return _length(getattr(data, "dataset", None)) if own is None else own


def _size(data: Any) -> str:
    examples, batches = examples_of(data), as_source(data).batches
    counts = [(examples, "example", "s"), (batches, "batch", "es")]
    known = [f"{n:,} {what}{plural * (n > 1)}" for n, what, plural in counts if n]
    return " in ".join(known) or type(data).__name__


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
