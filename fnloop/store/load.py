"""Read a state from disk: verified, and in the structure of a state that is there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optree
import torch
from torch import Tensor

from fnloop.store import tensors
from fnloop.store.folders import locate
from fnloop.store.manifest import MANIFEST, TENSORS, CheckpointError, read_manifest
from fnloop.store.tensors import Leaf
from fnloop.trees.equal import table
from fnloop.trees.paths import split, tree_items
from fnloop.trees.show import short
from fnloop.values import State


def load(
    path: str | os.PathLike[str],
    like: State,
    only: str | tuple[str, ...] | None = None,
    strict: bool = True,
) -> State:
    """The saved state, every byte verified, in the structure and on the devices of `like`.

    Leaves go by their paths:

    - A leaf of `like` that the checkpoint lacks keeps the value that it has in `like`: this is how
      a stage that is new in the pipeline gets fresh memory. It is warned of outside the slots.
    - A slot that `like` does not have, or has empty, is kept: callbacks put theirs there later.
      Its tuples, lists and trees come back as dicts of dicts by path, until the stage's ``init``
      gives them their structure.
    - In a slot that `like` does have, memory that it has no place for is dropped, with a warning.

    Args:
        path: A checkpoint, or a folder of checkpoints: then the latest.
        like: Where structure comes from: ``step.init(model)``.
        only: Load these parts alone, and keep the rest of `like`: a field (``"params"``) or the
            beginning of leaf paths (``"slots/ema"``, ``"params/encoder"``), or several.
        strict: Refuse a checkpoint that has parameters or buffers that `like` has not; else they
            are dropped, as is their memory.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or it does not fit `like`.

    >>> import tempfile
    >>> from fnloop.store.save import save
    >>> from fnloop.values import start
    >>> state = start(torch.nn.Linear(2, 1), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(save(state, folder), like=start(torch.nn.Linear(2, 1), seed=1)) == state
    True
    """
    if not isinstance(like, State):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"load takes its structure from a State: like=step.init(model). It was given "
            f"{type(like).__name__}."
        )
    folder = locate(path)
    saved = _saved(folder)
    wanted = _wanted(saved, only, folder)
    there = dict(tree_items(like.replace(context={})))
    kept = {name for name, memory in like.slots.items() if optree.tree_leaves(memory)}
    unknown = [p for p in wanted if p not in there]
    new = [p for p in unknown if split(p)[0] == "slots" and split(p)[1] not in kept]
    _check_fit(folder, {p: wanted[p] for p in wanted if p in there}, there)
    _check_unknown(folder, [p for p in unknown if p not in new], strict)
    _warn_missing(folder, [p for p in there if p not in saved and _chosen(p, only)])

    found: dict[str, Tensor] = {}
    places = {p: there[p].device if p in there else like.step.device for p in wanted}
    read = {p: wanted[p] for p in wanted if p in there or p in new}
    for p, tensor in tensors.read(folder / TENSORS, read):
        placed = tensor if places[p].type == "meta" else tensor.to(places[p])
        found[p] = _laid_out(placed, there[p]) if p in there else placed
    state = _with_leaves(like, found)
    return state.replace(slots={**state.slots, **_nested(new, found, folder)})


def _saved(folder: Path) -> dict[str, Leaf]:
    entries = read_manifest(folder)["leaves"]
    try:
        saved = {path: Leaf.of(entry) for path, entry in entries.items()}
        if all(len(split(path)) > 1 for path in saved if split(path)[0] == "slots"):
            return saved
        raise ValueError("a slot without a name")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} has a bad list of leaves: {error}.") from error


def _chosen(path: str, only: str | tuple[str, ...] | None) -> bool:
    if only is None:
        return True
    parts = (only,) if isinstance(only, str) else only
    return any(path == part or path.startswith((part + "/", part + ".")) for part in parts)


def _wanted(
    saved: Mapping[str, Leaf], only: str | tuple[str, ...] | None, folder: Path
) -> dict[str, Leaf]:
    for part in (only,) if isinstance(only, str) else only or ():
        if not any(_chosen(path, part) for path in saved):
            groups = sorted({_group(path) for path in saved})
            raise CheckpointError(
                f"only={part!r}: {folder} has nothing of that name. It has: {', '.join(groups)}."
            )
    return {path: leaf for path, leaf in saved.items() if _chosen(path, only)}


def _group(path: str) -> str:
    return "/".join(path.split("/")[: 2 if path.startswith("slots/") else 1])


def _check_fit(folder: Path, wanted: Mapping[str, Leaf], there: Mapping[str, Any]) -> None:
    rows = [
        (path, short(torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")), short(there[path]))
        for path, leaf in wanted.items()
        if not isinstance(there[path], Tensor)
        or (leaf.dtype, leaf.shape) != (there[path].dtype, tuple(there[path].shape))
    ]
    if rows:
        raise CheckpointError(
            f"The checkpoint {folder} does not fit `like`:\n"
            + table(("leaf", "checkpoint", "like"), rows)
            + "\nThe usual cause is a model or an optimizer built with other settings than when it "
            'was saved. Load the parts that fit with only=, such as only="params".'
        )


def _check_unknown(folder: Path, unknown: list[str], strict: bool) -> None:
    model = [path for path in unknown if split(path)[0] != "slots"]
    if model and strict:
        raise CheckpointError(
            f"The checkpoint {folder} has parameters or buffers that `like` has not: "
            f"{_some(model)}. The usual cause is another model. To drop them, pass strict=False."
        )
    memory = [path for path in unknown if split(path)[0] == "slots"]
    if memory and strict:
        warnings.warn(
            f"The checkpoint {folder} has memory that `like` has no place for, and it was dropped: "
            f"{_some(memory)}. The usual cause is another optimizer than when it was saved.",
            stacklevel=3,
        )


def _warn_missing(folder: Path, missing: Iterable[str]) -> None:
    model = [path for path in missing if split(path)[0] != "slots"]
    if model:
        warnings.warn(
            f"The checkpoint {folder} lacks {_some(model)}: kept as in `like`. The usual cause is "
            "another model than when it was saved.",
            stacklevel=3,
        )


def _with_leaves(like: State, found: Mapping[str, Tensor]) -> State:
    structure: Any = optree.tree_structure(like)  # pyright: ignore[reportArgumentType]
    return structure.unflatten([found.get(path, leaf) for path, leaf in tree_items(like)])


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """In the memory layout of `like`: with another, kernels round differently."""
    if tensor.stride() == like.stride() or like.is_meta:
        return tensor
    return torch.empty_like(like).copy_(tensor)


def _nested(paths: list[str], found: Mapping[str, Tensor], folder: Path) -> dict[str, Any]:
    slots: dict[str, Any] = {}
    for path in paths:
        *parents, last = split(path)[1:]
        node = slots
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last in node:
            raise CheckpointError(f"{folder / MANIFEST}: {path!r} has leaves below itself.")
        node[last] = found[path]
    return slots


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:8])
    return shown if len(paths) <= 8 else f"{shown} and {len(paths) - 8} more"
