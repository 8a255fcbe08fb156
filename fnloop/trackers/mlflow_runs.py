"""A tracker for MLflow (https://mlflow.org)."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import socket
import tempfile
import time
import types
import urllib.parse
import urllib.request
import warnings
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.flat_config import flat, plain_name
from fnloop.trackers.pictures import Image
from fnloop.trackers.run_files import local
from fnloop.trackers.shown import File, Shown, Text
from fnloop.trackers.sounds import Audio

_STATUS = {"completed": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED"}
_LONGEST = 6000  # characters of a parameter
_PARAMS, _METRICS = 100, 1000  # at most in one request
_PATIENCE = 5.0  # seconds until a server is said to be away
_PICTURE = re.compile(r"(images/.*?)[+%]step[+%](\d+)[+%]")  # the name of its file


class MLflow(Tracker):
    """Write a run to MLflow: a folder with a database, or a server.

    View a folder with ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db``, a server by its
    address. Hyperparameters are parameters, of which MLflow changes none: one that has changed when
    a run is resumed is a tag. Pictures are there by step; texts, sounds and files are artifacts;
    histograms it does not take. The outcome is the tag ``status``. A resumed run continues the same
    MLflow run. MLflow takes nothing back: points that a killed run had written after its last
    checkpoint stay, and are not written again.

    A server that does not answer is told of within seconds, as by every tracker: before the run it
    is an error, later the points wait. MLflow itself would try for minutes.

    MLflow's own statistics of use are not sent.

    Args:
        place: The folder, created if missing; or a tracking URI such as
            ``"http://127.0.0.1:5000"``.
        experiment: Groups runs in the interface.
        name: The run's name; default MLflow's own.
        tags: Labels: their names, or a dict.

    Raises:
        ImportError: In `open`, if the mlflow package is missing.
        OSError: In `open`, if no server answers at `place`.

    >>> from fnloop.trackers import MLflow
    >>> from fnloop import track
    >>> effect = track(MLflow("runs/mlflow", experiment="baseline"))
    """

    takes = (Image, Text, Audio, File)

    def __init__(
        self,
        place: str | Path = "runs/mlflow",
        experiment: str = "fnloop",
        name: str | None = None,
        tags: Sequence[str] | Mapping[str, str] = (),
    ) -> None:
        is_uri = isinstance(place, str) and ("://" in place or place == "databricks")
        self.uri = str(place) if is_uri else ""
        self.folder = None if is_uri else local(place, "fl.trackers.MLflow")
        self.experiment, self.name = experiment, name
        self.tags = dict(tags) if isinstance(tags, Mapping) else dict.fromkeys(tags, "")
        self._parts: Any = None
        self._client: Any = None
        self._written: dict[str, set[int]] = {}  # steps by name that a killed run has written

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        parts = self._parts = _import_parts()
        self._written = {}
        _reach(self.uri)
        artifacts = None
        if self.folder is not None:
            self.folder = self.folder.absolute()  # the working directory may change during the run
            self.folder.mkdir(parents=True, exist_ok=True)
            self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"
            artifacts = (self.folder / "artifacts").as_uri()
        with _one_at_a_time(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # MLflow's own, of its database
            self._client = parts.Client(tracking_uri=self.uri)
            self.id = self._resumed(run) or self._new_run(artifacts)
        if self.folder is not None:
            self.place = self.folder / "artifacts" / self.id
        known = self._client.get_run(self.id).data.params
        values = {plain_name(name): str(v)[:_LONGEST] for name, v in flat(config).items()}
        changed = {name: v for name, v in values.items() if known.get(name, v) != v}
        new = [parts.Param(name, v) for name, v in values.items() if name not in known]
        for i in range(0, len(new), _PARAMS):
            self._client.log_batch(self.id, params=new[i : i + _PARAMS])
        for name, value in {**self.tags, **changed}.items():
            self._client.set_tag(self.id, name, value)

    def rewind(self, step: int) -> None:
        for name in self._client.get_run(self.id).data.metrics:
            points = self._client.get_metric_history(self.id, name)
            self._written[name] = {point.step for point in points if point.step > step}
        for file in self._client.list_artifacts(self.id, "images"):
            found = _PICTURE.match(file.path)
            if found and int(found[2]) > step:
                self._written.setdefault(found[1], set()).add(int(found[2]))

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        now = int(time.time() * 1000)
        points = {plain_name(name): number for name, number in {**numbers, "epoch": epoch}.items()}
        metrics = [
            self._parts.Metric(name, number, now, step)
            for name, number in points.items()
            if step not in self._written.get(name, ())
        ]
        with self._retried():
            for i in range(0, len(metrics), _METRICS):
                self._client.log_batch(self.id, metrics=metrics[i : i + _METRICS])

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        name, at = plain_name(name), f"step-{step:08d}"
        with self._retried():
            if isinstance(value, Image):
                file = f"images/{name.replace('/', '~')}"  # as MLflow calls it
                if step not in self._written.get(file, ()):
                    pixels = value.pixels()
                    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
                    self._client.log_image(self.id, pixels, key=name, step=step)
            elif isinstance(value, Text):
                self._client.log_text(self.id, value.text, f"texts/{name}/{at}.txt")
            elif isinstance(value, Audio):
                self._upload(value.wav(), f"sounds/{name}", f"{at}.wav")
            elif isinstance(value, File):
                self._client.log_artifact(self.id, str(value.path), f"files/{name}")

    def close(self, status: str) -> None:
        if self._client is None:
            return
        client, self._client = self._client, None
        _reach(self.uri)
        client.set_tag(self.id, "status", status)
        client.set_terminated(self.id, _STATUS.get(status, "FAILED"))

    def _resumed(self, run: str | None) -> str | None:
        if run is None:
            return None
        try:
            found = self._client.get_run(run)
        except self._parts.Error:
            found = None
        if found is None or found.info.lifecycle_stage != "active":
            warnings.warn(
                f"MLflow has no run {run} in {self.uri} to go on with; a new run is started.",
                stacklevel=4,
            )
            return None
        self._client.update_run(run, status="RUNNING")
        return run

    def _new_run(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            experiment = self._client.create_experiment(self.experiment, artifacts)
        else:
            experiment = found.experiment_id
        return str(self._client.create_run(experiment, run_name=self.name).info.run_id)

    def _upload(self, data: bytes, folder: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(data)
            self._client.log_artifact(self.id, str(file), folder)

    @contextlib.contextmanager
    def _retried(self) -> Generator[None]:
        """A server that is away, or a full disk, is an ``OSError``, so that all is tried again."""
        _reach(self.uri)
        try:
            yield
        except self._parts.Error as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
            raise OSError(f"MLflow at {self.uri}: {str(error)[:300]}") from error


def _reach(uri: str) -> None:
    """Ask whether a server listens there, which MLflow does for minutes.

    Raises:
        OSError: None does.
    """
    place = urllib.parse.urlsplit(uri)
    if place.scheme not in ("http", "https") or not place.hostname:
        return
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        place.hostname
    ):
        return  # another is asked, who answers
    port = place.port or {"http": 80, "https": 443}[place.scheme]
    try:
        socket.create_connection((place.hostname, port), timeout=_PATIENCE).close()
    except OSError as error:
        raise OSError(
            f"No MLflow server answers at {uri} ({error}). Start it (mlflow server --port {port}), "
            'or write to a folder: fl.trackers.MLflow("runs/mlflow").'
        ) from None


@contextlib.contextmanager
def _one_at_a_time(folder: Path | None) -> Generator[None]:
    """Only one process at a time can make a database, and only one an experiment of a name."""
    if folder is None:
        yield
        return
    from filelock import FileLock

    with FileLock(folder / ".mlflow.lock", timeout=300):
        yield


def _import_parts() -> Any:
    missing = "MLFLOW_DISABLE_TELEMETRY" not in os.environ
    try:
        if missing:  # it is read when MLflow is imported, which writes a number of its own to $HOME
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        with warnings.catch_warnings():  # its dependencies warn about its dependencies
            warnings.simplefilter("ignore")
            mlflow = importlib.import_module("mlflow")
            entities = importlib.import_module("mlflow.entities")
            exceptions = importlib.import_module("mlflow.exceptions")
    except ImportError as error:
        raise ImportError(
            "fl.trackers.MLflow needs the mlflow package, which is not installed: "
            "pip install 'fnloop[mlflow]'"
        ) from error
    finally:
        if missing:
            os.environ.pop("MLFLOW_DISABLE_TELEMETRY", None)
    return types.SimpleNamespace(
        Client=mlflow.MlflowClient,
        Metric=entities.Metric,
        Param=entities.Param,
        Error=exceptions.MlflowException,
    )
