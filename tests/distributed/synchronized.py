"""Batch norms that are synchronized over ranks: run by ``test_synchronized.py``."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop.distributed.gates import RankError
from tests.distributed import laws
from tests.distributed.laws import PLANS, assert_close, assert_same_everywhere
from tests.distributed.scenario import main, scenario


class Normed(nn.Module):
    """Norms of every kind: of one, two and three dimensions, without parts, and others."""

    def __init__(self, kind=nn.BatchNorm1d, cumulative=True):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)
        self.flat, self.long = kind(16), nn.BatchNorm1d(4, momentum=0.3)
        self.plain = nn.BatchNorm2d(2, affine=False)
        self.deep = nn.BatchNorm3d(2, momentum=None if cumulative else 0.1)
        self.lasting = nn.BatchNorm1d(16, track_running_stats=False)
        self.others = nn.Sequential(nn.GroupNorm(2, 16), nn.LayerNorm(16))

    def forward(self, x):
        x = torch.tanh(self.flat(self.first(x)))
        x = self.long(x.view(-1, 4, 4))
        x = torch.tanh(self.plain(x.view(-1, 2, 2, 4)))
        x = self.deep(x.view(-1, 2, 2, 2, 2))
        return self.last(self.others(self.lasting(x.view(-1, 16))))


class Pictures(nn.Module):
    """A norm of pictures, which one example suffices for."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.last = nn.Linear(24, 5)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.first(x.view(-1, 2, 2, 2)))).flatten(1))


