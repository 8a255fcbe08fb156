"""``predict``: outputs of the model, yielded or written to files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, overload

from fnloop.data.batches import START
from fnloop.data.bundle import Data
from fnloop.data.divided import refuse_divided
from fnloop.data.iterables import is_once
from fnloop.data.readers import check_part
from fnloop.distributed.gates import RankError, first_difference, gate, leave
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.loop.each_batch import outputs_of, whole
from fnloop.loop.ranks import SAME_DATA
from fnloop.loop.whose_predictions import about_predictions, check_first, check_same
from fnloop.names.keywords import explained
from fnloop.stages.functions import as_loss
from fnloop.store.batch_files import BatchFiles
from fnloop.store.columns import Columns, as_columns, named
from fnloop.store.predictions import Predictions
from fnloop.values.cursor import Cursor
from fnloop.values.micro import Micro
from fnloop.values.padded import Padded
from fnloop.values.rows import UnclearRows, rows
from fnloop.values.stacked import members_of, side_by_side
from fnloop.values.state import State

_log = logging.getLogger("fnloop")


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

    The model is in evaluation mode, without gradients. For each batch its buffers are those of the
    state, and what it writes to them (a hidden state) is dropped, as in `fl.evaluate`.

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
            `mesh` is given without `to`. Or averaged parameters have no statistics of BatchNorm
            (`fl.refresh_batchnorm`).
        FileExistsError: Others are there: of other weights, other data, another function; or they
            are being written.

    >>> import tempfile, numpy as np, torch, fnloop as fl
    >>> state = fl.pipe(lambda m, x: m(x).mean(), fl.grad).init(torch.nn.Linear(1, 2))
    >>> data = fl.Batches(torch.zeros(5, 1), 2, shuffle=False)
    >>> [len(y) for y in predict(lambda m, x: m(x), state, data)]
    [2, 2, 1]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     place = predict(lambda m, x: m(x), state, data, to=f"{folder}/outputs")
    ...     np.load(place / "output.npy").shape, np.load(place / "index.npy").tolist()
    ((5, 2), [0, 1, 2, 3, 4])
    """
    who = as_loss(fn, "fn(model, batch)")
    if data is None:
        raise TypeError("predict(data=...) takes the data to predict for, got None.")
    check_part(data, "data")
    if to is None and mesh is not None:
        raise ValueError(
            "predict(..., mesh=) divides what is written among ranks: give to=, a place for it. "
            "Without to= every rank is given all outputs."
        )
    if to is None:
        return _outputs(who, state, data, params)
    return _written(who, state, data, params, to, mesh or Mesh())


def _outputs(fn: Any, state: Any, data: Any, params: str | None) -> Iterator[Any]:
    if isinstance(data, Data):
        data = data.only("predict", "predict")
    state = whole(state, "predict")
    for _, _, output in outputs_of(fn, state, data, params, "predict"):
        yield side_by_side(output, state)


def _written(fn: Any, state: Any, data: Any, params: str | None, to: Any, mesh: Mesh) -> Path:
    if isinstance(data, Data):
        data = data.only("predict", "predict")
    state, mesh = whole(state, "predict"), mesh.everyone
    if members_of(state) is not None:
        raise ValueError(
            "predict(..., to=) writes the outputs of one model, and this is the state of a "
            "population: predict with fl.member(state, i)."
        )
    share = (mesh.rank, mesh.data)
    try:
        place = Predictions(to)
        if mesh.data > 1:
            refuse_divided(data)
        about = about_predictions(fn, state, data, params)
    except Exception as error:
        leave(mesh, error)
        raise
    gate(mesh, "predictions")
    if difference := first_difference(mesh, [f"{name} {value}" for name, value in about.items()]):
        raise RankError(f"The ranks are to predict different things: {difference}. {SAME_DATA}")

    def outputs(start: Cursor = START, share: tuple[int, int] = share) -> Iterator[Any]:
        found = outputs_of(fn, state, data, params, "predict", share=share, start=start)
        return ((after, batch, output) for after, batch, (output,) in found)

    def own() -> bool:
        there = place.about()
        if there is not None:
            check_same(place.target, about, there)
            place.sweep()
            check_first(place.target, next(outputs(share=(0, 1))), place.first)
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
        check_same(place.work, about, part.about)
        check_first(place.work, next(outputs()), lambda rows: part.read(0, rows))
        _log.warning("%s: going on behind %d batches", part.folder, part.batches)
    if part.cursor.epoch:
        return
    for after, batch, output in outputs(start=part.cursor):
        columns = as_columns(output)
        _check_rows(batch, columns)
        place.add(part, named(columns), after)


def _check_rows(batch: Any, columns: Columns) -> None:
    try:
        examples = _examples(batch)
    except UnclearRows:
        return
    for name, array in columns.items():
        if examples is not None and len(array) != examples:
            what = "or write what fl.predict yields without to="
            if isinstance(batch, Padded):
                what = "here without those that were repeated, output[batch.weight > 0]"
            if isinstance(batch, Micro):
                what = "here of all micro-batches, torch.cat([f(part) for part in batch.parts])"
            raise ValueError(
                f"The output {name or 'of the model'} has {len(array)} rows for a batch of "
                f"{examples} examples, and each row is written with the number of its example. "
                f"Return one row an example, {what}."
            )


def _examples(batch: Any) -> int | None:
    """The examples that a batch is of; None if it has only single values."""
    if isinstance(batch, Micro):
        found = list(map(_examples, batch.parts))
        return None if None in found else sum(filter(None, found))
    return int(batch.weight.count_nonzero()) if isinstance(batch, Padded) else rows(batch)
