"""A population on many ranks is one of one process: run by ``test_populations.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fnloop as fl
from tests.distributed.laws import assert_close, assert_same_everywhere
from tests.distributed.scenario import main, scenario

X = torch.randn(22, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def loss(model, x):
    return model(x).square().mean()


def net():
    return nn.Linear(4, 2).double()


def dropping():
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Linear(6, 1)).double()


def normed():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()


def sgd(*stages):
    return fl.pipe(loss, fl.grad, *stages, fl.update(fl.optim.sgd(1.0)))


def by_hand(state, batches):
    """One step of torch on each member's whole batch."""
    every = []
    for i, x in enumerate(batches):
        params = {n: p[i].detach().requires_grad_() for n, p in state.params.items()}
        own = functional_call(net(), params, (x,)).square().mean()
        grads = torch.autograd.grad(own, [*params.values()])
        every.append([p.detach() - g for p, g in zip(params.values(), grads, strict=True)])
    return [torch.stack(rows) for rows in zip(*every, strict=True)]


@scenario
def a_step_of_each_member_is_that_of_torch_on_the_whole_batch(mesh):
    start = fl.ensemble(sgd(), 3).init(net, seed=0)
    expected = by_hand(start, [X] * 3)
    for plan in ("replicate", "zero2"):
        one = fl.shard(sgd(), mesh, plan)
        kinds = {
            "outside": fl.ensemble(one, 3),
            "inside": fl.shard(fl.ensemble(sgd(), 3), mesh, plan),
            "chunks": fl.ensemble(one, 3, chunk=2),
            "loop": fl.ensemble(one, 3, mode="loop"),
            "in order": fl.ensemble(fl.shard(sgd(), mesh, plan, reduce="canonical"), 3),
            "accumulated": fl.ensemble(fl.shard(sgd(fl.accumulate(3)), mesh, plan), 3),
            "compiled": fl.compile(fl.ensemble(one, 3)),
        }
        for kind, many in kinds.items():
            state, metrics = many(many.init(net, seed=0), X)
            found = fl.gather(state).params
            for p, wanted in zip(found.values(), expected, strict=True):
                torch.testing.assert_close(p, wanted, msg=lambda m, k=kind: f"{k}: {m}")
            assert metrics["loss"].weight.tolist() == [22, 22, 22]
            assert_same_everywhere(mesh, found)


@scenario
def members_with_batches_of_their_own(mesh):
    batches = (X[:7], X[7:14], X[14:21])
    many = fl.ensemble(fl.shard(sgd(), mesh), 3, batches="own")
    state = many.init(net, seed=0)
    found = many(state, batches)[0].params
    for p, wanted in zip(found.values(), by_hand(state, batches), strict=True):
        torch.testing.assert_close(p, wanted)


@scenario
def a_rank_without_an_example_takes_part(mesh):
    many = fl.ensemble(fl.shard(sgd(), mesh), 2)
    state = many.init(net, seed=0)
    found = many(state, X[:1])[0].params
    for p, wanted in zip(found.values(), by_hand(state, [X[:1]] * 2), strict=True):
        torch.testing.assert_close(p, wanted)


@scenario
def statistics_of_batches_are_merged_member_by_member(mesh):
    vmapped, looped = [fl.ensemble(fl.shard(sgd(), mesh), 3, mode=m) for m in ("vmap", "loop")]
    state = vmapped.init(normed, seed=0)
    assert_close((looped(state, X)[0], []), (vmapped(state, X)[0], []))


