"""Metrics with several values, such as those of a population, shown together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

FEW = 3
"""Of so many values each is shown by itself."""

_ITEM = re.compile(r"(.+)\[\d+\]")


def grouped(names: Iterable[str], members: int | None = None) -> dict[str, list[str]]:
    """Names by what they are shown under: ``loss[0]``, ``loss[1]``, ... under ``loss``.

    Args:
        names: Of metrics.
        members: Of a population, which are shown together also where they are few.

    >>> grouped(["loss[0]", "loss[1]", "loss[2]", "loss[3]", "recall[0]", "recall[1]"])
    {'loss': ['loss[0]', 'loss[1]', 'loss[2]', 'loss[3]'], 'recall[0]': ['recall[0]'], \
'recall[1]': ['recall[1]']}
    """
    whole: dict[str, list[str]] = {}
    for name in names:
        item = _ITEM.fullmatch(name)
        whole.setdefault(item[1] if item else name, []).append(name)
    found: dict[str, list[str]] = {}
    for base, own in whole.items():
        together = len(own) > FEW or (len(own) == members and own != [base])
        found |= {base: own} if together else {name: [name] for name in own}
    return found


def spans(numbers: Mapping[str, float]) -> dict[str, str]:
    """Numbers as text with four digits; of a group, the least and the largest.

    >>> spans({"lr": 0.1, **{f"loss[{i}]": 0.5 + i for i in range(64)}})
    {'lr': '0.1', 'loss': '0.5..63.5'}
    """
    groups = grouped(numbers)
    return {title: span([numbers[name] for name in names]) for title, names in groups.items()}


def span(values: Sequence[float]) -> str:
    """The least and the largest of some values, as text; nan only if all are."""
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    low, high = number(min(known)), number(max(known))
    return low if low == high else f"{low}..{high}"


def number(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}"
