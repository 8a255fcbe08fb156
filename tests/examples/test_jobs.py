"""Job files: that for SLURM with an ``srun`` and a ``scontrol`` in place of those of a cluster, and
that for Kubernetes as it is read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from tests.distributed.launch import ROOT

JOBS = Path(__file__).parents[2] / "examples" / "jobs"
RECIPE = """
import os, time
import torch
import fnloop as fl

def loss(model, batch):
    time.sleep(0.02)
    return model(batch).square().mean()

def recipe(folder: str = "run") -> fl.Recipe:
    step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), fl.mesh(timeout=60))
    data, epochs = fl.Batches(torch.ones(8, 2), 4), int(os.environ["EPOCHS"])
    model = lambda: torch.nn.Linear(2, 1)
    return fl.Recipe(step, model, data, [fl.checkpoint(folder)], epochs=epochs, folder=folder)
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_ID=0 SLURM_NTASKS=2 SLURM_JOB_NODELIST=localhost
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}"' TERM
echo "$$" > srun.pid
code=0
for pid in "${pids[@]}"; do
    wait "$pid"; one=$?
    while kill -0 "$pid" 2> /dev/null; do wait "$pid"; one=$?; done
    [ $one -gt $code ] && code=$one
done
exit $code
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with a recipe, and commands of SLURM that do what those do on one machine."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    commands = {
        "srun": SRUN,
        "scontrol": '#!/bin/bash\necho "$@" >> scontrol.txt\n',
        "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
    }
    (tmp_path / "bin").mkdir()
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    own = {"SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "1", "SCRATCH": str(tmp_path)}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def start(folder, epochs):
    return subprocess.Popen(
        ["bash", str(JOBS / "slurm.sh")],
        cwd=folder,
        env={**os.environ, "EPOCHS": str(epochs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.lightning("G2")
def test_a_job_that_is_ended_goes_into_the_queue_again_and_goes_on(cluster):
    job = start(cluster, 10**6)
    end = time.monotonic() + 120
    while not list(cluster.glob("runs/a/step-*")) and time.monotonic() < end:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((cluster / "srun.pid").read_text()), signal.SIGTERM)
    text, _ = job.communicate(timeout=60)
    assert job.returncode == 143, text
    assert text.count("interrupted") == 1
    assert (cluster / "scontrol.txt").read_text() == "requeue 4711\n"
    again = start(cluster, 1)  # which are done
    text, _ = again.communicate(timeout=120)
    assert again.returncode == 0, text
    assert "resumed from" in text
    assert (cluster / "scontrol.txt").read_text() == "requeue 4711\n"


@pytest.mark.lightning("G5")
def test_the_pods_of_kubernetes_meet_where_the_service_names_one():
    service, job = yaml.safe_load_all((JOBS / "kubernetes.yaml").read_text())
    pods = job["spec"]["template"]["spec"]
    (container,) = pods["containers"]
    program, *arguments = container["command"]
    assert program == "torchrun"
    given = get_args_parser().parse_args(arguments)
    # The first pod of an indexed job is NAME-0.SUBDOMAIN, if a headless service has this name.
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed" and service["spec"]["clusterIP"] == "None"
    assert pods["subdomain"] == subdomain and service["spec"]["selector"] == {"job-name": name}
    assert given.rdzv_endpoint == f"{name}-0.{subdomain}:29400"
    assert given.nnodes.endswith(f":{job['spec']['completions']}")
    assert given.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert (given.module, given.training_script) == (True, "fnloop")
    seconds = {each["name"]: each["value"] for each in container["env"]}
    last_save = int(seconds["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 30 < last_save < pods["terminationGracePeriodSeconds"]
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in pods["volumes"]}
