"""The report of a replayed step, as text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fnloop.trees.equal import table
from fnloop.trees.show import short
from fnloop.values.cursor import Cursor
from fnloop.values.merging import numbers
from fnloop.values.nonfinite_values import Nonfinite, as_numbers, batch_items

if TYPE_CHECKING:
    from fnloop.replays.replay import Replay

MOST = 10
"""Maximum number of parameters and of batch leaves shown, besides non-finite ones."""


def report(found: Replay) -> str:
    """The text of ``print(replay)``."""
    parts = [_head(found), _batch(found), _numbers(found), _parameters(found)]
    return "\n\n".join(part for part in parts if part)


def number(value: float | None) -> str:
    """Four significant digits; ``-`` for None."""
    return "-" if value is None else f"{value:.4g}"


def _head(found: Replay) -> str:
    cursor = Cursor.of(found.before.cursor)
    count = cursor.count + 1
    how = "skipped: the state stays as it was" if found.skipped else "taken"
    lines = [f"Step {count}, in epoch {cursor.epoch + 1}: {how}."]
    first = found.first_nonfinite
    if first is not None:
        lines += ["", f"The first value that is not finite is in {first}."]
        if first.kind == "state":
            lines.append(
                f"  The state was already bad before step {count}: replay an earlier step."
            )
        if first.note:
            lines.append(f"  {first.note[0].upper()}{first.note[1:]}.")
        if first.kind in ("batch", "forward") and first.rows:
            lines.append(f"  {_rows(first)}")
        others = [bad for bad in found.nonfinite if bad is not first]
        lines += [f"  Also: {bad}." for bad in others[:3]]
        if len(others) > 3:
            lines.append(f"  And {len(others) - 3} more.")
    elif found.nonfinite:
        lines += ["", "Not finite, but without consequence:"]
        lines += [f"  {bad}." for bad in found.nonfinite[:4]]
    if found.examples:
        lines += ["", *_examples(found)]
    if found.notes:
        lines += ["", *found.notes]
    return "\n".join(lines)


def _rows(bad: Nonfinite) -> str:
    more = ", ..." if len(bad.rows) == 8 else "."
    plural = "s" if len(bad.rows) > 1 else ""
    return f"Along its first dimension: row{plural} {', '.join(map(str, bad.rows))}{more}"


def _examples(found: Replay) -> Iterator[str]:
    for suspect in found.examples[:4]:
        if suspect.loss is None:
            yield f"Example {suspect.index} of the batch may be it; alone it cannot be evaluated."
        else:
            loss = f"its loss is {suspect.loss:.4g}"
            if math.isfinite(suspect.loss):
                loss += ", its gradient not finite"
            yield f"Example {suspect.index} of the batch does it, also alone: {loss}."
    if len(found.examples) > 4:
        rest = ", ".join(str(suspect.index) for suspect in found.examples[4:12])
        yield f"So do examples {rest}{', ...' if len(found.examples) > 12 else ''}."


def _batch(found: Replay) -> str:
    rows = [_leaf(path, leaf) for path, leaf in batch_items(found.batch)]
    bad = [row for row in rows if row[5] not in ("0", "")]
    shown = rows if len(rows) <= MOST else [*bad, *[r for r in rows if r not in bad]][:MOST]
    text = table(("batch", "", "min", "mean", "max", "not finite", "rows"), shown)
    left = len(rows) - len(shown)
    return f"{text}\nand {left} more leaves" if left else text


def _leaf(path: str, value: Any) -> tuple[str, ...]:
    path = path.removeprefix("batch/")
    tensor = as_numbers(value)
    if tensor is None or not tensor.numel() or tensor.is_complex():
        return (path, short(value)[:40], "", "", "", "", "")
    finite = tensor[tensor.isfinite()]
    bad = Nonfinite.of("batch", path, tensor)
    exact = finite.to(torch.float64)
    stats = [exact.min(), exact.mean(), exact.max()] if finite.numel() else []
    cells = [number(float(value)) for value in stats] or ["-", "-", "-"]
    count, rows = (str(bad.count), _short_rows(bad)) if bad else ("0", "")
    return (path, short(tensor), *cells, count, rows)


def _short_rows(bad: Nonfinite) -> str:
    return ", ".join(map(str, bad.rows[:4])) + (", ..." if len(bad.rows) > 4 else "")


def _numbers(found: Replay) -> str:
    values = numbers({**found.metrics, **found.measured})
    rows = [("metric", ""), *((name, repr(value)) for name, value in values.items())]
    if found.gradient_norm is not None:
        rows.append(("norm of the gradient", number(found.gradient_norm)))
    return table(rows[0], rows[1:]) if len(rows) > 1 else ""


def _parameters(found: Replay) -> str:
    trained = {n: norms for n, norms in found.norms.items() if norms.gradient is not None}
    bad = [n for n, norms in trained.items() if not math.isfinite(norms.gradient or 0.0)]
    bad += [n for n, norms in found.norms.items() if not math.isfinite(norms.parameter)]
    good = sorted((n for n in trained if n not in bad), key=lambda n: -(trained[n].gradient or 0.0))
    names = [*dict.fromkeys(bad), *good[:MOST]]
    rows = [
        (
            name,
            short(found.before.params[name]),
            number(norms.parameter),
            number(norms.gradient),
            number(norms.update),
            number(norms.update / norms.parameter) if norms.parameter else "-",
        )
        for name in names
        for norms in [found.norms[name]]
    ]
    if not rows:
        return ""
    text = table(("norms of", "", "parameter", "gradient", "update", "update/parameter"), rows)
    left = len(found.norms) - len(rows)
    return f"{text}\nand {left} more parameters" if left else text
