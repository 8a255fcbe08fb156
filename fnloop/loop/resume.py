"""Resume from a checkpoint, and report what has changed since."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fnloop.data.resumed import resumed_index
from fnloop.data.sources import Source
from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Effect, named
from fnloop.stages.base import Stage, mesh_of
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.files import Files, as_path, files_for
from fnloop.store.folders import is_there, meant
from fnloop.store.load import Loaded, load_at
from fnloop.store.pages import attached
from fnloop.store.save import machine_of
from fnloop.trees.json_codec import plain
from fnloop.trees.paths import split, tree_items
from fnloop.values.cursor import Cursor
from fnloop.values.state import State

_log = logging.getLogger("fnloop")


@dataclasses.dataclass(frozen=True)
class Resumed:
    """How a run was resumed; ``history.resumed`` holds it.

    Attributes:
        path: The checkpoint.
        cursor: The run's position: epoch, index, count.
        changes: What has changed since, a line each.
        skipped: Newer checkpoints that are damaged, each with the reason.
    """

    path: Path
    cursor: Cursor
    changes: tuple[str, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()

    def __str__(self) -> str:
        epoch = self.cursor.epoch + bool(self.cursor.index)
        text = f"resumed from {self.path} (epoch {epoch}, {self.cursor.count} batches)"
        if self.changes:
            text += "; what has changed:" + "".join(f"\n  {change}" for change in self.changes)
        return text


def resume(
    folder: str | os.PathLike[str],
    step: Any,
    state: State,
    source: Source,
    callbacks: Sequence[Any],
    config: Mapping[str, Any],
) -> tuple[State, Resumed | None]:
    """Load the newest undamaged checkpoint, and restore effects and data from it.

    Many ranks take the same one.

    Args:
        folder: A folder of checkpoints, or one checkpoint.
        step, state, source, callbacks, config: Those of the new run.

    Returns:
        The loaded state, and how it was found; the given one and None if there is no checkpoint.

    Raises:
        CheckpointError: All checkpoints are damaged, or the newest does not fit.
    """
    if not (isinstance(folder, (str, os.PathLike)) or hasattr(folder, "fs")):  # a UPath
        raise TypeError(f"resume= takes a folder of checkpoints, or a checkpoint; got {folder!r}.")
    place = as_path(folder)
    files = files_for(place)
    mesh = mesh_of(step) or Mesh()
    loaded = load_at(place, state, files, mesh=mesh)
    if loaded is None:
        what = "holds no checkpoint" if is_there(place, files) else "does not exist yet"
        hint = meant(place, files)
        _log.warning("%s %s: nothing is resumed, the run starts here.%s", place, what, hint)
        return state, None
    for path, why in loaded.skipped if mesh.rank == 0 else ():
        warnings.warn(f"The checkpoint {path} was skipped: {why}", stacklevel=3)
    effects = [callback for callback in callbacks if isinstance(callback, Effect)]
    for effect in effects:
        effect.note_damaged([path.absolute() for path, _ in loaded.skipped])
    _recall(effects, loaded, files)
    state, moved = _place(loaded, source)
    changed = [
        *changes("", loaded.manifest["config"], plain(config)),
        *changes("data.", _about(loaded), _now(source)),
        *moved,
        *_machine(loaded.manifest, state),
        *_memory(loaded.manifest, state, step, callbacks),
    ]
    if "before the callbacks" in loaded.manifest["status"]:
        changed.append("the run failed in a callback: those of its last step are left out")
    told = tuple(told_once(changed))
    resumed = Resumed(loaded.path, Cursor.of(state.cursor), told, loaded.skipped)
    if mesh.rank == 0:
        _log.warning("%s", resumed)
    return state, resumed


def _recall(effects: Sequence[Effect], loaded: Loaded, files: Files) -> None:
    memos, faults = attached(loaded.manifest, loaded.path.parent, files)
    for fault in faults:
        warnings.warn(f"A page of a memo cannot be read, and is left out: {fault}", stacklevel=4)
    for name, effect in named(effects).items():
        if name in memos:
            what = f"a memo for the effect {name!r}"
            _use(loaded, what, "effect of that name", partial(effect.recall, memos[name]))


def _use(loaded: Loaded, what: str, cause: str, call: Callable[[], None]) -> None:
    try:
        call()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{loaded.path} has {what} that cannot be used ({type(error).__name__}: {error}). The "
            f"usual cause is another {cause} than when it was saved."
        ) from error


def _place(loaded: Loaded, source: Source) -> tuple[State, list[str]]:
    """Set the data to the checkpoint's position; also returns notes if that has changed."""
    state = loaded.state
    position = loaded.manifest["data"].get("position")
    recall: Any = getattr(source, "recall", None)
    told: list[str] = []
    if position is not None and recall is not None:
        _use(loaded, "the data's position", "data", partial(recall, position))
    elif position is not None:
        told = ["data: the loader had kept its own position, which this data cannot restore"]
    cursor, moved = resumed_index(Cursor.of(state.cursor), _about(loaded), _now(source))
    return state.replace(cursor=cursor.tensor()), [*told, *([moved] if moved else [])]


