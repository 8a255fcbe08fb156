"""Outputs of a model as arrays by name, a row for each example."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.trees.paths import tree_items
from fnloop.trees.show import short

Columns = Mapping[str, np.ndarray[Any, Any]]
INDEX, LONE = "index", "output"
"""The name of the examples' numbers, and that of a lone output."""
_NAME = re.compile(r"[^\W.][\w .+=-]{0,199}")
_WIDER = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)  # NumPy has none of them


def as_columns(output: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an output by path; a lone one is called ``""``.

    What NumPy has no dtype for (bfloat16, float8) becomes float32, which has all of its values.

    Args:
        output: A tensor or an array, or a tree of them, whose first dimension is the batch's.

    Raises:
        ValueError: It is or has something else.

    >>> {name: array.shape for name, array in as_columns({"y": torch.zeros(5, 2)}).items()}
    {'y': (5, 2)}
    """
    items = tree_items(output)
    for name, leaf in items:
        if not isinstance(leaf, Tensor | np.ndarray) or not leaf.ndim:
            raise ValueError(
                f"The output {name or 'of the model'} is {short(leaf)}; predictions are tensors "
                "whose first dimension is the batch's."
            )
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufc":
            raise ValueError(
                f"The output {name or 'of the model'} is an array of {leaf.dtype}; predictions are "
                "numbers. For texts, return their numbers and look them up afterwards."
            )
    return {name: _array(leaf) for name, leaf in items}


def named(columns: Columns) -> Columns:
    """With names that files and columns can have.

    Raises:
        ValueError: A name is none.

    >>> list(named({"": np.zeros(3)})), list(named({"boxes/0": np.zeros(3), "mask": np.zeros(3)}))
    (['output'], ['boxes.0', 'mask'])
    """
    found = dict[str, np.ndarray[Any, Any]]()
    for path, array in columns.items():
        name = path.replace("/", ".") or LONE
        if name == INDEX or name in found or not _NAME.fullmatch(name):
            why = "is that of the examples' numbers" if name == INDEX else "cannot be a file's"
            why = "is there twice" if name in found else why
            raise ValueError(f"The name of the output {path!r} {why}. Give it another.")
        found[name] = array
    return found


def _array(leaf: Any) -> np.ndarray[Any, Any]:
    if isinstance(leaf, np.ndarray):
        return leaf
    leaf = leaf.detach().cpu().resolve_conj().resolve_neg()
    return (leaf.float() if leaf.dtype in _WIDER else leaf).numpy()
