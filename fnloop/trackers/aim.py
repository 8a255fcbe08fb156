"""A tracker for Aim (https://aimstack.io)."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.effects.points import subset_of
from fnloop.trackers import aim_server
from fnloop.trackers.base import Tracker
from fnloop.trackers.distributions import Histogram
from fnloop.trackers.jsonl import JSONL
from fnloop.trackers.pictures import Image
from fnloop.trackers.run_files import local
from fnloop.trackers.shown import File, Shown, Text
from fnloop.trackers.sounds import Audio

_logger = logging.getLogger(__name__)


class Aim(Tracker):
    """Write a run to an Aim repository; view it with ``aim up --repo FOLDER``.

    A metric ``"val/loss"`` is called ``loss`` there, in the context ``{"subset": "val"}``; without
    a prefix the subset is ``"train"``. Hyperparameters are ``run["hparams"]`` (an integer of more
    than 64 bits as text, which Aim cannot store as a number), the outcome is ``run["status"]``. A
    resumed run continues the same Aim run. Histograms are Aim's distributions; files lie in a
    folder ``artifacts`` of the repository (a server takes none). If Aim cannot be imported (it has
    no wheels beyond Python 3.12), the run is written to a file of JSON lines in the same folder,
    with one warning.

    Args:
        repo: Folder with the repository (a folder ``.aim`` in it); created if missing. Or the
            address of an Aim server, ``"aim://host:port"``.
        experiment: Groups runs in the interface.
        name: The run's name; default Aim's own.
        tags: Labels for the run.

    >>> from fnloop.trackers import Aim
    >>> from fnloop import track
    >>> effect = track(Aim("runs", experiment="baseline"))
    """

    def __init__(
        self,
        repo: str | Path = "runs",
        experiment: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.repo = str(repo) if _remote(str(repo)) else str(local(repo, "fl.trackers.Aim"))
        self.experiment = experiment
        self.name = name
        self.tags = tuple(tags)
        self._aim: Any = None
        self._run: Any = None
        self._instead: JSONL | None = None

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        self._instead = None
        if not _remote(self.repo):  # the working directory may change during the run
            self.repo = os.path.abspath(self.repo)
        try:
            aim = _import_aim()
        except ImportError as error:
            self._open_file(config, run, error)
            return
        repo = self.repo if _remote(self.repo) else _open_repo(aim, Path(self.repo))
        options: dict[str, Any] = {
            "repo": repo,
            "experiment": self.experiment,
            "system_tracking_interval": None,
            "capture_terminal_logs": False,
        }
        try:
            self._run = aim.Run(run, **options)
        except aim.sdk.errors.MissingRunError:
            warnings.warn(
                f"Aim's repository in {self.repo} has no run {run} to go on with; a new run is "
                "started.",
                stacklevel=2,
            )
            self._run = aim.Run(**options)
        self._aim = aim
        self.id = str(self._run.hash)
        self.place = Path(self.repo) / self.id
        self._run["hparams"] = _storable(dict(config))
        if self.name is not None:
            self._run.name = self.name
        for tag in self.tags:
            self._run.add_tag(tag)
        if not _remote(self.repo):
            self._run.set_artifacts_uri((Path(self.repo) / "artifacts").as_uri())

    def rewind(self, step: int) -> None:
        if self._instead is not None:  # Aim itself keeps the last of several points of one step
            self._instead.rewind(step)

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        if self._instead is not None:
            return self._instead.log(numbers, step, epoch)
        for full_name, number in numbers.items():
            self._track(number, full_name, step, epoch)

    @property
    def takes(self) -> tuple[type[Shown], ...]:  # type: ignore[override]  # pyright: ignore
        if self._instead is not None:
            return self._instead.takes
        kinds = (Image, Text, Audio, Histogram)
        return kinds if _remote(self.repo) else (*kinds, File)

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        if self._instead is not None:
            return self._instead.show(name, value, step, epoch)
        aim = self._aim
        if isinstance(value, Image):
            pixels = value.pixels()
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            self._track(aim.Image(pixels, caption=value.caption, format="png"), name, step, epoch)
        elif isinstance(value, Text):
            self._track(aim.Text(value.text), name, step, epoch)
        elif isinstance(value, Audio):
            file = io.BytesIO(value.wav())
            sound = aim.Audio(file, format="wav", caption=value.caption, rate=value.rate)
            self._track(sound, name, step, epoch)
        elif isinstance(value, Histogram):
            found = value.read()
            bars = aim.Distribution(hist=found.counts, bin_range=found.edges[[0, -1]].tolist())
            self._track(bars, name, step, epoch)
        elif isinstance(value, File):
            self._run.log_artifact(str(value.path), name=f"{name}/{value.path.name}", block=True)

    def _track(self, value: Any, full_name: str, step: int, epoch: int) -> None:
        name, subset = subset_of(full_name)
        if subset == "train":  # "train/loss" is an evaluation, and "loss" the training's own
            name = full_name
        self._run.track(value, name=name, step=step, epoch=epoch, context={"subset": subset})

    def close(self, status: str) -> None:
        if self._instead is not None:
            self._instead.close(status)
        if self._run is None:
            return
        self._run["status"] = status
        if _remote(self.repo) and not aim_server.all_sent(self._run):
            warnings.warn(
                f"The Aim server at {self.repo} does not answer, and lacks the end of this run, "
                f"{self.id}. The usual cause: the server was stopped, or the network is down.",
                stacklevel=2,
            )
            aim_server.let_go(self._run)
            self._run = None
            return
        self._run.close()
        self._run = None
        # Aim lists the run as in progress until the last reference is gone.
        gc.collect()
        if self.id is not None and not _remote(self.repo):
            _index(_import_aim(), Path(self.repo), self.id)

    def _open_file(self, config: Mapping[str, Any], run: str | None, error: ImportError) -> None:
        file = (
            Path(self.repo if not _remote(self.repo) else "runs")
            / f"{run or uuid.uuid4().hex[:24]}.jsonl"
        )
        python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        warnings.warn(
            f"Aim cannot be imported ({python}; Aim has wheels for 3.12 at most): {error}. "
            f"This run is written to {file} instead.",
            stacklevel=2,
        )
        self._instead = JSONL(file)
        self._instead.place_before = self.place_before
        self._instead.open(config, file.name)
        self.id, self.place = file.stem, self._instead.place


def _storable(value: Any) -> Any:
    """Hyperparameters without what Aim cannot store: long integers, and bytes in file names."""
    if isinstance(value, Mapping):
        return {_storable(name): _storable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(each) for each in value]
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    is_long = isinstance(value, int) and not -(1 << 63) <= value < 1 << 63
    return str(value) if is_long else value


def _remote(repo: str) -> bool:
    return repo.startswith("aim://")


def _import_aim() -> Any:
    with warnings.catch_warnings():  # its dependencies warn about its dependencies
        warnings.simplefilter("ignore")
        aim = importlib.import_module("aim")
        for part in ("aim.sdk.errors", "aim.sdk.index_manager"):
            importlib.import_module(part)
        AutoClean = importlib.import_module("aim.ext.cleanup").AutoClean
    if sys.version_info >= (3, 12):
        # Its exit handler starts a thread, which Python 3.12 refuses at exit.
        AutoClean._registered_with_atexit = True
        atexit.unregister(AutoClean.cleanup)
        atexit.unregister(AutoClean._cleanup)
        atexit.register(AutoClean._cleanup)
    return aim


def _lock(folder: Path) -> Any:
    """A file lock: only one process at a time can create or index a repository."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / ".aim.lock", timeout=300)


def _open_repo(aim: Any, folder: Path) -> Any:
    with _lock(folder):
        made = (folder / ".aim" / "VERSION").is_file()  # written last
        return aim.Repo.from_path(str(folder), init=not made)


def _index(aim: Any, folder: Path, run: str) -> None:
    """Add the run to the index by which `aim.Repo` finds runs; closing a run does not do so."""
    try:
        with _lock(folder):
            aim.sdk.index_manager.RepoIndexManager(aim.Repo.from_path(str(folder))).index(run)
            gc.collect()
    except Exception as error:  # a running `aim up` locks the index, and updates it itself
        _logger.debug("Aim's index was not updated for run %s: %s", run, error)
