"""Models that use divided parameters in many ways, under "zero3": run by ``test_gathering.py``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from tests.distributed.laws import Net, assert_close, assert_same_everywhere, data, pipeline
from tests.distributed.live import Live
from tests.distributed.scenario import main, scenario


class Attends(nn.Module):
    """Attention, which reads the weight of a child that it does not call; and a complex weight."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.turn = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = x.view(-1, 4, 2).repeat(1, 1, 4)
        return self.head((self.attend(x, x, x)[0].mean(1) * self.turn).abs())


class Recurrent(nn.Module):
    """A recurrent layer, whose weights are in a list too."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(2, 7, batch_first=True), nn.Linear(7, 5)

    def forward(self, x):
        return self.head(self.layer(x.view(-1, 4, 2))[0][:, -1])


class Tied(nn.Module):
    """One weight in two places, a part computed again in the backward pass, one frozen, a norm."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.a.weight = self.b.weight
        self.a.bias.requires_grad_(False)
        self.norm, self.unused = nn.LayerNorm(8), nn.Linear(3, 3)

    def forward(self, x):
        x = checkpoint(lambda x: torch.relu(self.a(x)), x, use_reentrant=False)
        return self.head(self.norm(self.b(x))) + self.head.weight.t().mean()


@fl.tree
class Plain:
    """A model that is no module."""

    a: torch.Tensor
    b: torch.Tensor

    def __call__(self, x):
        return torch.tanh(x @ self.a.t()) @ self.b


def plain():
    """A `Plain`."""
    return Plain(torch.randn(6, 8) / 3, torch.randn(6, 5) / 3)


def loss(model, batch):
    """Cross-entropy and a penalty, which uses weights outside of any layer."""
    x, y = batch
    own = model.parameters() if isinstance(model, nn.Module) else (model.a, model.b)
    return F.cross_entropy(model(x), y) + 1e-3 * sum(p.abs().square().sum() for p in own)


def pipe(function, k=1):
    """A step with one loss."""
    stages = [fl.accumulate(k)] if k > 1 else []
    chain = fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.sgd(0.1, momentum=0.9))
    return fl.pipe(function, fl.grad, *stages, fl.update(chain))


def trained(step, model):
    """The whole state after two epochs."""
    state = step.init(model, seed=3)
    for batch in list(data())[:5]:
        state, _ = step(state, batch)
    return fl.gather(state), []


def refused(call, error, *words):
    """The error of a call, which must be this one."""
    try:
        call()
    except error as found:
        assert all(word in str(found) for word in words), found
    else:
        raise AssertionError("nothing was raised")


