"""The same bits on any number of ranks, for everything that is exported: see ``test_canonical.py``.

Each number of ranks is compared with one process, so all of them agree with one another.
"""

from __future__ import annotations

import fnloop as fl
from tests.distributed import exported
from tests.distributed.laws import Net, assert_numbers, data, pipeline, trained
from tests.distributed.scenario import main, scenario


def check_bits(mesh, name, step, *setting):
    """The step, of five times its micro-batches, has the bits of one process."""
    step = exported.in_parts(step, 5)
    one, numbers = trained(step, *setting)
    many, others = trained(fl.shard(step, mesh, reduce="canonical"), *setting)
    assert one == many, f"{name}:\n{fl.tree_diff(one, many)}"
    assert_numbers(numbers, others, rtol=0.0)


@scenario
def every_stage(mesh):
    for name, step in exported.stages().items():
        check_bits(mesh, name, step, exported.Net, exported.data(), 6)


@scenario
def every_optimizer(mesh):
    for name, optimizer in exported.optimizers().items():
        step = exported.step_of(optimizer, after=[fl.ema(0.9)])
        check_bits(mesh, name, step, exported.Net, exported.data(), 4)


@scenario
def a_wider_model_under_a_loss_scale(mesh):
    for amp in (None, "fp16"):
        check_bits(mesh, amp, pipeline(1, amp), lambda: Net(drop=0.3))


@scenario
def batch_statistics_are_merged_alike(mesh):
    step = fl.shard(pipeline(4), mesh, reduce="canonical")
    many, _ = trained(step, lambda: Net(norm=True), data(48, 16))
    alone = fl.shard(pipeline(4), type(mesh)(1), reduce="canonical")
    one, _ = trained(alone, lambda: Net(norm=True), data(48, 16))
    assert one == many, fl.tree_diff(one, many)


if __name__ == "__main__":
    main()