@scenario
def fit_with_its_callbacks_resumes_a_population(mesh):
    [folder, *_] = mesh.exchange(tempfile.mkdtemp())

    def fit(step, name, steps):
        callbacks = [
            fl.every(3, fl.validate(loss, fl.Batches(X, 7, shuffle=False)), unit="step"),
            fl.early_stopping("val/loss", patience=50),
            fl.checkpoint(Path(folder, name), every=4, unit="step", monitor="val/loss"),
        ]
        data, many = fl.Batches(X, 9), fl.sweep(step, {"adamw.lr": [0.1, 0.01]})
        return fl.fit(
            many,
            many.init(dropping, seed=0),
            data,
            steps=steps,
            callbacks=callbacks,
            resume=Path(folder, name),
        )

    def step(*stages):
        optimizer = fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.adamw(0.1))
        return fl.pipe(loss, fl.grad, *stages, fl.update(optimizer), fl.ema(0.9))

    fit(fl.shard(step(), mesh), "ranks", 6)
    state, history = fit(fl.shard(step(), mesh), "ranks", 15)
    alone, expected = fit(step(fl.accumulate(mesh.data)), f"one-{mesh.rank}", 15)
    assert_close((alone, []), (state, []))
    for name in ("loss[1]", "val/loss[0]"):
        assert history[name] == pytest.approx(expected[name])
    assert fl.load(Path(folder, "ranks"), like=state) == state


@scenario
def members_that_are_divided_are_gathered_but_not_saved(mesh):
    many = fl.ensemble(fl.shard(sgd(), mesh, "zero2"), 3)
    state = many.init(net, seed=0)
    assert fl.gather(state) == fl.ensemble(sgd(), 3).init(net, seed=0)
    assert fl.gather(fl.member(state, 1)) == fl.member(fl.gather(state), 1)
    [folder, *_] = mesh.exchange(tempfile.mkdtemp())
    with pytest.raises(ValueError, match=r'population is divided.*"replicate".*fl.gather\(state\)'):
        fl.fit(many, state, fl.Batches(X, 5), steps=2, callbacks=[fl.checkpoint(folder)])
    with pytest.raises(ValueError, match="population is divided"):
        fl.save(state, folder)
    fl.fit(many, state, fl.Batches(X, 5), steps=2, callbacks=[fl.validate(loss, X)])
    many = fl.ensemble(fl.shard(sgd(), mesh, "zero3"), 3)
    with pytest.raises(ValueError, match=r'mode="loop".*or "zero2"'):
        many(many.init(net, seed=0), X)


@scenario
def a_rank_that_fails_under_vmap_says_so(mesh):
    def failing(model, x):
        if mesh.rank == 1:
            raise OSError("no such disk")
        return loss(model, x)

    many = fl.ensemble(fl.shard(fl.pipe(failing, fl.grad, fl.update(fl.optim.sgd(1.0))), mesh), 2)
    with pytest.raises((OSError, RuntimeError), match="no such disk"):
        many(many.init(net, seed=0), X)


@scenario
def a_derivative_is_refused_on_all_ranks(mesh):
    def leaned_on(model, x):
        return (model(x) * closed).square().mean()

    closed = torch.ones((), dtype=torch.float64)
    for plan in ("replicate", "zero2"):
        step = fl.shard(sgd(), mesh, plan)
        state = step.init(net, seed=0)

        def after(x, step=step, state=state):
            new, metrics = step(state, x)
            return metrics["loss"].value() + new.params.norm()

        def refused(call, *arguments):
            with pytest.raises(ValueError, match=r"sharded over.*without fl.shard"):
                call(*arguments)
            assert mesh.exchange("here") == ["here"] * mesh.data

        refused(torch.func.grad(after), X)
        refused(torch.func.jvp, after, (X,), (X,))
        refused(after, X.clone().requires_grad_())
        moved = fl.tree_map(lambda p: p.clone().requires_grad_(), state.params)
        refused(step, state.replace(params=moved), X)
        closed = torch.ones((), dtype=torch.float64, requires_grad=True)
        step = fl.shard(fl.pipe(leaned_on, fl.grad, fl.update(fl.optim.sgd(1.0))), mesh, plan)
        refused(step, state, X)
        with torch.no_grad():
            step(state, X)


if __name__ == "__main__":
    main()
