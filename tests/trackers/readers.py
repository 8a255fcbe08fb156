"""What each tracker has of a run, read by its own package, and trackers to write it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fnloop.trackers.aim import Aim
from fnloop.trackers.base import Tracker
from fnloop.trackers.jsonl import JSONL
from fnloop.trackers.mlflow_runs import MLflow
from fnloop.trackers.table import CSV
from fnloop.trackers.tensorboard import TensorBoard
from fnloop.trackers.trackio_runs import Trackio
from fnloop.trackers.wandb_runs import WandB

Curves = dict[str, list[tuple[int, float]]]


class Kept(NamedTuple):
    """A value that was shown, as read back: uint8[H, W, C] of a picture, text, int16 of a sound,
    counts and edges of a histogram, bytes of a file."""

    name: str
    step: int | None
    value: Any


class Case(NamedTuple):
    """A tracker under test: how to make one in a folder, and how to read its only run."""

    package: str | None
    make: Callable[[Path], Tracker]
    curves: Callable[[Path], Curves]
    kept: Callable[[Path], list[Kept]] = lambda folder: []


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Places that packages make once, slowly; and trackio's, which it takes at import only."""
    folder = tmp_path_factory.mktemp("homes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        yield folder


def prepared(kind: str, homes: Path, folder: Path) -> None:
    """Copy an empty repository of Aim, or an empty database of MLflow, to `folder`."""
    if kind == "Aim":
        made = homes / "aim"
        if not made.exists():
            from aim import Repo

            Repo.from_path(str(made), init=True)
        shutil.copytree(made, folder / "aim")
    elif kind == "MLflow":
        made = homes / "mlflow"
        if not made.exists():
            tracker = MLflow(made)
            tracker.open({}, None)
            tracker.close("completed")
            shutil.copytree(made, homes / "copy")
        (folder / "mlflow").mkdir(parents=True)
        shutil.copyfile(homes / "copy" / "mlflow.db", folder / "mlflow" / "mlflow.db")


def _picture(png: Any) -> np.ndarray[Any, Any]:
    import PIL.Image

    pixels = np.asarray(PIL.Image.open(io.BytesIO(png) if isinstance(png, bytes) else png))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _sound(data: bytes) -> np.ndarray[Any, Any]:
    with wave.open(io.BytesIO(data)) as file:
        flat = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return flat.reshape(-1, file.getnchannels())


# Aim


def _aim_curves(folder: Path) -> Curves:
    from aim import Repo

    (run,) = Repo(str(folder / "aim")).iter_runs()
    return {
        metric.name: sorted(zip(*_items(metric), strict=True))
        for metric in run.metrics()
        if metric.name != "epoch"
    }


def _items(sequence: Any) -> tuple[list[int], list[Any]]:
    steps, (values, *_) = sequence.data.items_list()
    return list(steps), list(values)


def _aim_kept(folder: Path) -> list[Kept]:
    from aim import Repo

    def picture(value: Any) -> Any:
        pixels = np.asarray(value.to_pil_image())
        return pixels[..., None] if pixels.ndim == 2 else pixels

    (run,) = Repo(str(folder / "aim")).iter_runs()
    kinds: dict[str, tuple[Any, Any]] = {
        "aim.image": (run.get_image_sequence, picture),
        "aim.text": (run.get_text_sequence, lambda value: value.data),
        "aim.audio": (run.get_audio_sequence, lambda value: _sound(value.get().read())),
        "aim.distribution": (run.get_distribution_sequence, lambda v: v.to_np_histogram()),
    }
    found: list[Kept] = []
    for kind, (sequence, read) in kinds.items():
        for name, context, _ in run.iter_sequence_info_by_type(kind):
            steps, values = _items(sequence(name, context))
            found += [Kept(name, *each) for each in zip(steps, map(read, values), strict=True)]
    for name, artifact in run.artifacts.items():
        path = Path(artifact.uri.removeprefix("file://"))
        found.append(Kept(name.partition("/")[0], None, path.read_bytes()))
    return found


# TensorBoard


def _board(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = dict.fromkeys(("scalars", "images", "audio", "histograms", "tensors"), 0)
    read = EventAccumulator(str(folder / "board" / "run-1"), sizes)
    return read.Reload()


def _board_curves(folder: Path) -> Curves:
    read = _board(folder)
    names = [name for name in read.Tags()["scalars"] if name != "epoch"]
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in names}


def _board_kept(folder: Path) -> list[Kept]:
    read = _board(folder)
    found: list[Kept] = []
    for name in read.Tags()["images"]:
        found += [Kept(name, e.step, _picture(e.encoded_image_string)) for e in read.Images(name)]
    for name in read.Tags()["audio"]:
        found += [Kept(name, e.step, _sound(e.encoded_audio_string)) for e in read.Audio(name)]
    for name in read.Tags()["histograms"]:
        for event in read.Histograms(name):
            bins = event.histogram_value
            counts, edges = np.array(bins.bucket[1:]), np.array(bins.bucket_limit)
            found.append(Kept(name, event.step, (counts, edges)))
    for name in read.Tags()["tensors"]:
        if name.endswith("/text_summary") and not name.startswith("config"):
            found += [
                Kept(name.partition("/")[0], e.step, e.tensor_proto.string_val[0].decode())
                for e in read.Tensors(name)
            ]
    return found


# Files


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()][1:]


def _jsonl_curves(folder: Path) -> Curves:
    curves: Curves = {}
    for line in _lines(folder):
        for name, number in line.items():
            if name not in ("step", "epoch") and isinstance(number, float):
                curves.setdefault(name, []).append((line["step"], number))
    return curves


