"""Load a state from disk: verified, and in the structure of a given state."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import optree
import torch
from torch import Tensor

from fnloop._torch.inference import outside_inference
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.names.arguments import Wanted
from fnloop.names.keywords import explained
from fnloop.store.checkpoint_errors import (
    CheckpointError,
    DamagedError,
    UnfinishedError,
    UnfitError,
)
from fnloop.store.files import Files, as_path, files_for
from fnloop.store.folders import (
    is_checkpoint,
    is_folder,
    is_there,
    listing,
    nothing_in,
    stand_in,
)
from fnloop.store.fresh import refreshed
from fnloop.store.leaves import Saved
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.store.read import leaves_in, read_values
from fnloop.trees.equal import table
from fnloop.trees.paths import map_with_path, split, tree_items
from fnloop.trees.show import bytes_text, short
from fnloop.values.context import EMPTY
from fnloop.values.parts import Part, parts_of, ranks_of
from fnloop.values.regions import Region
from fnloop.values.state import State


class Loaded(NamedTuple):
    """A state, and where it was found.

    Attributes:
        state: The state.
        path: The checkpoint.
        manifest: Its manifest.
        skipped: Newer checkpoints that are damaged, each with the reason.
    """

    state: State
    path: Path
    manifest: dict[str, Any]
    skipped: tuple[tuple[Path, str], ...] = ()


def _is_path_or_none(value: Any) -> bool:
    """None is what `fl.best` gives where there is no checkpoint, which `load` explains."""
    return value is None or isinstance(value, (str, os.PathLike)) or hasattr(value, "joinpath")


@explained
def load(
    path: Annotated[str | os.PathLike[str], Wanted("a path", _is_path_or_none)],
    like: State,
    only: str | tuple[str, ...] | None = None,
    *,
    prune: bool = False,
    mesh: Mesh | None = None,
    files: Files | None = None,
) -> State:
    """The saved state, every byte verified, in the structure and on the devices of `like`.

    Leaves are matched by path:

    - A leaf of `like` that the checkpoint lacks keeps its value from `like`. So a new stage in the
      pipeline gets fresh memory, and so does a parameter that was frozen until now; copies of the
      parameters, such as an average, are made of the loaded ones. A parameter or a buffer that is
      missing gives a warning.
    - A slot that `like` does not have, or has empty, is loaded: callbacks add theirs later. Its
      tuples, lists and trees are nested dicts until the stage's ``init`` restores their structure.
    - In a slot that `like` does have, leaves that it lacks are dropped, with a warning.
    - Parameters and buffers that `like` does not have are an error, unless `prune` is true.

    It does not matter how many ranks have saved it, nor how they had divided it. If `like` is
    divided among ranks, all of them call this, take the same checkpoint, and each reads its pieces.

    Args:
        path: A checkpoint; or a folder of checkpoints, for its newest undamaged one. Damaged ones
            are skipped, with a warning that says what is wrong.
        like: A state of the expected structure: ``step.init(model)``.
        only: Load only these parts, and keep the rest of `like`: a field (``"params"``), the
            beginning of leaf paths (``"slots/ema"``, ``"params/encoder"``), or several.
        prune: Drop everything that does not fit `like`, with a warning: leaves that it lacks, or
            has with another shape or dtype, such as the head of another task.
        mesh: The ranks that call this together, to take the same checkpoint; default those among
            which `like` is divided.
        files: The file system; default the disk, or fsspec for a URL.

    Raises:
        CheckpointError: There is no checkpoint, it is damaged, or it does not fit `like`. Or it
            cannot be read now (EIO, EACCES, too many open files, a store that does not answer),
            though it was tried again for some seconds: that is no damage, so no older one is
            loaded in its place. This error is an ``OSError`` too; and that for a path without a
            checkpoint a ``FileNotFoundError``, which names a folder of a similar name. What happens
            on one of many ranks is raised on all.

    >>> import tempfile
    >>> from fnloop import save
    >>> from fnloop.values.start import start
    >>> state = start(torch.nn.Linear(2, 1), seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     load(save(state, folder), like=start(torch.nn.Linear(2, 1), seed=1)) == state
    True
    """
    if path is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise CheckpointError(
            "load takes the path of a checkpoint, and got None: fl.best and fl.latest give None "
            "where there is no checkpoint."
        )
    place = as_path(path)
    files = files or files_for(place)
    found = load_at(place, like, files, only, prune, mesh)
    if found is None:
        raise nothing_in(place, files)
    for skipped, why in found.skipped:
        warnings.warn(f"The checkpoint {skipped} was skipped: {why}", stacklevel=2)
    return found.state


def load_at(
    place: Path,
    like: State,
    files: Files,
    only: str | tuple[str, ...] | None = None,
    prune: bool = False,
    mesh: Mesh | None = None,
) -> Loaded | None:
    """The checkpoint at `place`, or the newest undamaged one in it; None if it has none.

    The ranks of `mesh` call it together. Where the first one finds checkpoints is where all look;
    one that any of them finds damaged is passed over by all.

    Raises:
        CheckpointError: `place` is a file; the checkpoint is damaged or does not fit; or all in the
            folder are damaged, or the newest does not fit or cannot be read now.
    """
    if not isinstance(like, State):
        raise TypeError(
            f"load takes its structure from a State: like=step.init(model). It was given "
            f"{type(like).__name__}."
        )
    mesh = mesh.everyone if mesh else ranks_of(like) or Mesh()

    def load_one(path: Path) -> Loaded:
        with outside_inference():
            what = f"the load of {path}"
            return jointly(mesh, what, lambda: _load(path, like, files, only, prune))

    first = mesh.rank == 0
    own = jointly(mesh, f"the search for {place}", lambda: _found(place, files) if first else [])
    found = mesh.exchange(own)[0]
    if not isinstance(found, list):  # a Path, or a UPath
        return load_one(found)
    skipped: list[tuple[Path, str]] = []
    for path in found:
        try:
            return load_one(path)._replace(skipped=tuple(skipped))
        except UnfinishedError:
            continue
        except DamagedError as error:
            skipped.append((path, str(error)))
    if not skipped:
        return None
    reasons = "\n".join(f"  {path.name}: {why}" for path, why in skipped)
    raise CheckpointError(
        f"No checkpoint in {place} is whole:\n{reasons}\nPut one back from a copy, or begin "
        "anew in another folder."
    )


def _found(place: Path, files: Files) -> Path | list[Path]:
    """The checkpoint at `place`, or all of those in it, newest first."""
    if is_checkpoint(place, files):
        place = stand_in(place, files)
        if not is_there(place / MANIFEST, files):
            raise nothing_in(place, files)
        return place
    there = [path for _, path in sorted(listing(place, files).items(), reverse=True)]
    if not there and is_there(place, files) and not is_folder(place, files):
        raise nothing_in(place, files)
    return there


def _load(
    folder: Path,
    like: State,
    files: Files,
    only: str | tuple[str, ...] | None,
    prune: bool,
) -> Loaded:
    """One checkpoint; see `load`. Of a state that is divided, this rank's pieces."""
    manifest = read_manifest(folder, files=files)
    saved = leaves_in(manifest, folder)
    wanted = _wanted(saved, only, folder)
    own, parts = dict(tree_items(like.replace(context=EMPTY))), parts_of(like)
    there = {**own, **{path: part.whole for path, part in parts.items()}}
    kept = {name for name, memory in like.slots.items() if optree.tree_leaves(memory)}
    unknown = [p for p in wanted if p not in there]
    new = [p for p in unknown if split(p)[0] == "slots" and split(p)[1] not in kept and not prune]
    misfits = _check_fit(folder, {p: wanted[p] for p in wanted if p in there}, there, prune)
    _check_unknown(folder, [p for p in unknown if p not in new], prune)
    _check_room(folder, {p: wanted[p] for p in new}, there)
    _warn_missing(folder, [p for p in there if p not in saved and _chosen(p, only)])

    found: dict[str, Tensor] = {}
    chosen = {p for p in wanted if p in there and p not in misfits} | set(new)
    regions = {p: _region(saved[p], parts.get(p)) for p in chosen}
    for p, tensor in read_values(files, folder, saved, regions):
        device = own[p].device if p in own else like.step.device
        placed = tensor if device.type == "meta" else tensor.to(device)
        placed = parts[p].kept(placed, own[p]) if p in parts else placed
        found[p] = _laid_out(placed, own[p]) if p in own else placed
    fresh = [p for p in own if split(p)[0] == "slots" and p not in found]
    state = refreshed(like, _with_leaves(like, found), fresh)
    slots = {**state.slots, **_nested(new, found, folder)}
    return Loaded(state.replace(slots=slots), folder, manifest)


def _region(saved: Saved, part: Part | None) -> Region:
    """The values that this rank has: all, or those of its part."""
    return part.region if part else Region.all(saved.shape)


def _chosen(path: str, only: str | tuple[str, ...] | None) -> bool:
    if only is None:
        return True
    parts = (only,) if isinstance(only, str) else only
    ways = {path, path.replace("~1", "/")}  # the slot of a part, "generator/ema"
    return any(w == part or w.startswith((part + "/", part + ".")) for part in parts for w in ways)


def _wanted(
    saved: Mapping[str, Saved], only: str | tuple[str, ...] | None, folder: Path
) -> dict[str, Saved]:
    if only == ():
        raise ValueError("load(only=()) would load nothing; leave it out to load everything.")
    for part in (only,) if isinstance(only, str) else only or ():
        if not any(_chosen(path, part) for path in saved):
            groups = sorted({_group(path) for path in saved})
            raise CheckpointError(
                f"only={part!r}: {folder} has nothing of that name. It has: {_some(groups)}."
            )
    return {path: leaf for path, leaf in saved.items() if _chosen(path, only)}


def _group(path: str) -> str:
    return "/".join(path.split("/")[: 2 if path.startswith("slots/") else 1])


def _check_fit(
    folder: Path, wanted: Mapping[str, Saved], there: Mapping[str, Any], prune: bool
) -> set[str]:
    """The leaves that do not fit; an error without `prune`."""
    rows = [
        (path, short(torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")), short(there[path]))
        for path, leaf in wanted.items()
        if not isinstance(there[path], Tensor)
        or (leaf.dtype, leaf.shape) != (there[path].dtype, tuple(there[path].shape))
    ]
    told = table(("leaf", "checkpoint", "like"), rows)
    if rows and not prune:
        raise UnfitError(
            f"The checkpoint {folder} does not fit `like`:\n{told}\nThe usual cause is a model or "
            "an optimizer built with other settings than when it was saved.",
            f"To keep those of `like` and load the rest, take the state of {_pruning(folder)}; to "
            "load a part alone, give fl.load only=.",
        )
    if rows:
        warnings.warn(
            f"The checkpoint {folder} has leaves that do not fit `like`, and were not loaded:\n"
            f"{told}",
            stacklevel=7,
        )
    return {path for path, _, _ in rows}


def _check_unknown(folder: Path, unknown: list[str], prune: bool) -> None:
    model = [path for path in unknown if split(path)[0] != "slots"]
    if model and not prune:
        raise UnfitError(
            f"The checkpoint {folder} has parameters or buffers that `like` has not: "
            f"{_some(model)}. The usual cause is another model.",
            f"To drop them, take the state of {_pruning(folder)}.",
        )
    if unknown:
        usual = "model" if model else "optimizer"
        warnings.warn(
            f"The checkpoint {folder} has leaves that `like` has no place for, and they were "
            f"dropped: {_some(unknown)}. The usual cause is another {usual} than when it was "
            "saved.",
            stacklevel=7,
        )


def _pruning(folder: Path) -> str:
    return f"fl.load({str(folder)!r}, like=state, prune=True)"


def _check_room(folder: Path, new: Mapping[str, Saved], there: Mapping[str, Any]) -> None:
    """Refuse slots unknown to `like` that are far larger than `like` itself."""
    size = sum(leaf.nbytes for leaf in new.values())
    own = sum(leaf.nbytes for leaf in there.values() if isinstance(leaf, Tensor))
    if size > 16 * own + 256 * 2**20:
        slots = _some(sorted({_group(path) for path in new}))
        raise CheckpointError(
            f"The checkpoint {folder} has {bytes_text(size)} in slots that `like` does not have "
            f"({slots}), and all of `like` has {bytes_text(own)}. Pass a `like` that has them "
            "(step.init(model)), or choose parts with fl.load(..., only=...)."
        )


def _warn_missing(folder: Path, missing: Iterable[str]) -> None:
    model = [path for path in missing if split(path)[0] != "slots"]
    if model:
        warnings.warn(
            f"The checkpoint {folder} lacks {_some(model)}: kept as in `like`. The usual cause is "
            "another model than when it was saved.",
            stacklevel=7,
        )


def _with_leaves(like: State, found: Mapping[str, Tensor]) -> State:
    return map_with_path(lambda path, leaf: found.get(path, leaf), like)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` with the strides of `like`: with others, kernels round differently."""
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
            raise DamagedError(f"{folder / MANIFEST}: {path!r} has leaves below itself.")
        node[last] = found[path]
    return slots


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:8])
    return shown if len(paths) <= 8 else f"{shown} and {len(paths) - 8} more"