def _about(loaded: Loaded) -> Mapping[str, Any]:
    about = loaded.manifest["data"].get("about")
    return about if isinstance(about, dict) else {}


def _now(source: Any) -> dict[str, Any]:
    return plain(source.about()) if hasattr(source, "about") else {}


def changes(prefix: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the settings of two runs, a line each."""
    for name in dict.fromkeys([*then, *now]) if then else ():
        if name == "recipe":  # a path, which depends on the working directory
            continue
        if name not in now:
            yield f"{prefix}{name}: {_short(then[name])} -> gone"
        elif name not in then:
            yield f"{prefix}{name}: new, {_short(now[name])}"
        elif _differ(then[name], now[name]) and _alike(then[name], now[name]):
            yield from changes(f"{prefix}{name}.", then[name], now[name])
        elif _differ(then[name], now[name]):
            yield f"{prefix}{name}: {_short(then[name])} -> {_short(now[name])}"


def told_once(lines: Iterable[str]) -> Iterator[str]:
    """Changes without those of a flag ``lr`` that are those of the setting ``adamw.lr``, too."""
    known = list(lines)
    yield from [line for line in known if not any(each.endswith(f".{line}") for each in known)]


def _differ(then: Any, now: Any) -> bool:
    return then != now and repr(then) != repr(now)  # nan is nan


def _alike(then: Any, now: Any) -> bool:
    """Whether both are settings of the same names."""
    return isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys()


def _machine(manifest: Mapping[str, Any], state: State) -> Iterator[str]:
    """Changes of the machine after which results are no longer the same to the bit."""
    for name, value in machine_of(state).items():
        if manifest[name] != value:
            yield (
                f"{name}: {manifest[name]} -> {value} (results are the same to rounding, no longer "
                "to the bit)"
            )


def _memory(
    manifest: Mapping[str, Any], state: State, step: Any, callbacks: Sequence[Any]
) -> Iterator[str]:
    """Slots that are new or have new parameters, and slots that are no longer used."""
    if not isinstance(step, Stage):
        return
    stages = [step, *(callback for callback in callbacks if isinstance(callback, Stage))]
    owned = dict.fromkeys(part.slot for stage in stages for part in stage.stages() if part.slot)
    paths = map(split, [*manifest["leaves"], *manifest["structure"]])
    saved = {path[1] for path in paths if path[0] == "slots" and len(path) > 1}
    for name in owned:
        if name not in saved and any(part.slot == name for part in step.stages()):
            yield f"{name}: new, with fresh memory"
        elif name in saved and (names := _without_memory(manifest, state, name)):
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"{name}: fresh memory for {', '.join(names[:5])}{more}"
    for name in sorted(saved - owned.keys()):
        yield f"{name}: no stage of that name now; its memory is kept, unused"


def _without_memory(manifest: Mapping[str, Any], state: State, slot: str) -> list[str]:
    """The parameters that have memory in a slot now, and had none when the state was saved."""
    paths = [f"slots/{slot}/{path}" for path, _ in tree_items(state.slots.get(slot))]
    new = {split(path)[-1] for path in paths if path not in manifest["leaves"]}
    return [name for name in state.params if name in new]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
