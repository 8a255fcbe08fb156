"""Training and sweeps on a Ray cluster on this machine, with two workers: ``pytest -m ray``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

import fnloop as fl
from tests.distributed import training
from tests.distributed.launch import ROOT
from tests.distributed.test_surviving import uninterrupted

ray = pytest.importorskip("ray")
pytest.importorskip("ray.train.torch")
pytest.importorskip("ray.tune")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster():
    """Ray's folder. Paths of its sockets are long, so that it is not in pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes into the home folder
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        ray.init(num_cpus=4, include_dashboard=False, _temp_dir=str(folder), log_to_driver=False)
        yield folder
        ray.shutdown()
    shutil.rmtree(folder)


def trained(cluster, name, function, config, restarts=0, **settings):
    """What two workers of Ray return from a function of ``under_ray.py``."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    running = RunConfig(
        name=name,
        storage_path=str(cluster / "results"),
        failure_config=FailureConfig(max_failures=restarts),
        **settings,
    )
    workers = ScalingConfig(num_workers=2)
    trainer = TorchTrainer(
        function, train_loop_config=config, scaling_config=workers, run_config=running
    )
    return trainer.fit().return_value


@pytest.mark.parametrize(("plan", "reduce"), [("zero3", "fast"), ("zero2", "canonical")])
def test_two_workers_are_one_process(cluster, tmp_path, plan, reduce):
    from tests.distributed import under_ray

    step = training.pipeline() if reduce == "canonical" else under_ray.plain(fl.accumulate(2))
    begin = step.init(training.model, seed=3)
    one, alone = fl.fit(step, begin, training.data(), epochs=under_ray.EPOCHS)
    config = {"plan": plan, "reduce": reduce, "folder": str(tmp_path / "run")}
    noted = under_ray.Noted(tmp_path / "noted")
    ranks, losses = trained(cluster, f"{plan}-{reduce}", under_ray.train, config, callbacks=[noted])
    assert ranks == 2 and losses == pytest.approx(alone["loss"], abs=1e-6)
    both = fl.load(tmp_path / "run", like=begin)
    if reduce == "canonical":
        assert training.digest(both) == training.digest(one)
    for name, value in one.params.items():
        assert (both.params[name] - value).abs().max() <= 1e-6, name
    told = [json.loads(line) for line in noted.file.read_text().splitlines()]
    expected = [{"loss": loss, "count": 5 * n} for n, loss in enumerate(losses, 1)]
    assert told == [[each] * 2 for each in expected]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_is_started_again_and_the_end_is_the_same(cluster, tmp_path, victim):
    from tests.distributed import under_ray

    def kill():
        end = time.monotonic() + 150
        while time.monotonic() < end:
            at = tmp_path / f"at-{victim}"
            if at.exists() and int(at.read_text() or 0) >= 5:
                os.kill(int((tmp_path / f"process-{victim}").read_text()), signal.SIGKILL)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    config = {"folder": str(tmp_path), "steps": 24, "seconds": 0.05}
    trained(cluster, f"killed-{victim}", under_ray.survive, config, restarts=1)
    killer.join()
    assert (tmp_path / "end").read_text() == uninterrupted(24)
    assert (tmp_path / "starts").read_text().split() == ["2", "2"]


def test_an_error_of_one_worker_is_named_by_all(cluster):
    from ray.train import WorkerGroupError

    from tests.distributed import under_ray

    with pytest.raises(WorkerGroupError) as caught:
        trained(cluster, "failed", under_ray.fail, {})
    error = "the loss of one rank"
    first = f"Rank 1 of 2 has failed, so all ranks end. ArithmeticError: {error}"
    told = {rank: str(failure) for rank, failure in caught.value.worker_failures.items()}
    assert told  # by both, unless Ray has looked between the one and the other
    assert told.items() <= {0: first, 1: error}.items()


def test_a_sweep_whose_trial_is_lost_ends_as_each_run_by_itself(cluster, tmp_path):
    from ray import tune

    from tests.distributed import under_ray

    rates = [0.1, 0.5]
    space = {"folder": str(tmp_path), "lr": tune.grid_search(rates), "lost": rates[1]}
    running = tune.RunConfig(
        name="sweep",
        storage_path=str(cluster / "results"),
        failure_config=tune.FailureConfig(max_failures=1),
        verbose=0,
    )
    results = tune.Tuner(under_ray.trial, param_space=space, run_config=running).fit()
    assert not results.errors
    told = {result.config["lr"]: result.metrics for result in results}
    for lr in rates:
        state, history = under_ray.attempt(lr, tmp_path / f"alone-{lr}")
        assert training.digest(fl.load(tmp_path / str(lr), like=state)) == training.digest(state)
        assert told[lr]["loss"] == history["loss"][-1] and told[lr]["count"] == 10
