"""``fl.tuning.keep_best``: the best state of each member by itself."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from fnloop import testing
from tests.carrying import Carrying

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
HELD_OUT = fl.Batches((X[64:], Y[64:]), 32, shuffle=False)


def data():
    return fl.Batches((X[:64], Y[:64]), 16, seed=0)


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def single():
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))


def callbacks(**options):
    return [fl.validate(loss, HELD_OUT), fl.tuning.keep_best("val/loss", **options)]


def run(step, steps=20, **options):
    """The last state, and each state with its validation losses."""
    seen = []
    loop = fl.run(step, step.init(network), data(), steps, callbacks=callbacks(**options))
    for state, metrics in loop:
        seen.append((state, torch.as_tensor(metrics["val/loss"].value()).reshape(-1)))
    return seen[-1][0], seen


def test_each_member_has_its_own_best():
    many = fl.sweep(single(), {"adamw.lr": [1e-3, 0.1, 1.0]})
    states, seen = run(many, slots="ema")
    kept, whens = fl.tuning.best_states(states), []
    for i in range(3):
        losses = [float(values[i]) for _, values in seen]
        when = losses.index(min(losses))
        whens.append(when)
        best, then = fl.member(kept, i), fl.member(seen[when][0], i)
        for part in ("params", "buffers", "step"):
            assert fl.tree_equal(getattr(best, part), getattr(then, part))
        assert fl.tree_equal(best["ema"], then["ema"])
        assert int(states["best"]["batches"][i]) == when + 1
        assert fl.evaluate(loss, best, HELD_OUT)["loss"] == pytest.approx(min(losses), rel=1e-6)
    assert len(set(whens)) > 1
    found = fl.evaluate(loss, kept, HELD_OUT)
    assert [found[f"loss[{i}]"] for i in range(3)] == states["best"]["value"].tolist()


@pytest.mark.parametrize("compiled", [False, True])
def test_of_a_single_run(compiled):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1.0)))
    if compiled:
        step = fl.compile(step, backend="aot_eager")
    state, seen = run(step)
    losses = [float(values) for _, values in seen]
    when = losses.index(min(losses))
    assert when < 19
    kept = fl.tuning.best_states(state)
    assert fl.tree_equal(kept.params, seen[when][0].params)
    assert int(state["best"]["batches"]) == when + 1 == int(kept.step)
    assert fl.to_module(kept) is not None
    # It may be written over, but not what was kept.
    again, _ = fl.fit(step, step.init(network), data(), steps=20, callbacks=callbacks())
    assert fl.tree_equal(again["best"], state["best"])


@pytest.mark.parametrize("step", [single(), fl.ensemble(single(), 2)], ids=["one", "many"])
def test_a_resumed_run_is_the_run(step):
    testing.check_resumes(step, step.init(network), data(), steps=4, callbacks=callbacks)


def test_members_that_take_a_state_take_its_best():
    many = fl.sweep(single(), {"adamw.lr": [1e-4, 1e-3, 0.03, 0.1]})
    given = [*callbacks(), fl.every(8, fl.population("val/loss", fraction=0.25))]
    states, history = fl.fit(
        many, many.init(network), data(), steps=8, callbacks=given, progress=False
    )
    ((parents,), best) = fl.tuning.lineage(history).parents, states["best"]
    child = next(i for i, p in enumerate(parents) if p != i)
    for name, kept in (("value", best["value"]), ("0.weight", best["params"]["0.weight"])):
        assert torch.equal(kept[child], kept[parents[child]]), name


def test_nan_is_never_the_best():
    callback = fl.tuning.keep_best("m", mode="max")
    state = callback.init(single().init(network), {"m": fl.Last(0.0)})
    after, _ = callback(state, {"m": fl.Last(math.nan)})
    assert after is state
    assert callback(state, {"loss": fl.Last(1.0)})[0] is state


def test_errors():
    with pytest.raises(ValueError, match="no slot 'emma'"):
        run(single(), 1, slots="emma")
    with pytest.raises(ValueError, match="keep_best"):
        fl.tuning.best_states(single().init(network))
    with pytest.raises(ValueError, match="keep_best"):
        fl.tuning.best_states(single().init(network), "ema")


def test_a_buffer_that_has_got_smaller_is_kept_as_it_is():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(Carrying)
    best = fl.tuning.keep_best("val/loss")
    state = best.init(state, {"val/loss": fl.Last(2.0)})
    state, _ = step(state, (X[:1], Y[:1]))
    state, _ = best(state, {"val/loss": fl.Last(1.0)})
    assert fl.tree_equal(fl.tuning.best_states(state).buffers, state.buffers)
    assert state.buffers["hidden"].shape == (1, 3)
