"""Write a state to disk: all of it, or nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fnloop
from fnloop.store import tensors
from fnloop.store.folders import commit, prepare, target_of, temporary_of
from fnloop.store.manifest import FORMAT, TENSORS, encode, sync, write_manifest
from fnloop.trees.paths import tree_items
from fnloop.trees.show import bytes_text
from fnloop.values import Cursor, State, numbers


def save(
    state: State,
    folder: str | os.PathLike[str],
    *,
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    memos: Mapping[str, Any] | None = None,
    step: Any = None,
    monitor: Mapping[str, Any] | None = None,
    status: str = "running",
) -> Path:
    """Save `state` as ``<folder>/step-<count>``, count being the batches ever drawn.

    The checkpoint is a folder with the tensors (``state.safetensors``, by leaf path) and
    ``manifest.json``; there is no pickle in it. It appears under its name when all of it is on
    the disk; one that is there under this name is replaced, and stays until then.

    Args:
        state: What to save; its context is left out.
        folder: A folder of checkpoints; it is made if it is missing.
        metrics: Noted in the manifest, as numbers: `fl.Metric` objects or floats by name.
        config: Noted in the manifest; what JSON cannot hold is noted as text.
        memos: Effects' memos by name: JSON values.
        step: The pipeline, noted as text.
        monitor: What `fl.best` compares: ``{"name": ..., "mode": "min" or "max", "value": ...}``.
        status: Noted in the manifest: "running", or how the run ended.

    Returns:
        The checkpoint's folder.

    Raises:
        TypeError: `state` is no State, or a leaf is no dense tensor, or a memo no JSON value.
        OSError: The folder cannot be written, or the disk is full. What was there is untouched.

    >>> import tempfile
    >>> from fnloop.values import start
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(start(torch.nn.Linear(2, 1)), folder, metrics={"loss": 0.5})
    ...     path.name, sorted(file.name for file in path.iterdir())
    ('step-00000000', ['manifest.json', 'state.safetensors'])
    """
    if not isinstance(state, State):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"save takes a fnloop State, and was given {type(state).__name__}. For a model's own "
            "state_dict use torch.save; to_module(state) turns a state into a module."
        )
    leaves = leaves_of(state)
    cursor = Cursor.of(state.cursor)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "fnloop": fnloop.__version__,
        "torch": str(torch.__version__),
        "cursor": cursor._asdict(),
        "step": state.step.tolist(),
        "model": str(state.skeleton),
        "pipeline": None if step is None else repr(step),
        "status": status,
        "metrics": numbers(metrics or {}),
        "monitor": monitor,
        "config": encode(config or {}, other=str),
        "memos": {name: _memo(name, memo) for name, memo in (memos or {}).items()},
    }
    folder = Path(folder)
    prepare(folder)
    target = target_of(folder, cursor.count)
    temporary = temporary_of(target)
    try:
        _check_space(folder, tensors.size_of(leaves))
        temporary.mkdir()
        with (temporary / TENSORS).open("wb") as file:
            written = tensors.write(file, leaves)
            file.flush()
            sync(file.fileno())
        manifest["bytes"] = (temporary / TENSORS).stat().st_size
        manifest["leaves"] = {path: leaf.entry() for path, leaf in written.items()}
        write_manifest(temporary, manifest)
        commit(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            error.errno or errno.EIO,
            f"The checkpoint {target} was not saved ({error.strerror or error}); those saved "
            "before are untouched",
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def leaves_of(state: State) -> dict[str, Tensor]:
    """The tensors to be saved, by leaf path.

    Raises:
        TypeError: A leaf is no dense tensor.
        ValueError: Two leaves have one path.
    """
    items = tree_items(state.replace(context={}))
    leaves = {path: tensors.check_storable(path, leaf) for path, leaf in items}
    if len(leaves) < len(items):
        paths = [path for path, _ in items]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"Two leaves of the state have the path {twice[0]!r}: usually a dict with keys that "
            'are the same as text, such as 0 and "0".'
        )
    return leaves


def _memo(name: str, memo: Any) -> Any:
    try:
        return encode(memo)
    except TypeError as error:
        raise TypeError(f"The memo of the effect {name!r} cannot be saved: {error}") from None


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"it needs {bytes_text(needed)}, and the disk has {bytes_text(free)} left"
        )
