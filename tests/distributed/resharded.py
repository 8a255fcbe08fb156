"""Checkpoints that one launch saves and others load: run by ``test_resharded.py``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fnloop as fl
from tests.distributed.scenario import main, meet, scenario
from tests.distributed.store import Net, bits, plans_for, step_for, trained


def shared():
    """The folder of all launches."""
    return Path(sys.argv[1]).parent


@scenario
def states_under_every_plan_are_saved(mesh):
    for plan in plans_for(mesh.data):
        state, _, _ = trained(mesh, plan)
        where = fl.save(state, shared() / f"{plan}-{mesh.data}", mesh=mesh)
        whole = bits(fl.gather(state))
        if mesh.rank == 0:
            where.parent.with_suffix(".json").write_text(json.dumps(whole))
    meet(mesh)


@scenario
def what_every_launch_has_saved_is_loaded(mesh):
    there = sorted(shared().glob("*.json"))
    assert len(there) == 4 * 4 + 1, there
    for plan in plans_for(mesh.data):
        like = step_for(mesh, plan).init(lambda: Net(7), seed=9)
        for file in there:
            loaded = fl.load(file.with_suffix(""), like=like, mesh=mesh)
            assert loaded.params.layout is like.params.layout
            assert bits(fl.gather(loaded)) == json.loads(file.read_text()), (file.stem, plan)


if __name__ == "__main__":
    main()
