"""Sharded steps as Inductor builds them: run by ``test_compiled.py``, for minutes."""

from __future__ import annotations

import fnloop as fl
from tests.distributed import exported
from tests.distributed.every import about
from tests.distributed.laws import (
    PLANS,
    Net,
    assert_close,
    assert_same_everywhere,
    data,
    pipeline,
    trained,
)
from tests.distributed.scenario import main, scenario


@scenario
def a_step_that_donates(mesh):
    setting = (lambda: Net(drop=0.2), data(40, 10))
    one = trained(exported.in_parts(pipeline(2), mesh.data), *setting)
    for plan in PLANS:
        step = fl.compile(fl.shard(pipeline(2), mesh, plan), donate=True)
        with about(plan):
            many = trained(step, *setting)
            assert_close(one, many, atol=2e-6)
            assert step.graphs == 1
            assert_same_everywhere(mesh, many[0])


if __name__ == "__main__":
    main(timeout=900)
