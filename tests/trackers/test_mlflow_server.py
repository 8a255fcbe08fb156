"""MLflow with a server on this machine, which goes away and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.trackers.mlflow_runs import MLflow, _reach
from tests.ports import free_port
from tests.trackers.readers import homes, mlflow_run, prepared

assert homes  # a fixture

pytest.importorskip("mlflow")


class Server:
    """A process group: the server has workers."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self._process = folder, port, None
        self.uri = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "kept"), "--workers", "1"]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture
def server(tmp_path: Path) -> Any:
    pytest.importorskip("flask")
    pytest.importorskip("mlflow.server", reason="only mlflow-skinny is installed")
    pytest.importorskip("skops", reason="only mlflow-skinny is installed")
    made = Server(tmp_path, free_port())
    made.start()
    yield made
    made.stop()


@pytest.mark.slow
def test_a_server_that_is_away_for_a_while_gets_all_points(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
    data = fl.Batches(torch.arange(48.0).reshape(24, 2) / 48, 2)

    tracker = MLflow(server.uri, "tested", name="by a server", tags=["a"])
    refused: list[str] = []
    real = tracker.log

    def log(*given: Any) -> None:
        try:
            real(*given)
        except OSError as error:
            refused.append(str(error))
            raise

    monkeypatch.setattr(tracker, "log", log)

    @fl.effect
    def away(state: fl.State, metrics: Any) -> None:
        count = int(state.cursor[2])
        if count == 4:
            server.stop()
        elif count == 10:
            while not refused:
                time.sleep(0.05)
            server.start()

    picture = fl.trackers.Image(torch.rand(3, 8, 8))
    view = fl.every(5, fl.trackers.show(lambda state, metrics: {"p": picture}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fl.fit(
            step,
            step.init(torch.nn.Linear(2, 1), seed=0),
            data,
            steps=20,
            callbacks=[fl.track(tracker, view, every=1), away],
        )
    told = [str(each.message) for each in caught if each.category is UserWarning]
    assert len(told) == 1 and "Training goes on; its points are kept" in told[0]

    client, run = mlflow_run(server.uri)
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in points] == [*range(1, 21)]
    assert run.info.status == "FINISHED" and run.info.run_name == "by a server"
    assert run.data.tags["status"] == "completed" and "a" in run.data.tags
    pictures = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert sorted(p.split("+")[2] for p in pictures if p.endswith(".png")) == [
        "10",
        "15",
        "20",
        "5",
    ]


def test_a_server_that_is_not_there_is_told_of_at_once() -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(torch.nn.Linear(2, 1))
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=f"No MLflow server answers at {uri} .*Start it"):
        fl.fit(step, state, [torch.ones(1, 2)], steps=1, callbacks=[fl.track(MLflow(uri))])
    assert time.monotonic() - begun < 60  # MLflow's own attempts take twice as long


def test_a_proxy_is_not_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    _reach(f"http://example.invalid:{free_port()}")  # which only the proxy may know
    with pytest.raises(OSError, match="No MLflow server answers"):
        _reach(f"https://127.0.0.1:{free_port()}")


def test_hyperparameters_that_have_changed_are_tags(homes: Path, tmp_path: Path) -> None:
    prepared("MLflow", homes, tmp_path)
    first = MLflow(tmp_path / "mlflow", "tested")
    first.open({"lr": 0.1, "n": {"long": "x" * 10_000}, "odd (name)": True}, None)
    first.close("interrupted")
    again = MLflow(tmp_path / "mlflow", "tested")
    again.open({"lr": 0.2, "new": None}, first.id)
    again.close("failed")
    _, run = mlflow_run(again.uri)
    assert again.id == first.id == run.info.run_id
    assert run.data.params.keys() == {"lr", "n.long", "odd _name_", "new"}
    assert run.data.params["lr"] == "0.1" and run.data.tags["lr"] == "0.2"
    assert run.info.status == "FAILED" and run.data.tags["status"] == "failed"

    lost = MLflow(tmp_path / "mlflow", "tested")
    with pytest.warns(UserWarning, match="no run 0000.* a new run is started"):
        lost.open({}, "0" * 32)
    assert lost.id != first.id
    lost.close("completed")


def test_nothing_is_left_in_the_working_folder_or_the_environment(
    homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared("MLflow", homes, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    before = dict(os.environ)
    tracker = MLflow("mlflow")
    tracker.open({}, None)
    tracker.log({"loss": 1.0}, 1, 1)
    tracker.close("completed")
    assert os.listdir(tmp_path) == ["mlflow"]
    changed = {name for name in {*before, *os.environ} if before.get(name) != os.environ.get(name)}
    assert not {name for name in changed if not name.startswith("PYTEST")}