class Small(nn.Module):
    """Parameters of one value or two, which one operation uses together."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(-2.0))
        self.c, self.d = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.addcmul(x.view(-1, 4, 2), self.a, self.b)
        return self.head(torch.tanh(torch.addcmul(x, self.c, self.d)).view(-1, 8))


def two_layers():
    """A module that has two layers."""
    model = nn.Module()
    model.a, model.b = nn.Linear(8, 5), nn.Linear(8, 5)
    return model


@pytest.mark.lightning("S3")
@scenario
def every_way_to_use_a_parameter(mesh):
    for model in (Attends, Recurrent, Tied, Small, plain):
        one = trained(pipe(loss, 2 * mesh.data), model)
        many = trained(fl.shard(pipe(loss, 2), mesh, "zero3"), model)
        assert_close(one, many)
        assert_same_everywhere(mesh, many[0])


@pytest.mark.lightning("S3")
@scenario
def whole_parameters_and_gradients_are_not_kept(mesh):
    def model():
        return nn.Sequential(*[nn.Linear(300, 300) for _ in range(20)])

    def watched(model, batch):
        out = model(batch).mean()
        saved.append(live.now / size)
        return out

    size, peaks, saved = 20 * 300 * 300 * 4, [], []
    for plan, half in (("zero2", False), ("zero3", False), ("zero3", True)):
        amp = [fl.amp("bf16")] if half else []
        step = fl.shard(fl.pipe(watched, fl.grad, *amp, fl.update(fl.optim.sgd(0.1))), mesh, plan)
        state = step.init(model)
        with Live() as live:
            new, _ = step(state, torch.ones(4, 300))
        peaks.append(live.peak / size)
        del new
    # New parameters, their gradients, and what one layer needs: gathered, cut into rows, reduced.
    assert max(peaks[1:]) < 2 / mesh.data + 5 / 20 < 1.8 < peaks[0], peaks
    assert max(saved[1:]) < 2 / 20 < 1 < saved[0], saved


@scenario
def what_must_not_be_written_is_refused(mesh):
    def by_data(model, batch):
        model.a.weight.data = torch.zeros(33, 8)
        return model(batch[0]).mean()

    def in_place(model, batch):
        with torch.no_grad():
            model.a.weight.mul_(0.5)
        return model(batch[0]).mean()

    def through_data(model, batch):
        model.a.weight.data.mul_(0.5)
        return model(batch[0]).mean()

    def through_a_view(model, batch):
        model.a.weight.detach().t()[0].zero_()
        return model(batch[0]).mean()

    def activation(model, batch):
        z = model(batch[0]).exp()
        z.add_(1)
        return z.mean()

    batch = next(iter(data()))
    for function, words in (
        (by_data, ["'a.weight'"]),
        (in_place, ["'a.weight'"]),
        (through_data, ["through_data writes to the parameter 'a.weight'"]),
        (through_a_view, ["through_a_view writes to the parameter 'a.weight'"]),
        (activation, ["inplace operation"]),
    ):
        step = fl.shard(pipe(function), mesh, "zero3")
        refused(lambda s=step: s(s.init(Net), batch), RuntimeError, *words)
    for function in (by_data, in_place, through_data, through_a_view):
        step = fl.compile(fl.shard(pipe(function), mesh, "zero3"), backend="aot_eager")
        refused(lambda s=step: s(s.init(Net), batch), Exception, "'a.weight'")


@scenario
def ranks_that_use_other_parameters_are_refused(mesh):
    def alike(model, batch):  # layers of one size, so that only the values would be wrong
        return (model.a if mesh.rank == 0 else model.b)(batch[0]).mean()

    def unlike(model, batch):
        return model.a(batch[0]).mean() if mesh.rank == 0 else model.a.bias.mean()

    batch = next(iter(data()))
    for function in (alike, unlike):
        step = fl.shard(pipe(function), mesh, "zero3")
        state = step.init(two_layers)
        refused(lambda s=step, x=state: s(x, batch), RuntimeError, "same parameters", "zero2")


@scenario
def an_error_of_one_rank_ends_all_wherever_they_are(mesh):
    def before(model, batch):
        if mesh.rank == 1:
            raise ValueError("a bad example")
        return model.b(model.a(batch[0]).relu().repeat(1, 2)[:, :8]).mean()

    def between(model, batch):
        return before(model, (model.a(batch[0]).repeat(1, 2)[:, :8],))

    def inside(model, batch):
        out = model.a(batch[0]).repeat(1, 2)[:, :8]
        if mesh.rank == 1:
            out.register_hook(fails)
        return model.b(out).mean()

    def fails(grad):
        raise ValueError("a bad example")

    batch = next(iter(data()))
    for function in (before, between, inside):
        step = fl.shard(pipe(function), mesh, "zero3")
        state = step.init(two_layers)
        words = () if mesh.rank == 1 else ("Rank 1 of", "ValueError: a bad example")
        kind = ValueError if mesh.rank == 1 else RuntimeError
        refused(lambda s=step, x=state: s(x, batch), kind, *words)


@scenario
def micro_batches_may_reach_different_parameters(mesh):
    def by_size(model, batch):
        own = (model.a, model.b) if batch[0].shape[0] == 2 else (model.b,)
        return F.cross_entropy(sum(layer(batch[0]) for layer in own), batch[1])

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 8, generator=g), torch.randint(0, 5, (5,), generator=g)
    for sizes in ((2, 3), (3, 2)):
        parts = tuple(zip(x.split(sizes), y.split(sizes), strict=True))
        batch = fl.data.Micro(tuple(part for _ in range(mesh.data) for part in parts))
        one, many = pipe(by_size, 2), fl.shard(pipe(by_size, 2), mesh, "zero3")
        a, _ = one(one.init(two_layers, seed=1), batch)
        b, _ = many(many.init(two_layers, seed=1), batch)
        assert_close((a, []), (fl.gather(b), []))
    assert_close((a, []), (fl.gather(b), []))


@scenario
def compiled_with_its_collectives_in_one_graph(mesh):
    for plan in ("zero2", "zero3"):
        one = trained(pipeline(2 * mesh.data), Net)
        for donate in (False, True):
            step = fl.shard(pipeline(2), mesh, plan)
            step = fl.compile(step, backend="aot_eager", donate=donate)
            many = trained(step, Net)
            assert step.graphs == 2, step.graphs  # two sizes of batches
            assert_close(one, many)


if __name__ == "__main__":
    main()
