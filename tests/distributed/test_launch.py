"""What launchers say in the environment, in processes that have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fnloop.distributed.launch import first_host, launched
from tests.distributed.launch import processes
from tests.ports import free_port

SCRIPT = Path(__file__).with_name("meeting.py")
NAMES = {
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}
MORE = {
    "srun": {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "localhost"},
    "Open MPI": {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    "MPICH": {"MPI_LOCALNRANKS": "2"},
}


def environment(launcher, rank, size=2):
    own = zip(NAMES[launcher], (rank, size, rank), strict=True)
    return {**MORE[launcher], **{name: str(value) for name, value in own}}


def meet(envs, *arguments):
    """How the ranks ended that have met, and what each has printed."""
    ends = []
    for each in processes([[SCRIPT, *arguments]] * len(envs), envs):
        text, _ = each.communicate(timeout=120)
        ends.append((each.returncode, text))
    return ends


def joined(backend):
    """How two ranks ended that had joined a process group themselves, as Ray Train does."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return meet([{**place, "RANK": str(rank)} for rank in range(2)], backend)


def check_met(ends):
    """All ranks have met, and rank zero alone has said what all would say."""
    for rank, (code, text) in enumerate(ends):
        assert code == 0, text
        assert text.strip().splitlines()[-1] == "[0, 1] 3"
        assert text.count("of all ranks") == (0 if rank else 3), text  # a warning has its line


@pytest.mark.lightning("T4", "G5")
@pytest.mark.parametrize("launcher", ["srun", "Open MPI"])
def test_processes_of_other_launchers_meet(launcher):
    port = str(free_port())
    check_met(meet([{**environment(launcher, rank), "MASTER_PORT": port} for rank in range(2)]))


@pytest.mark.lightning("T34")
def test_a_process_group_that_is_there_is_taken():
    check_met(joined("gloo"))


def test_a_process_group_without_the_cpu_is_refused():
    for code, text in joined("cuda:gloo"):
        assert code == 1, text
        assert "ValueError: The process group of this program, 'cuda:gloo', exchanges no" in text
        assert "cpu:gloo,cuda:nccl" in text


@pytest.mark.lightning("G5")
@pytest.mark.parametrize("launcher", NAMES)
def test_a_place(launcher):
    own = launched(environment(launcher, 1))
    assert own[:4] == (launcher, 1, 2, 1)
    ports = {"srun": 15007}
    host = {"srun": "localhost"}.get(launcher, "127.0.0.1")
    assert own.meeting == f"tcp://{host}:{ports.get(launcher, 29500)}"


@pytest.mark.lightning("S9")
def test_torchrun_comes_first():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert launched({**environment("srun", 1), **torchrun}) == ("torchrun", 3, 8, 1, "env://")


def test_a_script_of_sbatch_is_alone():
    batch = environment("srun", 0, 8)
    del batch["SLURM_STEP_ID"]
    assert launched(batch) is None
    assert launched({}) is None


def test_what_is_missing_is_named():
    part = environment("srun", 0)
    del part["SLURM_NTASKS"]
    with pytest.raises(RuntimeError, match="SLURM_NTASKS is not in its environment"):
        launched(part)
    with pytest.raises(RuntimeError, match="mpirun -x MASTER_ADDR=HOST"):
        launched({**environment("Open MPI", 0), "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu[07-12,20],a", "gpu07"),
        ("gpu[3,5-6]", "gpu3"),
        ("rack[1-2]-node[08-09]", "rack1-node08"),
        ("node[1-3].cluster", "node1.cluster"),
    ],
)
def test_the_first_host(nodes, first):
    assert first_host(nodes) == first
