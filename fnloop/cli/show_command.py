"""``fnloop show``: the contents of checkpoints, without their recipes."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from fnloop.cli.messages import printable, shown, usage, value_text
from fnloop.cli.run_report import columns
from fnloop.cli.runs import checkpoint_folders, newest_of
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.files import files_for
from fnloop.store.folders import best, listing, meant
from fnloop.store.leaves import files_in, saved_from
from fnloop.store.manifest import MANIFEST, read_manifest, standing
from fnloop.store.read import leaves_in, read_values
from fnloop.trees.equal import table
from fnloop.trees.paths import split
from fnloop.trees.show import bytes_text, tree_show
from fnloop.values.regions import Region


def run_show(arguments: Namespace) -> int:
    """``fnloop show CHECKPOINT_OR_RUN``."""
    path = Path(arguments.path)
    checkpoint = locate(path)
    if checkpoint.resolve() != path.resolve():
        print(f"{printable(_checkpoints(path))}\n\n{shown(checkpoint)}")
    manifest = read_manifest(checkpoint)
    print(printable(_about(manifest)))
    leaves = saved_from(manifest)
    state = {n: torch.empty(f.shape, dtype=f.dtype, device="meta") for n, f in leaves.items()}
    print(f"\n{tree_show(_nested(state))}")
    return 0


def locate(path: Path) -> Path:
    """The checkpoint at `path`, or the latest of the run at `path`.

    Raises:
        Problem: There is none.
    """
    if (path / MANIFEST).is_file():
        return path
    newest = newest_of(checkpoint_folders(path))
    if newest is not None:
        return newest
    if not path.exists():
        hint = meant(path, files_for(path))
        raise usage(
            f"There is no {shown(path)}; expected a checkpoint, or the folder of a run.{hint}"
        )
    raise usage(f"{shown(path)} has no checkpoint in it, and is none.")


def _checkpoints(run: Path) -> str:
    rows: list[tuple[str, ...]] = []
    for folder in checkpoint_folders(run):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged ones have their own rows
            favourite = best(folder)
        for count, path in sorted(listing(folder).items()):
            try:
                manifest = read_manifest(path)
            except CheckpointError as error:
                why = str(error).removeprefix(f"{path}/")
                rows.append((shown(path), "", str(count), "", "", f"damaged: {why}"))
                continue
            (_, epoch, drawn), monitor = standing(manifest), manifest["monitor"]
            score = f"{monitor['name']} {monitor['value']:.4g}" if monitor else ""
            note = "best" if path == favourite else ""
            size = bytes_text(sum(files_in(manifest).values()))
            rows.append((shown(path), str(epoch), str(drawn), size, score, note))
    return table(("checkpoint", "epoch", "batches", "size", "monitored", ""), rows)


def _about(manifest: Mapping[str, Any]) -> str:
    cursor = manifest["cursor"]
    rows = [
        ("model", manifest["model"]),
        ("status", manifest["status"]),
        ("cursor", f"epoch {cursor['epoch']}, index {cursor['index']}, {cursor['count']} batches"),
        ("step", str(manifest["step"])),
        ("size", _size(manifest)),
        ("versions", f"fnloop {manifest['fnloop']}, torch {manifest['torch']}"),
        ("machine", f"{manifest['device']}, {_threads(manifest['threads'])}"),
    ]
    about = manifest["data"].get("about")
    parts = {"metrics": manifest["metrics"], "config": manifest["config"], "data": about}
    for part, entries in parts.items():
        if entries and isinstance(entries, dict):
            text = ", ".join(f"{name}={cell(entries, name)}" for name in entries)
            rows.append((part, ("\n" + " " * 10).join(textwrap.wrap(text, 90))))
    text = columns(rows)
    return f"{text}\n\n{manifest['pipeline']}" if manifest["pipeline"] else text


def _size(manifest: Mapping[str, Any]) -> str:
    sizes = files_in(manifest)
    size = bytes_text(sum(sizes.values()))
    if "mesh" not in manifest:
        return size
    mesh = manifest["mesh"]
    axes = ", ".join([f"{axis}={ranks}" for axis, ranks in mesh.items()])
    ranks = f"{math.prod(mesh.values())} ranks" + (f" ({axes})" if len(mesh) > 1 else "")
    return f"{size}, divided among {ranks} in {len(sizes)} files"


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def all_leaves(path: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of a checkpoint by leaf path, verified."""
    saved = leaves_in(manifest, path)
    wanted = {name: Region.all(leaf.shape) for name, leaf in saved.items()}
    return dict(read_values(files_for(path), path, saved, wanted))


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by path as nested dicts."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = split(path)
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def cell(entries: Mapping[str, Any], name: str) -> str:
    """An entry of a manifest as text; ``-`` if it is missing."""
    if name not in entries:
        return "-"
    value = entries[name]
    return f"{value:.4g}" if isinstance(value, float) else value_text(value)
