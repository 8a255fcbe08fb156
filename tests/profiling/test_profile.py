"""What `fl.profile` leaves alone, and what it can be given."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl

from .planted import BATCHES, X, Y, loss, made, network


def copied(state):
    return fl.tree_map(torch.clone, state)


@pytest.mark.parametrize("kind", ["eager", "compiled", "donating"])
def test_the_state_stays_as_it_is(kind):
    step, state = made()
    if kind != "eager":
        step = fl.compile(step, donate=kind == "donating", backend="aot_eager")
        state = step.init(state)
    state, _ = step(state, (X, Y))
    before, random = copied(state), torch.get_rng_state()
    found = fl.profile(step, state, BATCHES, steps=3)
    assert fl.tree_equal(state, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert found.compiled == (kind != "eager") and found.steps == 3
    modules = state.skeleton.module.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)
    after, _ = step(state, (X, Y))  # and goes on
    assert int(after.step) == int(before.step) + 1


def test_a_profile_changes_no_bit_of_a_run():
    step, state = made()
    fl.profile(step, state, BATCHES, steps=2)
    profiled, _ = fl.fit(step, state, BATCHES, steps=5)
    step, state = made()
    alone, _ = fl.fit(step, state, BATCHES, steps=5)
    assert fl.tree_equal(profiled, alone)


def test_the_parts_of_a_step():
    model_loss = loss
    step = fl.pipe(
        model_loss,
        fl.grad,
        fl.accumulate(2),
        fl.amp("bf16"),
        fl.update(fl.optim.adamw(1e-3)),
        fl.ema(0.9),
    )
    found = fl.profile(step, step.init(network, seed=0), BATCHES, steps=2)
    calls = {stage.name.partition("(")[0]: stage.calls for stage in found.stages}
    assert list(calls)[:6] == ["loss", "grad", "accumulate", "amp", "update", "ema"]
    assert (calls["loss"], calls["grad"], calls["accumulate"], calls["ema"]) == (2, 2, 1, 1)
    kinds = {module.path: (module.kind, module.calls) for module in found.modules}
    assert kinds["0"] == ("Linear", 2) and kinds["1.1"] == ("Dropout", 2)
    assert kinds["model"] == ("Sequential", 2)
    own = {module.path: module for module in found.modules}
    assert own["0"].forward > 0 and own["0"].backward > 0
    sizes = sum(p.nbytes for p in network().parameters())
    assert found.state_bytes["params"] == found.state_bytes["ema"] == sizes
    assert found.state_bytes["update"] >= 2 * sizes  # the moments


def test_a_sequence_names_its_parts():
    adam = fl.update(fl.optim.adam(1e-3))
    step = fl.sequence(
        a=fl.pipe(loss, fl.grad(only="0"), adam), b=fl.pipe(loss, fl.grad(only="2"), adam)
    )
    state = step.init(network, seed=0)
    step(state, (X, Y))
    names = [stage.name for stage in fl.profile(step, state, BATCHES, steps=2).stages]
    assert [n for n in names if "grad" in n] == ["a/grad(only='0')", "b/grad(only='2')"]
    assert any(n.startswith("b/update(") for n in names) and names[-1].startswith("sequence(")


def test_a_population():
    base, _ = made()
    step = fl.ensemble(base, 3)
    state = step.init(network, seed=0)
    before = copied(state)
    found = fl.profile(step, state, BATCHES, steps=2)
    assert fl.tree_equal(state, before)
    assert [stage.name for stage in found.stages][:2] == ["loss", "grad"]


def test_a_model_that_is_a_tree():
    @fl.tree
    class Line:
        slope: torch.Tensor

        def __call__(self, x):
            return x @ self.slope

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(Line(torch.zeros(16, 1)))
    found = fl.profile(step, state, BATCHES, steps=2)
    assert found.modules == () and found.stages[0].name == "loss" and str(found)


def test_a_step_that_is_a_function():
    inner, state = made()

    def mine(state, batch):
        return inner(state, batch)

    found = fl.profile(mine, state, BATCHES, steps=2)
    assert [stage.name for stage in found.stages] == ["mine"]
    assert {module.path for module in found.modules} == {"model", "0", "1", "1.0", "1.1", "2"}


@pytest.mark.parametrize(
    "data",
    [
        (X[:16], Y[:16]),
        [(X[:16], Y[:16]), (X[16:30], Y[16:30])],
        fl.Data(train=BATCHES),
        DataLoader(TensorDataset(X, Y), batch_size=16),
        fl.data.prefetch(BATCHES),
    ],
    ids=["a batch", "a list", "fl.Data", "a loader", "prefetched"],
)
def test_any_data(data):
    step, state = made()
    assert fl.profile(step, state, data, steps=3).steps == 3


def test_several_steps_in_a_call():
    step, _ = made()
    many = fl.compile(step, steps=3, donate=True, backend="aot_eager")
    state = many.init(network, seed=0)
    found = fl.profile(many, state, BATCHES, steps=6)
    assert found.steps == 6 and int(state.step) == 0 and found.graphs == 1


def test_data_that_would_not_be_the_same_is_refused():
    step, state = made()
    batches = itertools.cycle([(X, Y)])
    with pytest.raises(TypeError, match=r"profile reads batches .* Give it some as a list"):
        fl.profile(step, state, batches)
    with pytest.raises(TypeError, match=r"profile\(state=\.\.\.\) takes a state, got a Sequential"):
        fl.profile(step, network(), BATCHES)
    with pytest.raises(ValueError, match="profile"):
        fl.profile(step, state, BATCHES, steps=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'step_count'"):
        fl.profile(step, state, BATCHES, step_count=3)


def test_an_error_in_the_step_is_the_users():
    def wrong(model, batch):
        raise KeyError("mine")

    step, state = made(wrong)
    with pytest.raises(KeyError, match="mine"):
        fl.profile(step, state, BATCHES)


@pytest.mark.lightning("T31", "F2")
def test_the_table_fits_a_terminal():
    optimizer = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-3))
    step = fl.pipe(loss, fl.grad, fl.update(optimizer), fl.ema(0.99))
    found = fl.profile(step, step.init(network, seed=0), BATCHES, steps=2)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"A step on cpu takes \S+ ms, \S+ a second \(mean of 2\)\.", lines[0])
    for title in ("loop", "stage", "module", "operator", "memory of the state"):
        assert any(line.startswith(title) for line in lines), title
    assert repr(found) == str(found)
