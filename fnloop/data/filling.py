"""Sequences of numbers in examples: read, compared, and filled up to a length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.data.dtypes import from_array
from fnloop.data.joining import field
from fnloop.trees.show import short


def values_by_path(values: Any, who: str) -> dict[str, float]:
    """What fills which fields: a dict by path, or a number for examples that are sequences.

    Raises:
        TypeError: It is neither.
        ValueError: There is no field.
    """
    found = dict(values) if isinstance(values, Mapping) else {"": values}
    if not found:
        raise ValueError(f'{who} takes at least one field, such as {{"tokens": 0}}; got none.')
    for path, value in found.items():
        if not isinstance(path, str) or not isinstance(value, (bool, int, float)):
            raise TypeError(
                f'{who} takes a number for each field by its path, such as {{"tokens": 0}}, or one '
                f"number where examples are sequences themselves; got {short(values)}."
            )
    return found


def sequences(
    examples: Sequence[Any], path: str, check: Callable[[int, str], None]
) -> list[Tensor]:
    """A field of all examples: tensors that are alike but for their length.

    Args:
        examples: The examples.
        path: Of the field; empty if they are sequences themselves.
        check: Is given each length, and what has it; raises for one that is wrong.

    Raises:
        ValueError: They are not, or are no sequences.
    """
    found = [sequence(field(example, path), path) for example in examples]
    first, where = found[0], f"the field {path!r}" if path else "the examples"
    for one in found:
        check(len(one), f"A sequence of {where}")
        if one.dtype != first.dtype or one.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"Sequences of {where} must be alike but for their length, and there are "
                f"{short(first)} and {short(one)}. Give all the same dtype, and the length as "
                "their first dimension."
            )
    return found


def sequence(value: Any, path: str) -> Tensor:
    """A sequence of numbers as a tensor whose first dimension is the length.

    Raises:
        ValueError: It is none.
    """
    found = value
    if isinstance(value, np.ndarray) and value.ndim:
        found = from_array(value, path)
    elif isinstance(value, (list, tuple, range)):
        try:
            found = torch.tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            found = None
    if not isinstance(found, Tensor) or not found.ndim:
        raise ValueError(
            f"The field {path!r} of an example is {_shown(value)}, which is no sequence: "
            "expected a tensor or array with a first dimension, or a list of numbers. Leave it out "
            "of the fields, or encode it as numbers first."
            if path
            else f"An example is {_shown(value)}, which is no sequence: expected a tensor "
            "or array with a first dimension, or a list of numbers. Name the fields that are "
            'sequences: {"tokens": 0}.'
        )
    return found


def filled(path: str, sequences: list[Tensor], length: int, value: float) -> Tensor:
    """The sequences, each followed by `value` up to `length`."""
    first = sequences[0]
    if not _fits(value, first.dtype):
        raise ValueError(
            f"The sequences of {path or 'the examples'!r} are {first.dtype}, which cannot hold the "
            f"value {value!r} that was given for them. Give another one, or convert them."
        )
    filling = first.new_full((length, *first.shape[1:]), value)
    parts = [part for one in sequences for part in (one, filling[: length - len(one)])]
    return torch.cat(parts).view(len(sequences), *filling.shape)


def _fits(value: float, dtype: torch.dtype) -> bool:
    if dtype.is_floating_point or dtype.is_complex:
        return not isinstance(value, bool)
    if dtype == torch.bool:
        return value in (0, 1)
    limits = torch.iinfo(dtype)
    return float(value).is_integer() and limits.min <= value <= limits.max


def _shown(value: Any) -> str:
    text = short(value)
    return text if len(text) < 60 else f"{text[:57]}..."
