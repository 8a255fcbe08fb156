"""A tracker for trackio (https://github.com/gradio-app/trackio)."""

from __future__ import annotations

import datetime
import importlib
import json
import tempfile
import types
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fnloop.trackers.base import Tracker
from fnloop.trackers.distributions import Histogram
from fnloop.trackers.pictures import Image
from fnloop.trackers.shown import File, Shown, Text
from fnloop.trackers.sounds import Audio
from fnloop.trees.json_codec import jsonable


class Trackio(Tracker):
    """Write a run to trackio's database on this machine; view it with ``trackio show``.

    The database is where trackio has it: in ``~/.cache/huggingface/trackio``, or the folder that
    the environment variable ``TRACKIO_DIR`` names before trackio is imported. Nothing is sent. A
    resumed run continues the same run, and what a killed run had written after its last checkpoint
    is taken out.

    Args:
        project: Groups runs in the interface.
        name: The beginning of the run's name, such as ``"run-1f0c9a2b"``.

    Raises:
        ImportError: In `open`, if the trackio package is missing.

    >>> from fnloop.trackers import Trackio
    >>> from fnloop import track
    >>> effect = track(Trackio("digits"))
    """

    takes = (Image, Text, Audio, Histogram, File)

    def __init__(self, project: str = "fnloop", name: str = "run") -> None:
        self.project, self.name = project, name
        self._parts: Any = None
        self._config: dict[str, Any] = {}

    def open(self, config: Mapping[str, Any], run: str | None) -> None:
        parts = self._parts = _import_parts()
        parts.Store.validate_project_name(self.project)
        self.id = run or f"{self.name}-{uuid.uuid4().hex[:8]}"
        self.place = Path(parts.folder).absolute() / self.project / self.id
        now = datetime.datetime.now(datetime.UTC).isoformat()
        self._config = {**jsonable(config), "_Username": None, "_Created": now, "_Group": None}
        parts.Store.init_db(self.project)

    def rewind(self, step: int) -> None:
        self._execute("DELETE FROM metrics WHERE run_id = ? AND step > ?", self.id, step)

    def log(self, numbers: Mapping[str, float], step: int, epoch: int) -> None:
        self._log({**numbers, "epoch": epoch}, step)

    def show(self, name: str, value: Shown, step: int, epoch: int) -> None:
        parts = self._parts
        if isinstance(value, Image):
            pixels = value.pixels()
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            self._save(name, parts.Image(pixels, caption=value.caption or None), step)
        elif isinstance(value, Text):
            self._log({name: parts.Markdown(value.text)._to_dict()}, step)
        elif isinstance(value, Histogram):
            found = value.read()
            bars = parts.Histogram(np_histogram=(found.counts, found.edges))
            self._log({name: bars._to_dict()}, step)
        elif isinstance(value, Audio):
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "sound.wav"
                file.write_bytes(value.wav())
                self._save(name, parts.Audio(str(file), caption=value.caption or None), step)
        elif isinstance(value, File):
            kept = parts.Artifact(name=name.replace("/", "-"), type="file")
            kept.add_file(value.path)
            parts.Store.commit_artifact_version(
                project=self.project,
                name=kept.name,
                type=kept.type,
                description=None,
                manifest=kept._build_manifest(self.project),
                metadata={"step": step},
                aliases=[],
                run_name=self.id,
                run_id=self.id,
            )

    def close(self, status: str) -> None:
        if self._parts is not None:
            text = json.dumps({**self._config, "status": status})
            self._execute("UPDATE configs SET config = ? WHERE run_id = ?", text, self.id)

    def _execute(self, command: str, *values: Any) -> None:
        store = self._parts.Store
        path = store.get_project_db_path(self.project)
        with store._get_process_lock(self.project), store._get_connection(path) as connection:
            connection.execute(command, values)

    def _save(self, name: str, media: Any, step: int) -> None:
        media._save(self.project, self.id, step)
        self._log({name: media._to_dict()}, step)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        # Not by `trackio.init`, whose run is that of the process and drops what it cannot write.
        self._parts.Store.bulk_log(
            self.project, self.id, [dict(values)], [step], config=self._config, run_id=self.id
        )


def _import_parts() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trackio = importlib.import_module("trackio")
            storage = importlib.import_module("trackio.sqlite_storage")
    except ImportError as error:
        raise ImportError(
            "fl.trackers.Trackio needs the trackio package, which is not installed: "
            "pip install 'fnloop[trackio]'"
        ) from error
    return types.SimpleNamespace(
        Store=storage.SQLiteStorage,
        folder=storage.TRACKIO_DIR,
        Image=trackio.Image,
        Audio=trackio.Audio,
        Markdown=trackio.Markdown,
        Histogram=trackio.Histogram,
        Artifact=trackio.Artifact,
    )
