"""Steps that evaluate the loss again, or not at all, on ranks: run by ``test_evaluating.py``."""

from __future__ import annotations

import torch
from torch import nn

import fnloop as fl
from tests.distributed.laws import assert_close, assert_same_everywhere, trained
from tests.distributed.scenario import main, scenario

PLANS = ("replicate", "zero2", "zero3")


def model():
    return nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Dropout(0.1), nn.Linear(9, 1)).double()


def data(rows=8):
    g = torch.Generator().manual_seed(0)
    return fl.Batches(torch.randn(24, 8, generator=g, dtype=torch.float64), rows, seed=1)


def loss(model, x):
    return (model(x) - x[:, :1].sin()).square().mean()


def pipeline(k, loss, optimizer):
    part = [fl.accumulate(k)] if k > 1 else []
    return fl.pipe(loss, fl.grad, *part, fl.update(optimizer))


@scenario
def all_ranks_search_along_one_line(mesh):
    for search in ("strong_wolfe", None):
        optimizer = fl.optim.lbfgs(0.5, max_iter=3, history_size=3, line_search=search)
        one = trained(pipeline(mesh.data, loss, optimizer), model, data(), steps=4)
        for plan in PLANS:
            step = fl.shard(pipeline(1, loss, optimizer), mesh, plan)
            many = trained(step, model, data(), steps=4)
            assert_close(one, many)
            assert_same_everywhere(mesh, many[0])


@scenario
def the_loss_of_all_ranks_at_other_parameters(mesh):
    gradients = fl.pipe(loss, fl.grad, fl.accumulate(mesh.data))
    state = gradients.init(model, seed=0)
    x = next(iter(data()))
    there = state.params.scale(0.5)
    expected = fl.base.loss_at(gradients, state, x, there)
    for plan in PLANS:
        step = fl.shard(pipeline(1, loss, fl.optim.sgd(0.1)), mesh, plan)
        own = step.init(model, seed=0)
        found = fl.base.loss_at(step.inner, own, x, own.params.scale(0.5))
        torch.testing.assert_close(found, expected)


@scenario
def norms_and_inner_products_are_of_the_values_of_all_ranks(mesh):
    one = fl.grad(loss).init(model, seed=0).params
    for plan in PLANS:
        step = fl.shard(pipeline(1, loss, fl.optim.sgd(0.1)), mesh, plan)
        own = step.init(model, seed=0).params
        torch.testing.assert_close(own.norm(), one.norm())
        torch.testing.assert_close(own.dot(own.abs()), one.dot(one.abs()))


@scenario
def published_schemes_are_those_of_one_process(mesh):
    def weighed(model, x):
        return (model(x) + x[:, :1].cos()).square().mean()

    sgd, schemes = fl.optim.sgd(0.1), fl.schemes
    steps = {
        "sam": lambda k: scheme(k, [schemes.sam(0.1)]),
        "asam": lambda k: scheme(k, [schemes.sam(0.5, adaptive=True)]),
        "extragradient": lambda k: scheme(k, [schemes.extragradient(0.1)]),
        "lookahead": lambda k: scheme(k, [], [schemes.lookahead(2)]),
        "centralize": lambda k: scheme(k, [], [], fl.optim.chain(schemes.centralize(), sgd)),
        "noise": lambda k: scheme(
            k, [], [], fl.optim.chain(fl.optim.noise(0.1), fl.optim.clip_by_norm(1.0), sgd)
        ),
        "hypergradient": lambda k: scheme(k, [], [], schemes.hypergradient(sgd, 0.01)),
        "sgld": lambda k: scheme(k, [], [schemes.sgld(0.1)]),
        "sghmc": lambda k: scheme(k, [], [schemes.sghmc(0.1)]),
        "several": lambda k: scheme(k, first=schemes.several(a=loss, b=weighed)),
        "pcgrad": lambda k: scheme(k, first=schemes.pcgrad(a=loss, b=weighed)),
    }
    for step in steps.values():
        one = trained(step(mesh.data), model, data(), steps=4)
        for plan in PLANS:
            many = trained(fl.shard(step(1), mesh, plan), model, data(), steps=4)
            assert_close(one, many)
            assert_same_everywhere(mesh, many[0])


@scenario
def several_losses_are_merged_by_weights_of_their_own(mesh):
    def other(model, x):
        weights = (x[:, 0] > 0).double()
        losses = (model(x) + x[:, :1].cos()).square().sum(1)
        return fl.Mean((weights * losses).sum(), weights.sum())

    def network():
        return nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 1)).double()

    for kind in (fl.schemes.several, fl.schemes.pcgrad):
        one = trained(scheme(1, first=kind(a=loss, b=other)), network, data(7), steps=4)
        for plan in PLANS:
            for m in (1, 2):
                step = fl.shard(scheme(m, first=kind(a=loss, b=other)), mesh, plan)
                many = trained(step, network, data(7), steps=4)
                assert_close(one, many)
                assert_same_everywhere(mesh, many[0])
        step = scheme(3, first=kind(a=loss, b=other))
        canonical = fl.shard(step, mesh, reduce="canonical")
        assert_close(one, trained(canonical, network, data(7), steps=4))


def scheme(k, grad=(), after=(), optimizer=None, first=None):
    part = [fl.accumulate(k)] if k > 1 else []
    update = fl.update(optimizer or fl.optim.sgd(0.1))
    return fl.pipe(first or fl.grad(loss), *part, *grad, update, *after)


@scenario
def a_rank_whose_part_is_skipped_counts_for_nothing(mesh):
    def skipping(model, x):
        if (x[:, 0] < 0).all():
            return fl.Mean(0, 0)
        return loss(model, x)

    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 8, generator=g, dtype=torch.float64).abs()
    some = x.clone()
    some[: 8 // mesh.data] *= -1
    for batches in ([some] * 2, [-x] * 2, [x] * 2):
        optimizer = fl.optim.adamw(0.1)
        one = trained(pipeline(mesh.data, skipping, optimizer), model, batches, steps=2)
        for plan in PLANS[:2]:
            step = fl.shard(pipeline(1, skipping, optimizer), mesh, plan)
            assert_close(one, trained(step, model, batches, steps=2))
    step = fl.shard(pipeline(1, skipping, fl.optim.adamw(0.1)), mesh, "zero3")
    try:
        trained(step, model, [-x], steps=1)
    except ValueError as error:
        assert "fl.Mean(0 * loss, 0)" in str(error), error
    else:
        raise AssertionError("a model that ranks compute together was left out by some")


if __name__ == "__main__":
    main()
