"""A tracker for Weights & Biases (https://wandb.ai)."""

from __future__ import annotations

import html
import importlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.distributions import Histogram
from fnloop.trackers.pictures import Image
from fnloop.trackers.run_files import local
from fnloop.trackers.shown import File, Shown, Text
from fnloop.trackers.sounds import Audio
from fnloop.trackers.wandb_files import await_end, cut_after


class WandB(Tracker):
    """Write a run to Weights & Biases, or to a folder that ``wandb sync`` sends there later.

    The axis is ``step``, the number of batches drawn. A resumed run continues the run of the same
    id; ``wandb sync`` of both folders makes one run of them. Of a run in a folder
    (``mode="offline"``), what a killed run had written after its last checkpoint is cut off; the
    service takes nothing back, so points that it has are not sent again.

    No source code, no output of the terminal and nothing about the machine is sent.

    Args:
        project: The project.
        folder: Where its files go: a folder ``wandb`` in it; created if missing.
        mode: ``"online"`` or ``"offline"``; default that of ``wandb``.
        name: The run's name; default one that W&B gives.
        entity: The user or team; default that of the login.
        tags: Labels for the run.

    Raises:
        ImportError: In `open`, if the wandb package is missing.

    >>> from fnloop.trackers import WandB
    >>> from fnloop import track
    >>> effect = track(WandB("digits", mode="offline"))
    """

    takes = (Image, Text, Audio, Histogram, File)

    def __init__(
        self,
        project: str = "fnloop",
        folder: str | Path = "runs",
        mode: str | None = None,
        name: str | None = None,
        entity: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        if mode not in (None, "online", "offline"):
            raise ValueError(
                f'fl.trackers.WandB(mode={mode!r}): expected "online" or "offline"; to track '
                "nothing, leave it out of fl.track."
            )
        self.project, self.folder = project, local(folder, "fl.trackers.WandB")
        self.mode, self.name, self.entity, self.tags = mode, name, entity, tuple(tags)
        self._wandb: Any = None
        self._run: Any = None
        self._sent = -1  # the last step that the service has

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        wandb = self._wandb = _import_wandb()
        self.folder = self.folder.absolute()  # the working directory may change during the run
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sent = -1
        # Not the run that `wandb.init` would make that of the process, nor its environment.
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name,
            tags=self.tags or None,
            dir=str(self.folder),
            mode=self.mode,
            id=run,
            resume=None if run is None else "allow",
            config=dict(config),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=0.1,  # what a kill loses, in seconds
            ),
        )
        self.id = str(self._run.id)
        self.place = Path(self._run.settings.sync_dir)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def rewind(self, step: int) -> None:
        if not self._run.offline:
            self._sent = int(self._run.summary.get("step", -1))
        for folder in {self.place, self.place_before} - {None}:
            for file in Path(str(folder)).parent.glob(f"offline-run-*-{self.id}/*.wandb"):
                if file.parent != self.place:
                    cut_after(file, step)

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        self._log({**numbers, "epoch": epoch}, step)

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        wandb = self._wandb
        if isinstance(value, Image):
            self._log({name: wandb.Image(value.pixels(), caption=value.caption or None)}, step)
        elif isinstance(value, Text):
            page = f"<pre>{html.escape(value.text)}</pre>"
            self._log({name: wandb.Html(page, data_is_not_path=True)}, step)
        elif isinstance(value, Histogram):
            found = value.read()
            bars = wandb.Histogram(np_histogram=(found.counts, found.edges))
            self._log({name: bars}, step)
        elif isinstance(value, Audio):
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "sound.wav"
                file.write_bytes(value.wav())
                self._log({name: wandb.Audio(str(file), caption=value.caption or None)}, step)
        elif isinstance(value, File):
            kept = Path(self._run.dir) / name / value.path.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(value.path, kept)
            self._run.save(str(kept), base_path=str(self._run.dir), policy="now")

    def close(self, status: str) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        run.summary["status"] = status
        offline, file = run.offline, Path(run.settings.sync_file)
        run.finish(exit_code=0 if status in ("completed", "stopped") else 1)
        if offline:
            await_end(file)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        if step > self._sent:
            # At once: W&B would else hold a point until the next one, and a kill lose it.
            self._run.log({**values, "step": step}, commit=True)


def _import_wandb() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("wandb")
    except ImportError as error:
        raise ImportError(
            "fl.trackers.WandB needs the wandb package, which is not installed: "
            "pip install 'fnloop[wandb]'"
        ) from error
