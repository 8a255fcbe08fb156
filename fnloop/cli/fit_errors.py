"""What is told where a folder has a run that is not gone on with, and the commands that go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from fnloop.cli import config
from fnloop.cli.flags import Flags
from fnloop.cli.job import Job
from fnloop.cli.messages import shown, value_text
from fnloop.cli.recipe import Recipe
from fnloop.cli.sweep_folder import Sweep
from fnloop.cli.swept import sweep_again
from fnloop.loop.early_stopping import early_stopping
from fnloop.store.manifest import read_manifest, standing


def refusal(job: Job, start: Path) -> str:
    """The message that a folder has a run already, with commands to choose from."""
    manifest, folder = read_manifest(start), job.folder or start.parent
    status, (how, epoch, count) = manifest["status"], standing(manifest)
    again = shlex.join(["fnloop", "fit", *job.anew])
    more = longer(job.recipe, status, job.flags)
    flag, note = (more, "") if more.startswith(" --") else ("", more)
    resumed = f"{again} --resume{flag}, or fnloop resume {shlex.quote(str(folder))}{flag}{note}"
    choices = [
        ("train longer" if more else "go on with it", resumed),
        ("start another", _elsewhere(job, folder)),
        ("start over", f"{again} --overwrite, which deletes its checkpoints"),
    ]
    return (
        f"{shown(folder)} has a run already ({how}, epoch {epoch}, {count} batches), "
        f"which is not overwritten.\n{_listed(choices)}"
    )


def taken_by(sweep: Sweep, folder: Path) -> str:
    """The message that a folder has a sweep, which is none of ``fnloop fit``."""
    return (
        f"{shown(folder)} has a sweep of {sweep.size} members, which fnloop fit does not go on "
        "with, and does not overwrite. Another folder keeps both; --overwrite deletes its "
        f"checkpoints. The sweep goes on by\n  {sweep_again(sweep, folder)} --resume"
    )


def goes_on_together(sweep: Sweep, folder: Path) -> str:
    """The message that a sweep is not resumed as a run is."""
    return (
        f"{shown(folder)} is of a sweep, whose {sweep.size} members go on together, and not one "
        f"by one:\n  {sweep_again(sweep, folder)} --resume"
    )


def _elsewhere(job: Job, folder: Path) -> str:
    """The command that trains a new run in another folder."""
    texts = {name: value for name, value in job.flags.plain.items() if isinstance(value, str)}
    same = [n for n, value in texts.items() if Path(value).absolute() == folder.absolute()]
    if not same:
        return "another folder in the recipe"
    option, value = f"--{same[0]}", texts[same[0]]
    free = next(f"{value}-{i}" for i in range(2, 1 << 30) if not Path(f"{value}-{i}").exists())
    pairs = zip(["", *job.anew], job.anew, strict=False)
    kept = [a for before, a in pairs if option not in (a.partition("=")[0], before)]
    return shlex.join(["fnloop", "fit", *kept, option, free])


def _listed(choices: Sequence[tuple[str, str]]) -> str:
    width = max(len(what) for what, _ in choices) + 1
    return "\n".join(f"  to {what + ':':<{width}}  {command}" for what, command in choices)


def longer(recipe: Recipe, status: str, flags: Flags, reason: str = "") -> str:
    """The flag that lets a run that has ended go on; empty for one that has not."""
    if recipe.budget is not None and "budget" in reason:
        name, value = "budget", recipe.budget
    elif status.startswith("completed"):
        limits = {"epochs": recipe.epochs, "steps": recipe.steps}
        name, value = next(((n, v) for n, v in limits.items() if v is not None), ("epochs", 1))
    elif status.startswith("stopped"):
        stoppers = [c for c in recipe.callbacks if isinstance(c, early_stopping)]
        name, value = "patience", stoppers[0].patience if stoppers else 1
        if not stoppers:
            return ""
    else:
        return ""
    if name in flags.plain:
        return f" --{name} {2 * value}"
    return f" (with more {name} in the recipe)"


def unfit(job: Job, folder: Path) -> str:
    """What to do where a checkpoint does not fit: the flags that differ, and commands."""
    saved = config.Config(folder / config.NAME).plain if (folder / config.NAME).is_file() else {}
    pairs = {name: (saved.get(name, value), value) for name, value in job.flags.plain.items()}
    changed = [
        f"--{name} was {value_text(was)}, and is {value_text(now)}."
        for name, (was, now) in pairs.items()
        if was != now and repr(was) != repr(now)  # nan is nan
    ]
    fix = f"fnloop resume {shlex.quote(shown(folder))}, with its own flags"
    if not changed:
        changed = ["No flag is another than then: the recipe is, or what it imports."]
        fix = "put that back"
    choices = [("go on with the run", fix), ("train the new one", _elsewhere(job, folder))]
    return "\n".join([*changed, _listed(choices)])
