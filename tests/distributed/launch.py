"""Run a file of scenarios on several ranks, and collect what happened on each."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(script: Path, ranks: int, *arguments: str, seconds: float = 300, **env: str):
    """Start `script` by torchrun on `ranks` ranks; the finished process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc-per-node={ranks}", str(script), *arguments],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            **env,
        },
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def processes(commands, environments):
    """Start Python on each command with its own variables, as other launchers do."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, env in zip(commands, environments, strict=True)
    ]


@functools.cache
def outcomes(script: Path, ranks: int, seconds: float = 300) -> dict[str, list[str]]:
    """What each scenario of a script raised on each rank; an empty text where all was right.

    One launch runs them all, since it takes seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = run(script, ranks, folder, seconds=seconds)
        every = [Path(folder, f"rank-{rank}.json") for rank in range(ranks)]
        found = [json.loads(file.read_text()) if file.exists() else {} for file in every]
    lost = f"it did not end:\n{done.stdout}{done.stderr}"
    return {name: [own.get(name, lost) for own in found] for name in scenarios(script)}


def check(script: Path, name: str, ranks: int, seconds: float = 300) -> None:
    """Check that a scenario of a script was right on every rank."""
    failed = [text for text in outcomes(script, ranks, seconds)[name] if text]
    assert not failed, failed[0]


def scenarios(script: Path) -> list[str]:
    """The names of a script's scenarios, without running it."""
    tree = ast.parse(script.read_text())
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and _is_scenario(n)]


def _is_scenario(function: ast.FunctionDef) -> bool:
    return any([isinstance(d, ast.Name) and d.id == "scenario" for d in function.decorator_list])
