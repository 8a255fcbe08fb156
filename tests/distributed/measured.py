"""What plans keep and move is what `fl.summary` and the theory say: run by ``test_measured.py``."""

from __future__ import annotations

import fnloop as fl
from tests.distributed.laws import Net, data, pipeline
from tests.distributed.measure import Ours, Theirs, batches, model, sizes
from tests.distributed.scenario import main, scenario

P = sum(p.nbytes for p in model().parameters())


def close(found, expected):
    """Within 10 %."""
    assert abs(found / expected - 1) < 0.1, (found, expected)


@scenario
def explain_tells_what_is_held_and_moved(mesh):
    k = mesh.data
    for plan, steps, reduce in (
        ("replicate", 1, "fast"),
        ("replicate", 2, "fast"),
        ("replicate", 2 * k, "canonical"),
        ("zero2", 2, "fast"),
        ("zero2", 2 * k, "canonical"),
        ("zero3", 1, "fast"),
        ("zero3", 2, "fast"),
    ):
        ours = Ours(mesh, plan, steps, reduce=reduce)
        held, adds, traffic, _ = sizes(lambda ours=ours: ours)
        told = fl.summary(ours.step, ours.state).sharded
        own = [row for row in told.placed if row.path.startswith(("params", "slots"))]
        assert max(mesh.exchange(held)) == sum(row.bytes for row in own), (plan, held)
        close(traffic.total, told.moved)
        close(adds, max(told.working))


@scenario
def explain_tells_the_same_of_a_state_that_is_whole(mesh):
    step = fl.shard(pipeline(2), mesh, "zero3")
    state = step.init(Net)
    assert fl.summary(step, state).sharded == fl.summary(step, fl.gather(state)).sharded
    assert fl.summary(step, state, mesh=64).sharded.held < fl.summary(step, state).sharded.held
    for each in data():
        state, _ = step(state, each)


@scenario
def memory_and_traffic_are_those_of_the_theory(mesh):
    k, others = mesh.data, (mesh.data - 1) / mesh.data
    ours = {plan: sizes(lambda p=plan: Ours(mesh, p)) for plan in ("replicate", "zero2", "zero3")}
    theirs = {kind: sizes(lambda kind=kind: Theirs(kind, mesh)) for kind in ("DDP", "FSDP2")}
    for name, (held, _, traffic, loss) in {**ours, **theirs}.items():
        whole = name in ("replicate", "DDP")
        close(held, 3 * P if whole else 3 * P / k)
        passes = 3 if name in ("zero3", "FSDP2") else 2
        close(traffic.total, passes * others * P)
        mean = sum(mesh.exchange(loss)) / k
        assert abs(mean - ours["replicate"][3]) < 1e-5, (name, mean)
    # What an eager step adds at its peak: the new state and the optimizer's own tensors, in all 4
    # of the state's kind, and the gradients.
    close(ours["replicate"][1], 5 * P)
    padded = sum(p.nbytes for p in model().parameters() if p.numel() % k)  # copied once more
    close(ours["zero2"][1], 2 * P + 2 * P / k + padded)
    close(ours["zero3"][1], 5 * P / k)


@scenario
def the_loop_writes_over_the_state_before(mesh):
    def note(state, metrics):
        tensors = [*state.params.peek_storages(), *fl.tree_leaves(state["update"]["adamw"])]
        places.add(tuple([tensor.data_ptr() for tensor in tensors if tensor.ndim]))

    for plan in ("replicate", "zero2", "zero3"):
        places = set()
        ours = Ours(mesh, plan)
        effect = fl.effect(note, ranks="all")
        fl.fit(ours.step, ours.state, batches(6), steps=6, callbacks=[effect], progress=False)
        assert len(places) == 1, plan


if __name__ == "__main__":
    main()
