"""Aim with a server on this machine, which is stopped while a run writes to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aim.sdk.index_manager")

from fnloop.trackers.aim import _import_aim, _index
from tests.ports import free_port
from tests.trackers.test_aim import read

SERVE = "from aim.cli.cli import cli_entry_point; cli_entry_point()"
TRAIN = """
import os, signal, sys
import torch
import fnloop as fl

address, server = sys.argv[1], int(sys.argv[2])
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.01)))
state = step.init(torch.nn.Linear(2, 1), seed=0)

@fl.effect
def stops_the_server(state, metrics):
    if int(state.cursor[2]) == 4:
        tracker._run.repo._client.get_queue().wait_for_finish()
        os.killpg(server, signal.SIGKILL)

for stops in (False, True):
    tracker = fl.trackers.Aim(address, experiment="tested", tags=["a"])
    tracking = fl.track(tracker, every=1)
    callbacks = [tracking, *([stops_the_server] if stops else [])]
    _, history = fl.fit(step, state, [torch.ones(2, 2)], steps=9, callbacks=callbacks)
    print(tracker.id, history.status, len(history))
"""


def started(folder: Path) -> tuple[subprocess.Popen[Any], str]:
    """A server, in a process group of its own, and its address."""
    port, command = free_port(), [sys.executable, "-c", SERVE, "server", "--repo", str(folder)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--yes"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    while True:
        assert server.poll() is None, (folder / "log").read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return server, f"aim://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)


@pytest.mark.slow
def test_a_run_is_read_back_and_one_goes_on_without_its_server(tmp_path: Path) -> None:
    from aim import Repo

    Repo.from_path(str(tmp_path), init=True)
    server, address = started(tmp_path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, address, str(server.pid)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,  # it ended never
        )
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    assert done.returncode == 0, done.stderr
    (whole, *first), (_, *second) = map(str.split, done.stdout.splitlines())
    assert first == second == ["completed", "9"]
    (told,) = [line for line in done.stderr.splitlines() if "UserWarning" in line]
    assert f"{address} does not answer, and lacks the end of this run" in told
    assert "Traceback" not in done.stderr

    _index(_import_aim(), tmp_path, whole)  # as `aim up` does
    run = Repo(str(tmp_path)).get_run(whole)
    assert (run.experiment, run.tags, run["status"]) == ("tested", ["a"], "completed")
    assert run["hparams"]["sgd.lr"] == 0.01
    found = read(tmp_path)[whole]["loss", "train"]
    assert [step for step, _ in found] == [*range(1, 10)] and found[-1][1] < found[0][1]
