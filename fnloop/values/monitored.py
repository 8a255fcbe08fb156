"""The metric that a callback or a checkpoint monitors."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fnloop.trees.show import short

_LARGER_IS_BETTER = re.compile(
    r"(accuracy|acc|auroc|auc|f1|precision|recall|iou|dice|r2|bleu|psnr|ssim)(_?(score|top_?\d+))?"
)


def check_mode(mode: str, monitor: str | None, who: str) -> None:
    """Check a mode, and warn where a metric that should be large is to be small.

    Args:
        mode: "min" if smaller is better, or "max".
        monitor: Name of the metric, or None.
        who: What monitors it, for messages.

    Raises:
        ValueError: The mode is neither.

    >>> check_mode("max", "val/accuracy", "early_stopping")
    """
    if mode not in ("min", "max"):
        raise ValueError(f'{who} takes mode="min" or mode="max", got {mode!r}.')
    if mode == "min" and larger_is_better(monitor or ""):
        warnings.warn(
            f'{who} takes the smallest {monitor!r} for the best, as mode is "min". Usually more '
            'of it is better: mode="max".',
            stacklevel=3,
        )


def larger_is_better(name: str) -> bool:
    """Whether more is better of a metric, as far as its name tells.

    >>> larger_is_better("val/accuracy"), larger_is_better("val/loss")
    (True, False)
    """
    return _LARGER_IS_BETTER.fullmatch(name.rpartition("/")[2].lower()) is not None


class OneNumber(str):
    """The name of a metric that a callback needs as one number; see `one_number`."""

    __slots__ = ()


def one_number(value: Any, name: str, who: str, members: int | None = None) -> Any:
    """The value of a metric, if it is one number; of a population, also one for each member.

    Args:
        value: What `find` found.
        name: Of the metric.
        who: What monitors it, for messages.
        members: How many members the population has; None for a single run.

    Raises:
        ValueError: It is a dict, a list, or a tensor of several numbers.
    """
    if _is_one(value, members):
        alone = members is None and isinstance(value, (Tensor, np.ndarray)) and value.ndim
        return value.reshape(()) if alone else value
    inside = list(itertools.islice(_numbers_inside(value, name, members), _SHOWN + 1))
    more = ", ..." if len(inside) > _SHOWN else ""
    remedy = f"Monitor one of these: {', '.join(inside[:_SHOWN])}{more}."
    if not inside:
        remedy = "Report one number of it as a metric of its own, and monitor that."
    raise ValueError(
        f"{who} monitors one number, and the value of the metric {name!r} is none: {short(value)}. "
        f"{remedy}"
    )


_SHOWN = 8


def _is_one(value: Any, members: int | None) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        shapes = [()] if members is None else [(), (members,)]
        return tuple(value.shape) in shapes or (members is None and math.prod(value.shape) == 1)
    return not isinstance(value, (Mapping, list, tuple, str))


def _numbers_inside(value: Any, name: str, members: int | None) -> Iterator[str]:
    """The names by which `fnloop.values.merging.find` finds one number of a value."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers_inside(entry, f"{name}/{key}", members)
    elif _is_one(value, members):
        yield name
    elif isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1:
        for i, entry in enumerate(value):
            yield from _numbers_inside(entry, f"{name}[{i}]", members)


def best_of(value: Any, mode: str) -> float:
    """A metric's value as one number: of a population, the best of its members.

    >>> import torch
    >>> best_of(torch.tensor([3.0, 2.0, math.nan]), "min"), best_of(0.5, "max")
    (2.0, 0.5)
    """
    if not isinstance(value, Tensor) or not value.ndim:
        return float(value)
    known = [number for number in value.reshape(-1).tolist() if not math.isnan(number)]
    return (min if mode == "min" else max)(known, default=math.nan)
