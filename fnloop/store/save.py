"""Save a state to disk, atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import uuid
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

import fnloop
from fnloop.names.keywords import explained
from fnloop.store import tensor_file
from fnloop.store.checkpoint_errors import DamagedError
from fnloop.store.commit import commit, prepare, remove_tree, temporary_of
from fnloop.store.files import Files, as_path, files_for, reason_of, written
from fnloop.store.folders import target_of
from fnloop.store.manifest import FORMAT, TENSORS, put_manifest, read_manifest
from fnloop.store.pages import detached, put_pages
from fnloop.store.schema import fault_in_path
from fnloop.trees.json_codec import as_json, plain
from fnloop.trees.paths import join, tree_items
from fnloop.trees.show import bytes_text
from fnloop.values.context import EMPTY
from fnloop.values.cursor import Cursor
from fnloop.values.merging import numbers
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
    files: Files | None = None,
) -> Path:
    """Save `state` as ``<folder>/step-<count>``, where count is the number of batches drawn.

    The checkpoint is a folder with the tensors (``state.safetensors``, by leaf path) and
    ``manifest.json``; there is no pickle in it. It appears under its name when all of it is on the
    disk and has been read back and compared. An existing checkpoint of that name stays until then,
    and is replaced.

    Args:
        state: The state; its context is left out.
        folder: A folder of checkpoints; created if missing. Or a URL, such as
            ``"s3://bucket/runs/a"``.
        metrics: For the manifest, as numbers: `fl.Metric` objects or floats by name.
        config: For the manifest; what JSON cannot hold is saved as text.
        data: Description and position of the data, as JSON values.
        memos: Effects' memos by name: JSON values, and a `Page` for what only grows.
        step: The pipeline, saved as text.
        monitor: What `fl.best` compares: ``{"name": ..., "mode": "min" or "max", "value": ...}``.
        status: For the manifest: "running", or how the run ended.
        run: The identity of the run, for the manifest.
        files: The file system; default the disk, or fsspec for a URL.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError: `state` is no State, or a leaf is no dense tensor, or a memo no JSON value.
        OSError: The folder cannot be written, the disk is full, or the file read back differs from
            what was written. Existing checkpoints are untouched.

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
    leaves = leaves_of(state)
    cursor = Cursor.of(state.cursor)
    memos, pages = detached(memos or {})
    manifest: dict[str, Any] = {
        "format": FORMAT,
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
    place = as_path(folder)
    files = files or files_for(place)
    prepare(place, files)
    target = target_of(place, cursor.count)
    try:
        put_pages(pages, place, files)
        _check_space(place, tensor_file.size_of(leaves), files)
        (_rename_into if files.renames else _upload_to)(target, leaves, manifest, files)
    except OSError as error:
        raise OSError(
            error.errno or errno.EIO,
            f"The checkpoint {target} was not saved ({reason_of(error)}); those saved "
            "before are untouched",
        ) from error
    return target


def machine_of(state: State) -> dict[str, Any]:
    """The settings that must be equal for a resumed run to give the same bits."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": state.step.device.type,
    }


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


def _rename_into(
    target: Path, leaves: Mapping[str, Tensor], manifest: dict[str, Any], files: Files
) -> None:
    """Write under a hidden name, read back, and rename."""
    temporary = temporary_of(target)
    try:
        files.make(temporary)
        _write(temporary / TENSORS, leaves, files)
        put_manifest(
            temporary, _with(manifest, TENSORS, _read_again(temporary, leaves, files)), files
        )
        files.sync(temporary)
        _compare_manifest(temporary, files)
        commit(temporary, target, files)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_tree(temporary, files)
        raise


def _upload_to(
    target: Path, leaves: Mapping[str, Tensor], manifest: dict[str, Any], files: Files
) -> None:
    """Write the tensors under a new name, then the manifest that names them."""
    files.make(target)
    before = [name for name in files.names(target) if name.endswith(".safetensors")]
    name = f"state-{uuid.uuid4().hex[:8]}.safetensors"
    _write(target / name, leaves, files)
    put_manifest(target, _with(manifest, name, tensor_file.digests(leaves)), files)
    with contextlib.suppress(OSError):  # readers ignore it, and the next run tries again
        for name in before:
            files.remove(target / name)


def _write(file: Path, leaves: Mapping[str, Tensor], files: Files) -> None:
    with written(files, file) as output:
        tensor_file.write(output, leaves)


def _read_again(
    folder: Path, leaves: Mapping[str, Tensor], files: Files
) -> dict[str, tensor_file.Leaf]:
    """Entries for the manifest, with digests of the bytes read back from the disk."""
    with _as_disk_error():
        return tensor_file.check(files, folder / TENSORS, leaves)


def _compare_manifest(folder: Path, files: Files) -> None:
    with _as_disk_error():
        read_manifest(folder, files=files)


@contextlib.contextmanager
def _as_disk_error() -> Generator[None]:
    try:
        yield
    except DamagedError as error:
        why = f"what was read again is not what was written: {error}"
        raise OSError(errno.EIO, why) from error


def _with(
    manifest: dict[str, Any], name: str, leaves: Mapping[str, tensor_file.Leaf]
) -> dict[str, Any]:
    entries = {path: leaf.entry() for path, leaf in leaves.items()}
    return {**manifest, "file": name, "bytes": tensor_file.bytes_of(leaves), "leaves": entries}


def _containers(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Paths and kinds of a slot's containers that are no dicts, or are empty."""
    if isinstance(node, Tensor):
        return
    if isinstance(node, Tensors):
        node = dict(node.items())
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


def _check_space(folder: Path, needed: int, files: Files) -> None:
    free = files.free(folder)
    if free is not None and free < needed:
        raise OSError(
            errno.ENOSPC, f"it needs {bytes_text(needed)}, and the disk has {bytes_text(free)} left"
        )
