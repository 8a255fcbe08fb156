"""``fnloop export``: a run's weights for other tools."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

import fnloop
from fnloop.cli.evaluate_command import with_statistics
from fnloop.cli.messages import Problem, shown, usage
from fnloop.cli.runs import (
    OpenedRun,
    checkpoint_folders,
    choose,
    configuration_of,
    member_in_checkpoint,
    open_run,
    recipe_of,
    run_of,
    told,
)
from fnloop.cli.show_command import all_leaves, of_member
from fnloop.cli.sweep_folder import Sweep, sweep_in
from fnloop.store import tensor_file
from fnloop.store.files import files_for
from fnloop.store.folders import meant
from fnloop.store.manifest import MANIFEST, read_manifest
from fnloop.trees.paths import split
from fnloop.trees.show import bytes_text
from fnloop.values.start import to_module

SUFFIXES = (".safetensors", ".pt", ".pth")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class _Weights(NamedTuple):
    tensors: dict[str, Tensor]
    checkpoint: Path
    member: int | None
    note: str


def run_export(arguments: Namespace) -> int:
    """``fnloop export CHECKPOINT_OR_RUN --output FILE``."""
    output = Path(arguments.output)
    if output.suffix not in SUFFIXES:
        raise usage(f"--output {output}: expected a file called {', '.join(SUFFIXES)}.")
    force = getattr(arguments, "force", False)
    _check_free(output, force)
    dtype = getattr(arguments, "dtype", None)
    if dtype is not None and dtype not in _DTYPES:
        raise usage(f"--dtype {dtype}: expected {', '.join(_DTYPES)}.")
    params = getattr(arguments, "params", None)

    weights = _weights(arguments, params)
    found = {name: _cast(t, dtype) for name, t in weights.tensors.items()}
    about = {
        "format": "pt",  # required by Hugging Face's readers
        "source": str(weights.checkpoint),
        "params": params or "live",
        "step": str(read_manifest(weights.checkpoint)["cursor"]["count"]),
        "fnloop": fnloop.__version__,
    }
    if weights.member is not None:
        about["member"] = str(weights.member)
    if output.suffix == ".safetensors":
        write_tensors(output, found, about, force)
    else:
        _replace(output, force, lambda file: torch.save(found, file))
    print(f"from  {told(weights.checkpoint, weights.member)}{weights.note}", file=sys.stderr)
    size = bytes_text(output.stat().st_size)
    print(f"{shown(output)}  {len(found)} tensors, {size}")
    return 0


def write_tensors(
    path: Path, found: Mapping[str, Tensor], about: Mapping[str, str], force: bool
) -> None:
    """Write a safetensors file, atomically.

    Raises:
        Problem: It exists already, or cannot be written.
    """
    dense = {name: tensor_file.check_storable(name, leaf) for name, leaf in found.items()}
    _replace(path, force, lambda file: tensor_file.write(file, dense, about))


def _replace(path: Path, force: bool, write: Callable[[Any], object]) -> None:
    """Write a temporary file, fsync it, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _check_free(path, force)
        os.replace(temporary, path)
    except OSError as error:
        raise Problem(f"{shown(path)} cannot be written: {error.strerror or error}.") from None
    finally:
        temporary.unlink(missing_ok=True)


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise usage(f"{shown(path)} exists already. To overwrite it: --force.")


def _weights(arguments: Namespace, params: str | None) -> _Weights:
    """The tensors by the model's names: all names with the recipe, only the first without."""
    path, which = arguments.path, getattr(arguments, "checkpoint", None)
    named, asked = getattr(arguments, "recipe", None), getattr(arguments, "member", None)
    run = run_of(Path(path))
    if run is not None and _has_recipe(run, named):
        if (Path(path) / MANIFEST).is_file():
            path, which = str(run), which or path
        opened = open_run(path, which, named, asked)
        _check_slot(params, opened.state.slots)
        model = to_module(with_statistics(opened.recipe, opened.state, params), params)
        if isinstance(model, nn.Module):
            return _of_module(model, opened)
    folder = Path(path)
    chosen = folder if (folder / MANIFEST).is_file() else None
    sweep = None if run is None else sweep_in(run)
    if chosen is None:
        if not folder.exists():
            hint = meant(folder, files_for(folder))
            raise usage(
                f"There is no {shown(folder)}; expected a checkpoint, or a run's folder.{hint}"
            )
        which = which or (None if sweep is None else "latest")
        chosen = choose(checkpoint_folders(folder), which, folder)
    member = member_in_checkpoint(chosen, run, sweep, asked)
    found = _bare(chosen, params, member)
    note = _member_note(sweep, member)
    note += "" if run is not None and _has_recipe(run, named) else _BARE
    if params is not None and any(name.endswith("running_mean") for name in found):
        note += _STATISTICS
    return _Weights(found, chosen, member, note)


def _member_note(sweep: Sweep | None, member: int | None) -> str:
    return "" if sweep is None or member is None else f"\n{sweep.about(member)}"


_BARE = (
    "\nnote  without the recipe, a tied parameter has its first name only, and buffers that the "
    "model does not save are in the file: load it with strict=False"
)

_STATISTICS = (
    "\nnote  the running statistics of BatchNorm are those of the live parameters: compute those "
    "of the average by torch.optim.swa_utils.update_bn, or export with the recipe, which does so"
)


def _of_module(model: nn.Module, opened: OpenedRun) -> _Weights:
    entries = model.state_dict()
    found = {name: t.detach() for name, t in entries.items() if isinstance(t, Tensor)}
    others = [name for name in entries if name not in found]
    note = _member_note(opened.sweep, opened.member)
    note += f"\nnote  no tensors, and left out: {', '.join(others)}" if others else ""
    return _Weights(found, opened.checkpoint, opened.member, note)


def _bare(checkpoint: Path, params: str | None, member: int | None) -> dict[str, Tensor]:
    leaves = all_leaves(checkpoint, read_manifest(checkpoint))
    leaves = leaves if member is None else of_member(leaves, member)
    found: dict[str, Tensor] = {}
    slots: dict[str, dict[str, Tensor]] = {}
    for path, leaf in leaves.items():
        part, *rest = split(path)
        if part in ("params", "buffers") and len(rest) == 1:
            found[rest[0]] = leaf
        elif part == "slots" and len(rest) == 2:
            slots.setdefault(rest[0], {})[rest[1]] = leaf
    averages = {name: own for name, own in slots.items() if own.keys() <= found.keys()}
    _check_slot(params, averages)
    if params is not None:
        found.update({name: t.to(found[name].dtype) for name, t in averages[params].items()})
    return found


def _check_slot(params: str | None, slots: Mapping[str, Any]) -> None:
    if params is not None and params not in slots:
        raise usage(
            f"--params {params}: the checkpoint has no slot of that name. It has: "
            f"{', '.join(slots) or 'none'}."
        )


def _has_recipe(run: Path, named: str | None) -> bool:
    if named is not None:
        return True
    try:
        recipe_of(configuration_of(run), None)
    except Problem:
        return False
    return True


def _cast(tensor: Tensor, dtype: str | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(_DTYPES[dtype])
