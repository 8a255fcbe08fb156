from typing import NamedTuple

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.store.fresh import refreshed
from fnloop.trees.equal import tree_equal
from fnloop.trees.paths import tree_items, tree_paths
from fnloop.values.start import start

DATA = fl.Batches((torch.randn(24, 3, generator=torch.Generator().manual_seed(0)),), 8)


class Pair(NamedTuple):
    slow: dict
    count: torch.Tensor


def state(seed):
    return start(lambda: torch.nn.Linear(2, 3), seed=seed)


def begun(like, loaded, memory, fresh=None):
    like, loaded = like.put("a", memory), loaded.put("a", memory)
    return refreshed(like, loaded, fresh or tree_paths({"slots": like.slots}))["a"]


def test_copies_of_the_parameters_become_copies_of_the_loaded_ones():
    like, loaded = state(1), state(2)
    memory = {name: p.double() for name, p in like.params.items()}
    fresh = begun(like, loaded, memory)
    assert tree_equal(fresh, {name: p.double() for name, p in loaded.params.items()})
    nested = begun(like, loaded, {"older": {"params": dict(like.params)}, "since": torch.zeros(())})
    assert tree_equal(nested["older"]["params"], dict(loaded.params))


def test_copies_are_found_in_any_container_and_beside_other_memory():
    like, loaded = state(1), state(2)
    memory = [Pair(dict(like.params), torch.zeros(())), {**like.params, "count": torch.ones(())}]
    fresh = begun(like, loaded, memory)
    assert tree_equal(fresh[0], Pair(dict(loaded.params), torch.zeros(())))
    assert tree_equal(fresh[1], {**loaded.params, "count": torch.ones(())})


def test_only_fresh_leaves_are_replaced():
    like, loaded = state(1), state(2)
    fresh = begun(like, loaded, dict(like.params), ["slots/a/bias"])
    assert tree_equal(fresh, {"weight": like.params["weight"], "bias": loaded.params["bias"]})


def test_a_copy_beside_what_has_moved_is_found_and_zeros_there_say_nothing():
    like, loaded = state(1), state(2)
    like = like.replace(params={**like.params, "bias": torch.zeros(3)})
    moved = {"weight": like.params["weight"] * 2, "bias": torch.zeros(3)}
    assert tree_equal(begun(like, loaded, moved), moved)
    partly = {"weight": like.params["weight"], "bias": torch.ones(3)}
    assert tree_equal(begun(like, loaded, partly), {**partly, "weight": loaded.params["weight"]})


def test_memory_that_is_anything_else_is_left_alone():
    like, loaded = state(1), state(2)
    for memory in (
        {name: p * 2 for name, p in like.params.items()},
        {"mu": {name: torch.zeros_like(p) for name, p in like.params.items()}},
        {},
        torch.ones(2),
    ):
        assert tree_equal(begun(like, loaded, memory), memory)


def test_zeros_of_an_optimizer_are_not_copies_of_parameters_that_are_zero():
    like, loaded = state(1), state(2)
    like = like.replace(params={name: torch.zeros_like(p) for name, p in like.params.items()})
    memory = {"mu": {name: torch.zeros_like(p) for name, p in like.params.items()}}
    assert tree_equal(begun(like, loaded, memory), memory)


def network():
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    nn.init.zeros_(net[3].bias)
    return net


def loss(model, batch):
    return model(batch[0].double()).square().mean()


def pipe(optimizer, *stages, frozen=None):
    return fl.pipe(loss, fl.grad(frozen=frozen), fl.update(optimizer), *stages)


ADAMW, PLAIN = fl.optim.adamw(0.05), fl.optim.adamw(0.05, b1=0.0)
REWIND = fl.guard(fl.rules.nonfinite(), then="rewind")
CHANGES = {
    "an average": (pipe(ADAMW), pipe(ADAMW, fl.ema(0.9))),
    "slow weights": (pipe(ADAMW), pipe(ADAMW, fl.schemes.lookahead())),
    "another optimizer": (pipe(ADAMW), pipe(fl.optim.prodigy())),
    "quasi-Newton": (pipe(ADAMW), pipe(fl.optim.lbfgs(max_iter=2))),
    "around the same optimizer": (pipe(PLAIN), pipe(fl.optim.schedule_free(PLAIN))),
    "snapshots": (pipe(ADAMW), pipe(ADAMW, REWIND)),
    "an average in a snapshot": (pipe(ADAMW, REWIND), pipe(ADAMW, fl.ema(0.9), REWIND)),
    **{
        f"thawed, {name}": (pipe(optimizer, *stages, frozen=["0", "1"]), pipe(optimizer, *stages))
        for name, optimizer, stages in (
            ("moments", ADAMW, ()),
            ("an average", ADAMW, [fl.ema(0.9)]),
            ("slow weights", ADAMW, [fl.schemes.lookahead()]),
            ("schedule_free", fl.optim.schedule_free(PLAIN), ()),
            ("prodigy", fl.optim.prodigy(), ()),
            ("snapshots", ADAMW, [REWIND]),
        )
    },
}


@pytest.mark.filterwarnings("ignore:.*has leaves that `like` has no place for")
@pytest.mark.parametrize("change", CHANGES)
def test_new_memory_goes_on_as_if_it_were_begun_from_the_loaded_state(change, tmp_path):
    before, after = CHANGES[change]
    trained, _ = fl.fit(before, before.init(network, seed=0), DATA, epochs=4)
    fl.save(trained, tmp_path)
    wanted = after.init(trained)  # fills in what is not there, from the trained parameters
    loaded = fl.load(tmp_path, like=after.init(network, seed=1))
    known = dict(tree_items(wanted.slots))
    for path, leaf in tree_items(loaded.slots):
        if change != "snapshots":  # the first step takes new ones
            assert torch.equal(known[path], leaf), path
    expected, _ = fl.fit(after, wanted, DATA, epochs=2)
    resumed, _ = fl.fit(after, after.init(network, seed=1), DATA, epochs=6, resume=tmp_path)
    for state in (fl.fit(after, loaded, DATA, epochs=2)[0], resumed):
        assert fl.tree_equal(state.params, expected.params)
        assert fl.tree_equal(state.buffers, expected.buffers)
