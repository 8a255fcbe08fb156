"""A rank is killed, lost or joins: training goes on, and ends as one uninterrupted process."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fnloop as fl
from tests.distributed.launch import ROOT
from tests.distributed.training import data, digest, model, pipeline
from tests.ports import free_port
from tests.store import s3

SCRIPT = Path(__file__).with_name("training.py")
SECONDS = 150


def uninterrupted(steps):
    """The hash of the last state in one process, without `fl.shard`."""
    step = pipeline()
    state, _ = fl.fit(step, step.init(model, seed=3), data(), steps=steps)
    return digest(state)


class Job:
    """Agents of torchrun that train together; `more` are the last arguments of their script."""

    def __init__(self, folder, steps, seconds, *options, more=()):
        self.folder, self.options = folder, options
        self.arguments = [str(SCRIPT), str(folder), str(steps), str(seconds), *more]
        self.agents = []

    def start(self, ranks):
        """One more agent, as on one more machine."""
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with (self.folder / f"log-{len(self.agents)}").open("w") as log:
            agent = subprocess.Popen(
                [*command, *self.options, *self.arguments],
                env={**os.environ, **env, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.agents.append(agent)
        return agent

    def until(self, what):
        """Wait until `what()` is true."""
        end = time.monotonic() + SECONDS
        while not what():
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def at(self, rank):
        """Where a rank is."""
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / f"at-{rank}").read_text())
        return 0

    def starts(self):
        """The number of ranks of each start."""
        with contextlib.suppress(OSError):
            return (self.folder / "starts").read_text().split()
        return []

    def end(self):
        """The hash of the last state, once it is there."""
        self.until(lambda: (self.folder / "end").exists() or self.agents[0].poll() not in (None, 0))
        assert (self.folder / "end").exists(), self.log()
        assert self.agents[0].wait(SECONDS) == 0, self.log()
        return (self.folder / "end").read_text()

    def log(self):
        """What all agents and ranks have printed."""
        return "\n".join(file.read_text()[-6000:] for file in sorted(self.folder.glob("log-*")))

    def stop(self):
        """End everything that still runs."""
        for agent in self.agents:
            kill([*workers(agent), agent.pid])
            agent.wait()


def workers(agent):
    """The processes that an agent has started."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text()
        return [int(child) for child in children.split()]
    return []


def kill(processes):
    """Kill them, as a machine that is lost does."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@pytest.fixture
def job(tmp_path):
    """Makes a job, which ends with the test."""
    made = []

    def make(*arguments, **more):
        made.append(Job(tmp_path, *arguments, **more))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_a_killed_rank_is_started_again_and_the_end_is_the_same(job):
    running = job(24, 0.05, "--standalone", "--max-restarts=1")
    agent = running.start(2)
    running.until(lambda: running.at(1) >= 5)
    kill(workers(agent)[1:])
    assert running.end() == uninterrupted(24)
    assert running.starts() == ["2", "2"]


@pytest.fixture
def bucket(monkeypatch):
    """The URL of an S3 server's bucket, which all processes find by their environment."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3.serving() as gate:
        endpoint = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{gate.server}"}
        for name, value in {**s3.ENVIRONMENT, **endpoint}.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{s3.BUCKET}"


def test_killed_ranks_go_on_from_an_object_store(job, bucket):
    run = f"{bucket}/runs/a"
    running = job(24, 0.05, "--standalone", "--max-restarts=2", more=("zero2", run))
    agent = running.start(2)
    for victim in (1, 0):
        before, starts = running.at(victim), len(running.starts())
        running.until(lambda: running.at(victim) >= before + 5)  # noqa: B023
        kill(workers(agent)[victim : victim + 1])
        running.until(lambda: len(running.starts()) > starts)  # noqa: B023
    assert running.end() == uninterrupted(24)
    assert running.starts() == ["2"] * 3
    saved = fl.latest(run)
    assert saved.name == "step-00000024"
    assert len([file for file in saved.iterdir() if "state-" in file.name]) == 2
    assert digest(fl.load(run, like=pipeline().init(model))) == uninterrupted(24)


def listens(port):
    """Whether somebody listens on a port."""
    with socket.socket() as mine:
        return mine.connect_ex(("localhost", port)) == 0


def elastic(port):
    """Options for one or two machines, of which each may come and go."""
    return (
        "--nnodes=1:2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=localhost:{port}",
        "--rdzv-id=elastic",
        "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3",
        "--max-restarts=4",
    )


def test_four_ranks_then_two_then_three_end_as_one_process(job):
    port = free_port()
    running = job(200, 0.1, *elastic(port))
    running.start(2)
    running.until(lambda: listens(port))  # the first is where the agents meet, and stays
    second = running.start(2)
    running.until(lambda: running.at(0) >= 5 and running.starts() == ["4"])
    kill([*workers(second), second.pid])  # a machine is lost
    lost = running.at(0)
    running.until(lambda: running.starts() == ["4", "2"] and running.at(0) > lost + 5)
    running.start(1)  # another joins
    assert running.end() == uninterrupted(200)
    assert running.starts() == ["4", "2", "3"]


@pytest.mark.slow
def test_fifty_random_kills_change_nothing(job):
    draw = random.Random(0)
    running = job(600, 0.0, "--standalone", "--max-restarts=50")
    agent = running.start(2)
    for n in range(50):
        running.until(lambda n=n: len(running.starts()) == n + 1)
        before = running.at(0)
        running.until(lambda before=before: running.at(0) > before)
        time.sleep(draw.random() * 0.2)
        kill([draw.choice(workers(agent))])
        running.until(lambda n=n: len(running.starts()) > n + 1)
    assert running.end() == uninterrupted(600)
    assert running.starts() == ["2"] * 51