def _jsonl_kept(folder: Path) -> list[Kept]:
    found: list[Kept] = []
    for line in _lines(folder):
        for name, value in line.items():
            if isinstance(value, str):
                found.append(Kept(name, line["step"], value))
            elif isinstance(value, dict):
                counts = np.array(value["counts"])
                edges = np.linspace(*value["edges"], len(counts) + 1)
                found.append(Kept(name, line["step"], (counts, edges)))
    return found


def _csv_curves(folder: Path) -> Curves:
    curves: Curves = {}
    with (folder / "run.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if text and name not in ("step", "epoch"):
                    curves.setdefault(name, []).append((int(row["step"]), float(text)))
    return curves


# MLflow


def mlflow_run(uri: str) -> tuple[Any, Any]:
    """The client, and the only run of the experiment ``tested``."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tested").experiment_id])
    return client, run


def _uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow/mlflow.db"


def _mlflow_curves(folder: Path) -> Curves:
    client, run = mlflow_run(_uri(folder))
    return {
        name: [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if name != "epoch"
    }


def _mlflow_kept(folder: Path) -> list[Kept]:
    _, run = mlflow_run(_uri(folder))
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    found: list[Kept] = []
    for path in sorted((artifacts / "images").glob("*.png")):
        name, _, step, *_ = path.name.split("+")
        found.append(Kept(name.replace("~", "/"), int(step), _picture(path)))
    for path in sorted((artifacts / "texts").rglob("*.txt")):
        found.append(Kept(path.parent.name, int(path.stem[5:]), path.read_text()))
    for path in sorted((artifacts / "sounds").rglob("*.wav")):
        found.append(Kept(path.parent.name, int(path.stem[5:]), _sound(path.read_bytes())))
    for path in sorted((artifacts / "files").rglob("*.*")):
        found.append(Kept(path.parent.name, None, path.read_bytes()))
    return found


# Weights & Biases


def _wandb_rows(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    from fnloop.trackers.wandb_files import records

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime):
        for _, record in records(path):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                place = row
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = json.loads(item.value_json)
            if row:
                yield path.parent / "files", row


def _wandb_curves(folder: Path) -> Curves:
    curves: Curves = {}
    for _, row in _wandb_rows(folder):
        for name, number in row.items():
            if name[0] != "_" and name not in ("step", "epoch") and isinstance(number, float | int):
                curves.setdefault(name, []).append((row["step"], float(number)))
    return curves


def _wandb_kept(folder: Path) -> list[Kept]:
    found: list[Kept] = []
    for files, row in _wandb_rows(folder):
        for name, value in row.items():
            if not isinstance(value, dict):
                continue
            kind = value["_type"]
            if kind == "histogram":
                read: Any = (np.array(value["values"]), np.array(value["bins"]))
            elif kind == "image-file":
                read = _picture(files / value["path"])
            elif kind == "audio-file":
                read = _sound((files / value["path"]).read_bytes())
            else:
                text = (files / value["path"]).read_text()
                read = text.partition("<pre>")[2].partition("</pre>")[0]
            found.append(Kept(name, row["step"], read))
    for path in sorted(folder.glob("wandb/offline-run-*/files/note/*.txt")):
        found.append(Kept("note", None, path.read_bytes()))
    return found


# trackio


def _trackio_rows(folder: Path) -> list[dict[str, Any]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs(folder.name)
    return SQLiteStorage.get_logs(folder.name, run.name, run_id=run.id)


def _trackio_curves(folder: Path) -> Curves:
    curves: Curves = {}
    for row in _trackio_rows(folder):
        for name, number in row.items():
            if name not in ("step", "epoch") and isinstance(number, float | int):
                curves.setdefault(name, []).append((row["step"], float(number)))
    return curves


def _trackio_kept(folder: Path) -> list[Kept]:
    from trackio import cas
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import MEDIA_DIR

    found: list[Kept] = []
    for row in _trackio_rows(folder):
        for name, value in row.items():
            if not isinstance(value, dict):
                continue
            kind = value["_type"].removeprefix("trackio.")
            if kind == "histogram":
                read: Any = (np.array(value["values"]), np.array(value["bins"]))
            elif kind == "image":
                read = _picture(MEDIA_DIR / value["file_path"])
            elif kind == "audio":
                read = _sound((MEDIA_DIR / value["file_path"]).read_bytes())
            else:
                read = value["_value"]
            found.append(Kept(name, row["step"], read))
    for artifact in SQLiteStorage.get_artifacts(folder.name):
        made = SQLiteStorage.get_artifact_manifest(folder.name, artifact["name"], "latest")
        for entry in made["manifest"]:
            path = cas.blob_path(folder.name, entry["digest"])
            found.append(Kept(artifact["name"], None, Path(path).read_bytes()))
    return found


CASES = {
    "Aim": Case("aim.sdk.index_manager", lambda f: Aim(f / "aim"), _aim_curves, _aim_kept),
    "TensorBoard": Case(
        "tensorboard", lambda f: TensorBoard(f / "board"), _board_curves, _board_kept
    ),
    "JSONL": Case(None, lambda f: JSONL(f / "run.jsonl"), _jsonl_curves, _jsonl_kept),
    "CSV": Case(None, lambda f: CSV(f / "run.csv"), _csv_curves),
    "MLflow": Case(
        "mlflow", lambda f: MLflow(f / "mlflow", "tested"), _mlflow_curves, _mlflow_kept
    ),
    "WandB": Case(
        "wandb", lambda f: WandB("tested", f, mode="offline"), _wandb_curves, _wandb_kept
    ),
    "Trackio": Case("trackio", lambda f: Trackio(f.name), _trackio_curves, _trackio_kept),
}
