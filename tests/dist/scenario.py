"""Scenarios that run on every rank of a launch."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch

import fnloop as fl

SCENARIOS = {}


def scenario(function):
    """Note a function ``(mesh) -> None`` that asserts what must hold on every rank."""
    SCENARIOS[function.__name__] = function
    return function


def main() -> None:
    """Run all scenarios, and write what each raised."""
    torch.set_num_threads(1)
    mesh, found = fl.mesh(timeout=60), {}
    for name, function in SCENARIOS.items():
        try:
            function(mesh)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
        if any(mesh.exchange(found[name])):
            found[name] = found[name] or "another rank failed"
    Path(sys.argv[1], f"rank-{mesh.rank}.json").write_text(json.dumps(found))
