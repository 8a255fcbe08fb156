"""``fnloop show``: the contents of checkpoints, without their recipes."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor

from fnloop.cli.config import placed
from fnloop.cli.messages import printable, shown, usage, value_text
from fnloop.cli.run_report import columns
from fnloop.cli.runs import (
    checkpoint_folders,
    member_in_checkpoint,
    monitored,
    newest_of,
    run_of,
)
from fnloop.cli.sweep_folder import sweep_in
from fnloop.cli.sweep_members import metrics_of
from fnloop.effects.spans import spans
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
from fnloop.values.stacked import is_by_member


def run_show(arguments: Namespace) -> int:
    """``fnloop show CHECKPOINT_OR_RUN``."""
    path = Path(arguments.path)
    checkpoint, manifest, member, about = opened(path, getattr(arguments, "member", None))
    if checkpoint.resolve() != path.resolve():
        print(f"{printable(_checkpoints(path, member))}\n\n{shown(checkpoint)}")
    if about:
        print(about)
    print(printable(_about(manifest, member)))
    leaves = saved_from(manifest)
    state = {n: torch.empty(f.shape, dtype=f.dtype, device="meta") for n, f in leaves.items()}
    if member is not None:
        state = of_member(state, member)
    print(f"\n{tree_show(_nested(state))}")
    return 0


class Opened(NamedTuple):
    """A checkpoint, or a member of the population in it.

    Attributes:
        checkpoint: Its folder.
        manifest: What it says; of a member, with the configuration of that.
        member: The number of the member, if one was asked for.
        about: Of a member of a sweep: which one it is, as a line.
    """

    checkpoint: Path
    manifest: dict[str, Any]
    member: int | None
    about: str


def opened(path: Path, asked: str | None) -> Opened:
    """The checkpoint at `path`, or the latest of the run at `path`.

    Args:
        path: Of a checkpoint or a run.
        asked: What is given for ``--member``; None for all members together.

    Raises:
        Problem: There is none, or no such member.
    """
    checkpoint = locate(path)
    manifest = read_manifest(checkpoint)
    if asked is None:
        return Opened(checkpoint, manifest, None, "")
    run = run_of(path)
    sweep = None if run is None else sweep_in(run)
    member = member_in_checkpoint(checkpoint, run, sweep, asked)
    if sweep is None or member is None:
        return Opened(checkpoint, manifest, member, "")
    own = {**manifest["config"], **sweep.numbers_of(member)}
    config = placed(own, sweep.place(member)[0])
    return Opened(checkpoint, {**manifest, "config": config}, member, sweep.about(member))


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


def _checkpoints(run: Path, member: int | None) -> str:
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
            score = f"{monitor['name']} {monitored(manifest, member):.4g}" if monitor else ""
            note = "best" if path == favourite and member is None else ""
            size = bytes_text(sum(files_in(manifest).values()))
            rows.append((shown(path), str(epoch), str(drawn), size, score, note))
    return table(("checkpoint", "epoch", "batches", "size", "monitored", ""), rows)


def _about(manifest: Mapping[str, Any], member: int | None) -> str:
    cursor, step, metrics = manifest["cursor"], manifest["step"], manifest["metrics"]
    rows = [("model", manifest["model"])]
    if member is not None:
        step, metrics = step[member], metrics_of(metrics, member)
    elif isinstance(step, list):
        rows.append(("members", f"{len(step)}; one of them: --member I, or --member best"))
    rows += [
        ("status", manifest["status"]),
        ("cursor", f"epoch {cursor['epoch']}, index {cursor['index']}, {cursor['count']} batches"),
        ("step", _steps(step)),
        ("size", _size(manifest)),
        ("versions", f"fnloop {manifest['fnloop']}, torch {manifest['torch']}"),
        ("machine", f"{manifest['device']}, {_threads(manifest['threads'])}"),
    ]
    about = manifest["data"].get("about")
    parts = {"metrics": metrics, "config": manifest["config"], "data": about}
    for part, entries in parts.items():
        if entries and isinstance(entries, dict):
            texts = spans(entries) if part == "metrics" else {n: cell(entries, n) for n in entries}
            text = ", ".join(f"{name}={each}" for name, each in texts.items())
            rows.append((part, ("\n" + " " * 10).join(textwrap.wrap(text, 90))))
    text = columns(rows)
    return f"{text}\n\n{manifest['pipeline']}" if manifest["pipeline"] else text


def _steps(step: int | list[int]) -> str:
    """The committed steps; of a population, the least and the largest of them."""
    if isinstance(step, int) or min(step) == max(step):
        return str(step if isinstance(step, int) else step[0])
    return f"{min(step)}..{max(step)}"


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


def of_member(leaves: Mapping[str, Tensor], member: int) -> dict[str, Tensor]:
    """The leaves of a population's state, by path, as those of one of its members."""
    size = len(leaves["step"])
    return {
        path: leaf[member] if path != "cursor" and is_by_member(leaf, size) else leaf
        for path, leaf in leaves.items()
    }


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
