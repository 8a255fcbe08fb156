"""Which of many processes this one is: what its launcher says of that in the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

_PORT = 29500  # torch's own default
_SLURM_PORT = 15_000  # and up: systems give no port below 32768 to outgoing connections


class Launched(NamedTuple):
    """A process among those that a launcher has started.

    Attributes:
        launcher: Who has started it.
        rank: Its number among all, from 0.
        size: How many there are.
        local: Its number among those of its machine.
        meeting: Where they find one another, as a URL for ``torch.distributed``.
    """

    launcher: str
    rank: int
    size: int
    local: int
    meeting: str


def launched(env: Mapping[str, str] = os.environ) -> Launched | None:
    """This process's place; None if no launcher has started it.

    It knows torchrun, SLURM's ``srun``, Open MPI and MPICH. Where several have had a hand in it
    (``srun torchrun ...``), torchrun is the one that counts.

    Raises:
        RuntimeError: A launcher has said only a part of it.

    >>> launched({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    Launched(launcher='torchrun', rank=1, size=2, local=1, meeting='env://')
    >>> slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    >>> launched({**slurm, "SLURM_JOB_NODELIST": "gpu[07-09]"}).meeting
    'tcp://gpu07:15000'
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        local = env.get("LOCAL_RANK", env["RANK"])
        return Launched("torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]), int(local), "env://")
    if "SLURM_PROCID" in env and not _is_batch_script(env):
        return _slurm(env)
    for launcher, names in _MPI.items():
        if names[0] in env:
            rank, size, local = (int(_known(env, name, launcher)) for name in names)
            return Launched(launcher, rank, size, local, _mpi_meeting(env, launcher))
    return None


_MPI = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
}
_LOCAL_SIZES = {"Open MPI": "OMPI_COMM_WORLD_LOCAL_SIZE", "MPICH": "MPI_LOCALNRANKS"}


def _is_batch_script(env: Mapping[str, str]) -> bool:
    """Whether this is the script given to ``sbatch``, which runs once and counts as task 0."""
    return "SLURM_JOB_ID" in env and "SLURM_STEP_ID" not in env


def _slurm(env: Mapping[str, str]) -> Launched:
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, size, local = (int(_known(env, name, "srun")) for name in names)
    nodes = env.get("SLURM_STEP_NODELIST") or _known(env, "SLURM_JOB_NODELIST", "srun")
    job = int(env.get("SLURM_JOB_ID", "0"))  # two jobs on one machine meet at different ports
    return Launched(
        "srun", rank, size, local, _meeting(env, first_host(nodes), _SLURM_PORT + job % 10_000)
    )


def _mpi_meeting(env: Mapping[str, str], launcher: str) -> str:
    here = env.get(_LOCAL_SIZES[launcher])
    if "MASTER_ADDR" not in env and here != env[_MPI[launcher][1]]:
        raise RuntimeError(
            f"{launcher} has started processes on several machines, and does not say where they "
            "meet. Pass the name of the first machine to all of them: "
            "mpirun -x MASTER_ADDR=HOST python train.py"
        )
    return _meeting(env, "127.0.0.1", _PORT)


def _meeting(env: Mapping[str, str], host: str, port: int) -> str:
    return f"tcp://{env.get('MASTER_ADDR', host)}:{env.get('MASTER_PORT', port)}"


def _known(env: Mapping[str, str], name: str, launcher: str) -> str:
    if name not in env:
        raise RuntimeError(
            f"{launcher} has started this process, but {name} is not in its environment, so its "
            "place among the others is unknown. The usual cause is a container or a script that "
            "passes only some variables on."
        )
    return env[name]


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it.

    >>> first_host("gpu[007-012,20],login"), first_host("a,b")
    ('gpu007', 'a')
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodes)
