"""Each stage in one graph, under the plans in turn: run by ``test_compiled.py``."""

from __future__ import annotations

import itertools

import fnloop as fl
from tests.distributed import exported
from tests.distributed.every import about
from tests.distributed.laws import PLANS, assert_close, assert_same_everywhere, trained
from tests.distributed.scenario import main, scenario


@scenario
def every_stage(mesh):
    found, batches = exported.stages(), list(exported.data())[:3]  # of one shape, for one graph
    for name, step, plan in zip(found, found.values(), itertools.cycle(PLANS), strict=False):
        one = trained(exported.in_parts(step, mesh.data), exported.Net, batches, 6)
        fast = fl.compile(fl.shard(step, mesh, plan), donate=True, backend="aot_eager")
        with about(f"{name}, {plan}"):
            many = trained(fast, exported.Net, batches, 6)
            assert_close(one, many, atol=1e-5)
            assert_same_everywhere(mesh, many[0])
            assert fast.graphs == 1


if __name__ == "__main__":
    main()
