"""Save a state to disk, atomically."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

import fnloop
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.names.keywords import explained
from fnloop.store import tensor_file
from fnloop.store.commit import prepare
from fnloop.store.files import Files, as_path, files_for
from fnloop.store.folders import target_of
from fnloop.store.manifest import ONE_FILE, PIECES
from fnloop.store.pages import detached, put_pages
from fnloop.store.schema import fault_in_path
from fnloop.store.writing import Writing, unsaved
from fnloop.trees.json_codec import as_json, plain
from fnloop.trees.paths import join, tree_items
from fnloop.trees.show import bytes_text
from fnloop.values.context import EMPTY
from fnloop.values.cursor import Cursor
from fnloop.values.merging import numbers
from fnloop.values.parts import Part, parts_of, ranks_of
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@explained
def save(
    state: State,
    folder: str | os.PathLike[str],
    *,
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    memos: Mapping[str, Any] | None = None,
    step: Any = None,
    monitor: Mapping[str, Any] | None = None,
    status: str = "running",
    run: str | None = None,
    mesh: Mesh | None = None,
    files: Files | None = None,
) -> Path:
    """Save `state` as ``<folder>/step-<count>``, where count is the number of batches drawn.

    The checkpoint is a folder with the tensors (``state.safetensors``, by leaf path) and
    ``manifest.json``; there is no pickle in it. It appears under its name when all of it is on the
    disk and has been read back and compared. An existing checkpoint of that name stays until then,
    and is replaced.

    A state that is divided among ranks is saved by all of them together, into one checkpoint: each
    writes its pieces to a file of its own. Any number of ranks can load it, and one process too.

    Args:
        state: The state; its context is left out.
        folder: A folder of checkpoints; created if missing. Or a URL, such as
            ``"s3://bucket/runs/a"``.
        metrics: For the manifest, as numbers: `fl.metrics.Metric` objects or floats by name.
        config: For the manifest; what JSON cannot hold is saved as text.
        data: Description and position of the data, as JSON values.
        memos: Effects' memos by name: JSON values, and a `Page` for what only grows.
        step: The pipeline, saved as text.
        monitor: What `fl.best` compares: ``{"name": ..., "mode": "min" or "max", "value": ...}``.
        status: For the manifest: "running", or how the run ended.
        run: The identity of the run, for the manifest.
        mesh: The ranks that call this together; default those among which the state is divided.
            With it a state that each rank has whole is saved by the first of them.
        files: The file system; default the disk, or fsspec for a URL.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError: `state` is no State, or a leaf is no dense tensor, or a memo no JSON value.
        OSError: The folder cannot be written, the disk is full, or the file read back differs from
            what was written. Existing checkpoints are untouched. Of many ranks all raise it.

    >>> import tempfile
    >>> from fnloop.values.start import start
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(start(torch.nn.Linear(2, 1)), folder, metrics={"loss": 0.5})
    ...     path.name, sorted(file.name for file in path.iterdir())
    ('step-00000000', ['manifest.json', 'state.safetensors'])
    """
    if not isinstance(state, State):
        raise TypeError(
            f"save takes a fnloop State, and was given {type(state).__name__}. For a model's own "
            "state_dict use torch.save; to_module(state) turns a state into a module."
        )
    leaves, parts = leaves_of(state), parts_of(state)
    cursor = Cursor.of(state.cursor)
    memos, pages = detached(memos or {})
    manifest: dict[str, Any] = {
        "format": PIECES if parts else ONE_FILE,
        "fnloop": fnloop.__version__,
        "run": run,
        "python": platform.python_version(),
        **machine_of(state),
        "cursor": cursor._asdict(),
        "step": state.step.tolist(),
        "key": state.key.tolist(),
        "model": str(state.skeleton),
        "pipeline": None if step is None else repr(step),
        "status": status,
        "metrics": numbers(metrics or {}),
        "monitor": monitor,
        "config": plain(config or {}),
        "data": dict(data or {}),
        "memos": {name: _memo(name, memo) for name, memo in memos.items()},
        "pages": {path: page.digest for path, page in pages.items()},
        "structure": dict(_containers(state.slots, ("slots",))),
    }
    if parts:
        manifest["mesh"] = _axes(state)
    place = as_path(folder)
    files = files or files_for(place)
    mesh = mesh.everyone if mesh else ranks_of(state) or Mesh()
    target = target_of(place, cursor.count)

    def begin() -> None:
        prepare(place, files)
        with unsaved(target, mesh):
            put_pages(pages, place, files)
            _check_space(place, _size_of(leaves, parts), files)

    writing = Writing(target, files, mesh if parts else Mesh(), begin)
    if parts:
        writing.pieces({path: (leaf, parts.get(path)) for path, leaf in leaves.items()}, manifest)
    else:
        alone = lambda: writing.whole(leaves, manifest) if mesh.rank == 0 else None  # noqa: E731
        jointly(mesh, f"the save of {target}", alone)
    return target


def machine_of(state: State) -> dict[str, Any]:
    """The settings that must be equal for a resumed run to give the same bits."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": state.step.device.type,
    }


def _axes(state: State) -> dict[str, int]:
    """The ranks among which a state is divided, by axis."""
    mesh = state.params.layout.mesh or Mesh()
    return {"data": mesh.data, **({"tensor": mesh.tensor} if mesh.tensor > 1 else {})}


def leaves_of(state: State) -> dict[str, Tensor]:
    """The tensors to be saved, by leaf path.

    Raises:
        TypeError: A leaf is no dense tensor.
        ValueError: Two leaves have one path, or a path cannot be stored.
    """
    items = tree_items(state.replace(context=EMPTY))
    leaves = {path: tensor_file.check_storable(path, leaf) for path, leaf in items}
    paths = [path for path, _ in items]
    if len(leaves) < len(items):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"Two leaves of the state have the path {twice[0]!r}: usually a dict with keys that "
            'are the same as text, such as 0 and "0".'
        )
    for path in paths:
        if fault := fault_in_path(path):
            raise ValueError(
                f"The state's leaf {path[:80]!r} cannot be saved: its path {fault}. Usually a dict "
                "in a slot has an odd key; give it another."
            )
    return leaves


def _containers(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Paths and kinds of a slot's containers that are no dicts, or are empty."""
    if isinstance(node, Tensor):
        return
    if isinstance(node, Tensors):
        if not node.names:
            yield join(path), "dict"
        return
    children, _, entries, *_ = optree.tree_flatten_one_level(node)
    kinds = {dict: "dict", list: "list", tuple: "tuple", type(None): "none"}
    kind = kinds.get(type(node), "tree")
    if kind != "dict" or not children:
        yield join(path), kind
    for entry, child in zip(entries, children, strict=True):
        yield from _containers(child, (*path, entry))


def _memo(name: str, memo: Any) -> Any:
    try:
        return as_json(memo)
    except TypeError as error:
        raise TypeError(f"The memo of the effect {name!r} cannot be saved: {error}") from None


def _size_of(leaves: Mapping[str, Tensor], parts: Mapping[str, Part]) -> int:
    """The bytes of all files of tensors; without the headers of files of pieces."""
    whole = {path: leaf for path, leaf in leaves.items() if path not in parts}
    return tensor_file.size_of(whole) + sum([part.whole.nbytes for part in parts.values()])


def _check_space(folder: Path, needed: int, files: Files) -> None:
    free = files.free(folder)
    if free is not None and free < needed:
        raise OSError(
            errno.ENOSPC, f"it needs {bytes_text(needed)}, and the disk has {bytes_text(free)} left"
        )
