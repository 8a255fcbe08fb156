"""``predict``: outputs of the model, yielded or written to files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, overload

import numpy as np

from fnloop.data.batches import START
from fnloop.data.bundle import Data
from fnloop.data.divided import refuse_divided
from fnloop.data.iterables import is_once
from fnloop.data.sources import as_source
from fnloop.distributed.gates import RankError, first_difference
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.loop.each_batch import outputs_of, whole
from fnloop.loop.ranks import SAME_DATA
from fnloop.loop.resume import changes
from fnloop.names.keywords import explained
from fnloop.stages.functions import as_loss, takes_state
from fnloop.store.batch_files import BatchFiles, Columns
from fnloop.store.columns import as_columns
from fnloop.store.predictions import Predictions, named
from fnloop.store.tensor_file import digests
from fnloop.trees.json_codec import as_json, plain
from fnloop.trees.paths import tree_items
from fnloop.values.context import EMPTY
from fnloop.values.cursor import Cursor
from fnloop.values.padded import Padded
from fnloop.values.rows import UnclearRows, rows
from fnloop.values.start import choose_params
from fnloop.values.state import State

_HOW = ("num_workers", "exact", "reason")
"""What a source tells of itself that does not change what it gives."""


@overload
def predict(
    fn: Callable[..., Any], state: State, data: Any, params: str | None = None
) -> Iterator[Any]: ...
@overload
def predict(
    fn: Callable[..., Any],
    state: State,
    data: Any,
    params: str | None = None,
    *,
    to: str | os.PathLike[str],
    mesh: Mesh | None = None,
) -> Path: ...


@explained
def predict(
    fn: Callable[..., Any],
    state: State,
    data: Any,
    params: str | None = None,
    *,
    to: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
) -> Iterator[Any] | Path:
    """Outputs of the model, batch by batch, in the order of `data`.

    With `to` they are written to files, of which a batch at a time is in memory, and the place is
    returned. A folder gets a ``.npy`` file for each leaf of the outputs (``output.npy`` if they are
    one tensor, ``boxes.0.npy`` for ``{"boxes": (tensor,)}``), ``index.npy`` with the number of each
    row's example, and ``predictions.json``, which says what they are of. A file called ``.parquet``
    has the same as columns; it needs ``pip install 'fnloop[parquet]'``.

    Until all are there the place is called ``<to>.unfinished``. If the process is killed, the same
    call goes on behind the last whole batch, and ends in the same bytes; where all are there, it
    returns at once. For that, the weights, the data, and the outputs for the first batch, which is
    computed again, are compared with those that are there.

    Args:
        fn: ``(model, batch) -> output``; if written, tensors whose first dimension is the batch's.
        state: The state with the model; it is not changed.
        data: Whatever `fl.run` takes; one epoch of it, not shuffled. Of `fl.Data`, ``predict``.
        params: A slot to take the parameters from, such as ``"ema"``; default the live ones.
        to: A folder, or a file called ``.parquet``, on a disk; default none.
        mesh: The ranks that call it together, with `to` on a disk that all of them see: each
            predicts its share of the batches, and the first puts the shares together.

    Yields:
        What `fn` returns. (With `to`, the path is returned.)

    Raises:
        ValueError: The data is shuffled: `fl.Batches` or a loader that shuffles, a sampler in
            another order, or a stream that draws random numbers. Or outputs cannot be written, or
            `mesh` is given without `to`.
        FileExistsError: Others are there: of other weights, other data, another function; or they
            are being written.

    >>> import tempfile, torch, fnloop as fl
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(torch.nn.Linear(1, 2))
    >>> data = fl.Batches(torch.zeros(5, 1), 2, shuffle=False)
    >>> [len(y) for y in predict(lambda m, x: m(x), state, data)]
    [2, 2, 1]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place = predict(lambda m, x: m(x), state, data, to=f"{folder}/outputs")
    ...     np.load(place / "output.npy").shape, np.load(place / "index.npy").tolist()
    ((5, 2), [0, 1, 2, 3, 4])
    """
    if to is None and mesh is not None:
        raise ValueError(
            "predict(..., mesh=) divides what is written among ranks: give to=, a place for it. "
            "Without to= every rank is given all outputs."
        )
    if to is None:
        return _outputs(fn, state, data, params)
    return _written(as_loss(fn, "fn(model, batch)"), state, data, params, to, mesh or Mesh())


def _outputs(fn: Any, state: Any, data: Any, params: str | None) -> Iterator[Any]:
    if isinstance(data, Data):
        data = data.only("predict", "predict")
    who, state = as_loss(fn, "fn(model, batch)"), whole(state, "predict")
    for _, _, output in outputs_of(who, state, data, params, "predict"):
        yield output


def _written(fn: Any, state: Any, data: Any, params: str | None, to: Any, mesh: Mesh) -> Path:
    if isinstance(data, Data):
        data = data.only("predict", "predict")
    state, mesh, place = whole(state, "predict"), mesh.everyone, Predictions(to)
    share = (mesh.rank, mesh.data)
    if mesh.data > 1:
        refuse_divided(data)
    about = _about(fn, state, data, params)
    if difference := first_difference(mesh, [f"{name} {value}" for name, value in about.items()]):
        raise RankError(f"The ranks are to predict different things: {difference}. {SAME_DATA}")

    def outputs(start: Cursor = START, share: tuple[int, int] = share) -> Iterator[Any]:
        return outputs_of(fn, state, data, params, "predict", share=share, start=start)

    def own() -> bool:
        there = place.about()
        if there is not None:
            _check_same(place.target, about, there)
            place.sweep()
            _check_first(place.target, next(outputs(share=(0, 1))), place.first)
            return True
        with place.part(about, *share) as part:
            _go_on(place, part, about, is_once(data), outputs)
            if mesh.data == 1:
                place.finish(part)
        return False

    if not jointly(mesh, f"the predictions to {place.target}", own) and mesh.data > 1:
        join = lambda: place.join(about, mesh.data) if mesh.rank == 0 else None  # noqa: E731
        jointly(mesh, f"the joining of {place.target}", join)
    return place.target


def _go_on(place: Predictions, part: BatchFiles, about: Any, once: bool, outputs: Any) -> None:
    if part.batches:
        if once:
            raise ValueError(
                f"{place.work} holds the first {part.batches} batches, and this data is an "
                "iterator, which cannot go on behind them. Give data that can be read again, or "
                "delete the folder to start over."
            )
        _check_same(place.work, about, part.about)
        _check_first(place.work, next(outputs()), lambda rows: part.read(0, rows))
    if part.cursor.epoch:
        return
    for after, batch, output in outputs(start=part.cursor):
        columns = as_columns(output)
        _check_rows(batch, columns)
        place.add(part, named(columns), after)


def _about(fn: Any, state: State, data: Any, params: str | None) -> dict[str, Any]:
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


def _check_same(place: Path, now: Any, then: Any) -> None:
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


def _check_first(place: Path, computed: Any, read: Callable[[int], Columns]) -> None:
    """Check that `fn` still gives what was written for the first batch, up to rounding."""
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


def _check_rows(batch: Any, columns: Columns) -> None:
    padded = isinstance(batch, Padded)
    try:
        examples = int(batch.weight.count_nonzero()) if padded else rows(batch)
    except UnclearRows:
        return
    for name, array in columns.items():
        if examples is not None and len(array) != examples:
            what = "or write what fl.predict yields without to="
            if padded:
                what = "here without those that were repeated, output[batch.weight > 0]"
            raise ValueError(
                f"The output {name or 'of the model'} has {len(array)} rows for a batch of "
                f"{examples} examples, and each row is written with the number of its example. "
                f"Return one row an example, {what}."
            )