def loss(model, batch):
    """Cross-entropy."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def weighed(model, batch):
    """Some examples weigh nothing, and are in the statistics all the same."""
    x, y = batch
    weights = (y % 3).to(x.dtype)
    losses = F.cross_entropy(model(x), y, reduction="none")
    return fl.Mean((weights * losses).sum(), weights.sum())


def data(n, rows, dtype=torch.float64):
    """Batches whose last one is short."""
    g = torch.Generator().manual_seed(0)
    x, y = 3 + torch.randn(n, 8, generator=g), torch.randint(0, 5, (n,), generator=g)
    return fl.Batches((x.to(dtype), y.sort().values), rows, shuffle=False)


def pipe(m=1, function=loss, amp=None):
    """A step with one loss."""
    stages = [fl.accumulate(m)] if m > 1 else []
    stages += [fl.amp(amp, init_scale=2.0**8)] if amp else []
    chain = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.sgd(0.1, momentum=0.9))
    return fl.pipe(function, fl.grad, *stages, fl.update(chain))


trained = functools.partial(laws.trained, steps=None, epochs=1)


def double(model):
    """Builds `model` in float64, where nothing is hidden by rounding."""
    return lambda: model().double()


def synchronized(step, mesh, plan="replicate"):
    """The step on all ranks."""
    return fl.shard(step, mesh, plan, sync_batchnorm=True)


@pytest.mark.lightning("T35", "P7")
@scenario
def ranks_are_one_process_with_the_whole_batch(mesh):
    for m in (1, 2):
        one = trained(pipe(m), double(Normed), data(42, 12))
        for plan in PLANS:
            many = trained(synchronized(pipe(m), mesh, plan), double(Normed), data(42, 12))
            assert_close(one, many, atol=1e-10)
            assert_same_everywhere(mesh, many[0])
    one, _ = trained(pipe(), double(Normed), data(42, 12))
    apart, _ = trained(fl.shard(pipe(), mesh), double(Normed), data(42, 12))
    assert (apart.params["last.weight"] - one.params["last.weight"]).abs().max() > 1e-3


@scenario
def frozen_norms_keep_their_bits_and_thaw(mesh):
    def moved():
        model = Pictures()
        torch.manual_seed(0)
        model.norm.running_mean.uniform_(0.1, 0.2)  # of which a weighted mean would be rounded
        return model

    step = fl.pipe(
        loss,
        fl.grad(frozen=fl.schedules.by_step({0: ["first", "norm"], 3: None})),
        fl.accumulate(fl.schedules.by_step({2: 2})),
        fl.update(fl.optim.adamw(1e-2)),
    )
    batches = data(42, 9, torch.float32)  # ranks have unequally many examples
    one = laws.trained(step, moved, batches, steps=5)
    for plan, together in (("replicate", False), ("zero3", True)):
        ours = fl.shard(step, mesh, plan, sync_batchnorm=together)
        start = fl.gather(ours.init(moved, seed=3))
        frozen, _ = laws.trained(ours, moved, batches, steps=3)
        assert fl.tree_equal(frozen.buffers, start.buffers)
        assert fl.tree_equal(frozen.params["norm.weight"], start.params["norm.weight"])
        many = laws.trained(ours, moved, batches, steps=5)
        assert not fl.tree_equal(many[0].buffers, start.buffers)
        if together:
            assert_close(one, many, atol=1e-5)
        assert_same_everywhere(mesh, many[0])


@scenario
def in_single_precision_too(mesh):
    batches = data(42, 12, torch.float32)
    one = trained(pipe(), Normed, batches)
    assert_close(one, trained(synchronized(pipe(), mesh), Normed, batches))


@scenario
def shares_are_uneven_and_a_rank_may_have_no_example(mesh):
    for rows in (7, mesh.data - 1, 1):
        one = trained(pipe(), double(Pictures), data(15, rows))
        for plan in PLANS:
            many = trained(synchronized(pipe(), mesh, plan), double(Pictures), data(15, rows))
            assert_close(one, many, atol=1e-10)
            assert_same_everywhere(mesh, many[0])


@scenario
def examples_of_weight_zero_are_in_the_statistics(mesh):
    one = trained(pipe(function=weighed), double(Normed), data(24, 8))
    for plan in PLANS:
        step = synchronized(pipe(function=weighed), mesh, plan)
        assert_close(one, trained(step, double(Normed), data(24, 8)), atol=1e-10)


@scenario
def of_too_many_micro_batches_only_the_statistics_are_kept(mesh):
    class Counting(Pictures):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen += x.mean()
            return super().forward(x)

    x = torch.randn(mesh.data + 1, 8, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(mesh.data + 1) % 5
    step = pipe(2)
    state = step.init(double(Counting), seed=3)
    one, _ = step(state, fl.data.Micro(((x[:-1], y[:-1]), (x[-1:], y[-1:]))))
    seen = [x[:1].mean() + x[-1:].mean(), *[row.mean() for row in x[1:-1]]]
    weights = torch.tensor([2.0, *[1.0] * (mesh.data - 1)])
    for plan in PLANS:
        many = synchronized(pipe(2), mesh, plan)
        new, _ = many(many.init(double(Counting), seed=3), (x, y))
        new = fl.gather(new)
        assert_close((one.replace(buffers=new.buffers), []), (new, []), atol=1e-10)
        for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            torch.testing.assert_close(new.buffers[name], one.buffers[name])
        expected = (torch.stack(seen) * weights).sum() / weights.sum()
        torch.testing.assert_close(new.buffers["seen"], expected, check_dtype=False)


@pytest.mark.lightning("P6")
@scenario
def under_amp(mesh):
    for amp in ("fp16", "bf16"):
        one = trained(pipe(1, amp=amp), Normed, data(42, 12, torch.float32))
        for plan in PLANS:
            step = synchronized(pipe(1, amp=amp), mesh, plan)
            many = trained(step, Normed, data(42, 12, torch.float32))
            assert_close((one[0], []), (many[0], []), atol={"fp16": 2e-3, "bf16": 2e-2}[amp])


@scenario
def compiled_in_one_graph(mesh):
    model = double(lambda: Normed(cumulative=False))  # a cumulative mean looks at its counter
    one = trained(pipe(), model, data(36, 12))
    for plan in PLANS:
        step = fl.compile(synchronized(pipe(), mesh, plan), donate=True, backend="aot_eager")
        many = trained(step, model, data(36, 12))
        assert_close(one, many, atol=1e-10)
        assert step.graphs == 1
        assert_same_everywhere(mesh, many[0])


@pytest.mark.lightning("P7")
@scenario
def layers_that_synchronize_by_themselves(mesh):
    one = trained(pipe(), double(Normed), data(42, 12))
    step = synchronized(pipe(), mesh)
    many = trained(step, lambda: Normed(nn.SyncBatchNorm).double(), data(42, 12))
    assert_close(one, many, atol=1e-10)
    assert type(fl.to_module(many[0]).flat) is nn.SyncBatchNorm
    with pytest.raises(ValueError, match=r"'flat' is an nn.SyncBatchNorm.*sync_batchnorm=True"):
        fl.shard(pipe(), mesh).init(lambda: Normed(nn.SyncBatchNorm))


@scenario
def a_part_that_is_computed_again(mesh):
    def again(model, batch):
        x, y = batch
        z = checkpoint(
            lambda x: model.norm(model.first(x)), x.view(-1, 2, 2, 2), use_reentrant=False
        )
        return F.cross_entropy(model.last(torch.relu(z).flatten(1)), y)

    one = trained(pipe(function=again), double(Pictures), data(14, 7))
    for plan in PLANS:
        many = trained(
            synchronized(pipe(function=again), mesh, plan), double(Pictures), data(14, 7)
        )
        assert_close(one, many, atol=1e-10)


@scenario
def evaluation_is_as_ever(mesh):
    step = synchronized(pipe(), mesh)
    state, _ = trained(step, double(Normed), data(42, 12))
    found = fl.evaluate(loss, state, data(42, 12), mesh=mesh)
    assert abs(found["loss"] - fl.evaluate(loss, state, data(42, 12))["loss"]) < 1e-12


@scenario
def what_cannot_be_is_refused_on_all_ranks(mesh):
    step = synchronized(pipe(), mesh)
    with pytest.raises(ValueError, match=r"more than 1 value per channel"):
        step(step.init(double(Normed)), next(iter(data(4, 1))))
    with pytest.raises(ValueError, match=r"canonical.*sync_batchnorm=True"):
        fl.shard(pipe(), mesh, reduce="canonical", sync_batchnorm=True)
    state, batch = step.init(double(Normed)), next(iter(data(8, 8)))
    with pytest.raises(ValueError, match=r"synchronized over ranks.*sync_batchnorm=True"):
        step(state, tuple(t.requires_grad_() if t.is_floating_point() else t for t in batch))
    assert mesh.exchange("here") == ["here"] * mesh.data


@scenario
def ranks_that_normalize_otherwise_are_refused(mesh):
    def other(model, batch):
        x = model.first(batch[0])
        return (model.flat(x) if mesh.rank else model.long(x.view(-1, 4, 4))).mean()

    step = synchronized(pipe(function=other), mesh)
    with pytest.raises(RankError, match=r"same batch norms.*normalize (4|16) channels"):
        step(step.init(double(Normed)), next(iter(data(8, 8))))


@scenario
def an_error_of_one_rank_between_two_norms_ends_all(mesh):
    def bad(model, batch):
        x = model.flat(model.first(batch[0]))
        if mesh.rank == 1:
            raise KeyError("a bad example")
        return model.lasting(x).mean()

    step = synchronized(pipe(function=bad), mesh)
    kind = KeyError if mesh.rank == 1 else RankError
    with pytest.raises(kind, match=r"a bad example" if mesh.rank == 1 else "Rank 1 of.*a bad exam"):
        step(step.init(double(Normed)), next(iter(data(8, 8))))


@scenario
def statistics_of_an_average_are_shared_out_and_those_of_one_process(mesh):
    step = fl.shard(fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.05)), fl.ema(0.9)), mesh)
    state, batches = step.init(Normed, seed=3), data(42, 12, torch.float32)
    for state, _ in fl.run(step, state, batches, epochs=2):  # noqa: B007, B020
        pass
    seen = []

    def looked(model, batch):
        seen.append(len(batch[0]))
        return loss(model, batch)

    many = fl.refresh_batchnorm(looked, state, batches, params="ema", mesh=mesh)
    assert seen == [12, 12, 12, 6][mesh.rank :: mesh.data]  # its share of an epoch
    one = fl.refresh_batchnorm(loss, state, batches, params="ema")
    mine, theirs = (s["ema.statistics"]["buffers"] for s in (many, one))
    for name, found in mine.items():
        torch.testing.assert_close(found, theirs[name], rtol=1e-6, atol=1e-7)
    assert_same_everywhere(mesh, many)
    found = fl.evaluate(loss, state, batches, params="ema", statistics=batches, mesh=mesh)
    assert found["loss"] == pytest.approx(
        fl.evaluate(loss, one, batches, params="ema")["loss"], rel=1e-6
    )
    callback = fl.validate(loss, fl.Data(batches, validate=batches), params="ema")
    _, history = fl.fit(step, state, batches, epochs=1, callbacks=[fl.every(4, callback)])
    assert len(history["val/loss"]) == 1


if __name__ == "__main__":
    main()
