"""What predictions are of, so that no others are taken for them or gone on with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fnloop.data.sources import as_source
from fnloop.loop.resume import changes
from fnloop.stages.functions import takes_state
from fnloop.store.columns import Columns, as_columns, named
from fnloop.store.tensor_file import digests
from fnloop.trees.json_codec import as_json, plain
from fnloop.trees.paths import tree_items
from fnloop.values.context import EMPTY
from fnloop.values.start import choose_params
from fnloop.values.state import State

_HOW = ("num_workers", "exact", "reason")
"""What a source tells of itself that does not change what it gives."""


def about_predictions(fn: Any, state: State, data: Any, params: str | None) -> dict[str, Any]:
    """What tells predictions apart from others, as JSON."""
    ask: Any = getattr(as_source(data), "about", None)
    known = {} if ask is None else {k: v for k, v in (ask() or {}).items() if k not in _HOW}
    return as_json({"weights": _digest(fn, state, params), "params": params, "data": plain(known)})


def _digest(fn: Any, state: State, params: str | None) -> str:
    """Of all that an output may depend on, but for the data."""
    chosen = dict(tree_items({"params": choose_params(state, params), "buffers": state.buffers}))
    chosen |= {"key": state.key, "calls": state.calls}
    if takes_state(fn):
        chosen |= tree_items(state.replace(context=EMPTY, cursor=state.cursor * 0))
    found = hashlib.sha256()
    for path, leaf in sorted(digests(chosen).items()):
        found.update(f"{path} {leaf.dtype} {leaf.shape} {leaf.sha256}\n".encode())
    return found.hexdigest()


def check_same(place: Path, now: Any, then: Any) -> None:
    """Check that predictions that are there are of the same weights and data.

    Raises:
        FileExistsError: They are not; with what differs.
    """
    found = [
        *changes("", _outline(then), _outline(now)),
        *changes("data.", then["data"], now["data"]),
    ]
    if found:
        raise FileExistsError(
            f"{place} holds other predictions, which are not overwritten. What differs:\n  "
            + "\n  ".join(found)
            + "\nDelete it to start over, or choose another place."
        )


def _outline(about: Any) -> dict[str, Any]:
    return {**{k: v for k, v in about.items() if k != "data"}, "weights": about["weights"][:12]}


def check_first(place: Path, computed: Any, read: Callable[[int], Columns]) -> None:
    """Check that a function still gives what was written for the first batch, up to rounding.

    Args:
        place: Where it was written.
        computed: What `outputs_of` gives for it now.
        read: Reads so many rows, the first.

    Raises:
        FileExistsError: It gives something else.
    """
    now = named(as_columns(computed[2]))
    then = read(max((len(array) for array in now.values()), default=0))
    other = sorted(set(now) ^ set(then)) or [n for n in now if not _close(now[n], then[n])]
    if other:
        raise FileExistsError(
            f"{place} holds predictions of the same weights and data by another function: for the "
            f"first batch {', '.join(map(repr, other))} differs now. Usual cause: the function or "
            "the model's code has changed since. Delete it to start over, or choose another place."
        )


def _close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind not in "fc" or not a.size:
        return np.array_equal(a, b)
    finite = np.abs(b[np.isfinite(b)])
    most = 1e-3 * float(finite.max(initial=0.0))  # another machine rounds otherwise
    return np.allclose(a, b, rtol=1e-3, atol=most, equal_nan=True)
