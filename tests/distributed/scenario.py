"""Scenarios that run on every rank of a launch."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import pytest
import torch

import fnloop as fl
from fnloop.distributed.gates import gate, leave

SCENARIOS = {}


def scenario(function):
    """Note a function ``(mesh) -> None`` that asserts what must hold on every rank."""
    if function.__module__ == "__main__":  # and not one of a file that is imported
        SCENARIOS[function.__name__] = function
    return function


def main(timeout: float = 60) -> None:
    """Run all scenarios, or those named, and write what each raised.

    One that fails on a rank says so to the others, wherever they are. `timeout` is that of
    `fl.mesh`.
    """
    torch.set_num_threads(1)
    mesh, found = fl.mesh(timeout=timeout), {}
    chosen = sys.argv[2:] or SCENARIOS
    for name, function in [(name, SCENARIOS[name]) for name in chosen]:
        try:
            function(mesh)
            gate(mesh, "the end of a scenario")
            found[name] = ""
        except (Exception, pytest.fail.Exception) as failed:
            found[name] = traceback.format_exc()
            leave(mesh, failed if isinstance(failed, Exception) else AssertionError(failed))
        # After each, in case the next one ends the process.
        Path(sys.argv[1], f"rank-{mesh.rank}.json").write_text(json.dumps(found))


def meet(mesh) -> None:
    """Wait for all ranks; raise if one has failed."""
    gate(mesh, "a meeting of all ranks")
