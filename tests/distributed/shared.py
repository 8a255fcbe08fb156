"""Models that ranks share, by the plan "tensor": run by ``test_shared.py``."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from fnloop.distributed.gates import RankError
from tests.distributed import laws
from tests.distributed.laws import assert_close, assert_same_everywhere
from tests.distributed.scenario import main, scenario
from tests.distributed.traffic import Traffic


class Perceptron(nn.Module):
    """Two layers, named as in transformers."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(x + self.fc2(torch.relu(self.fc1(x))))


class Normed(Perceptron):
    """A batch norm of what the ranks of a model compute together."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.head(x + self.norm(self.fc2(torch.relu(self.fc1(x)))))


class Block(nn.Module):
    """A block of a transformer, with separate or fused projections."""

    def __init__(self, fused, d):
        super().__init__()
        if fused:
            self.qkv = nn.Linear(d, 3 * d)
        else:
            self.q, self.k, self.v = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.o, self.n1, self.n2 = nn.Linear(d, d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.fused = fused

    def forward(self, x):
        b, t, d = x.shape
        y = self.n1(x)
        parts = self.qkv(y).chunk(3, -1) if self.fused else (self.q(y), self.k(y), self.v(y))
        q, k, v = (z.view(b, t, 4, d // 4).transpose(1, 2) for z in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, d))
        return x + self.fc2(F.gelu(self.fc1(self.n2(x))))


class Transformer(nn.Module):
    """An embedding, blocks, and a head."""

    def __init__(self, fused=False, d=16, blocks=2):
        super().__init__()
        self.embed = nn.Embedding(11, d)
        self.blocks = nn.ModuleList([Block(fused, d) for _ in range(blocks)])
        self.head = nn.Linear(d, 11)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(model, batch):
    """Cross-entropy, with a metric."""
    x, y = batch
    z = model(x).flatten(0, -2)
    found = F.cross_entropy(z, y.flatten())
    return found, {"confidence": z.softmax(-1).max(-1).values.mean()}


def rows(n=12):
    """Vectors, and tokens; the last batch is short."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 8, generator=g), torch.randint(0, 5, (n,), generator=g)
    tokens = torch.randint(0, 11, (n, 7), generator=g)
    return fl.Batches((x, y), 8, seed=1), fl.Batches((tokens[:, :-1], tokens[:, 1:]), 8, seed=1)


trained = functools.partial(laws.trained, steps=4)


def pipe(k=1):
    """SGD with clipping and an average."""
    stages = [fl.accumulate(k)] if k > 1 else []
    chain = fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.sgd(0.1, momentum=0.9))
    return fl.pipe(loss, fl.grad, *stages, fl.update(chain), fl.ema(0.9))


def meshes(mesh):
    """The mesh of one axis, and that of two if there are enough ranks."""
    two = [fl.mesh(tensor=mesh.data // 2)] if mesh.data > 2 else []
    return [fl.mesh(data=1, tensor=mesh.data), *two]


@pytest.mark.lightning("S4")
@scenario
def a_shared_model_is_the_one_of_one_process(mesh):
    vectors, tokens = rows()
    models = [
        (Perceptron, vectors),
        (Transformer, tokens),
        (lambda: Transformer(fused=True), tokens),
    ]
    for model, data in models:
        for own in meshes(mesh):
            one = trained(pipe(2 * own.data), model, data)
            for plan in ("tensor", ("zero2", "tensor")):
                many = trained(fl.shard(pipe(2), own, plan), model, data)
                assert_close(one, many, atol=1e-5)
                assert_same_everywhere(mesh, many[0])


@scenario
def batch_norms_are_those_of_one_process_if_synchronized(mesh):
    vectors, _ = rows()
    for own in meshes(mesh):
        for m in (1, 2):
            one = trained(pipe(m), Normed, vectors)
            for plan in ("tensor", ("zero2", "tensor")):
                step = fl.shard(pipe(m), own, plan, sync_batchnorm=True)
                many = trained(step, Normed, vectors)
                assert_close(one, many, atol=1e-5)
                assert_same_everywhere(mesh, many[0])


@scenario
def an_error_of_one_rank_inside_of_a_model_is_heard_by_all(mesh):
    def before(model, batch):
        if failing and mesh.rank == 1:
            raise KeyError("a bad example")
        return loss(model, batch)

    def between(model, batch):
        x = model.fc2(torch.relu(model.fc1(batch[0])))
        return before(model, ((batch[0] + x).square(), batch[1]))

    def inside(model, batch):
        x = model.fc1(batch[0])
        if failing and mesh.rank == 1:
            x.register_hook(fails)
        return loss(model, (model.fc2(x), batch[1]))

    def fails(grad):
        raise KeyError("a bad example")

    batch = next(iter(rows()[0]))
    for own in meshes(mesh):
        for function in (before, between, inside):
            step = fl.shard(fl.pipe(function, fl.grad), own, "tensor")
            state, failing = step.init(Perceptron, seed=1), True
            kind = KeyError if mesh.rank == 1 else RankError
            said = "a bad example" if mesh.rank == 1 else r"Rank 1 of \d has failed.*a bad example"
            with pytest.raises(kind, match=said):
                step(state, batch)
            failing = False  # they may go on, with connections that are made anew
            assert_same_everywhere(
                mesh, fl.gather(state.replace(params=step(state, batch)[1].mean))
            )


@scenario
def patterns_cut_what_they_say(mesh):
    vectors, _ = rows()
    own = meshes(mesh)[0]
    step = fl.shard(pipe(), own, {"fc1.*": 0, "fc2.weight": 1})
    state = step.init(Perceptron)
    shapes = dict(zip(state.params.names, [s.shape for s in state.params.storages], strict=True))
    assert shapes["fc1.weight"] == (32 // mesh.data, 8) and shapes["fc1.bias"] == (32 // mesh.data,)
    assert shapes["fc2.weight"] == (8, 32 // mesh.data) and shapes["fc2.bias"] == (8,)
    assert_close(trained(pipe(), Perceptron, vectors), trained(step, Perceptron, vectors), 1e-5)
    assert fl.place(fl.gather(state), own, "tensor") == state


class Turned(nn.Module):
    """Complex weights, of which one is cut and one whole."""

    def __init__(self):
        super().__init__()
        self.turn = nn.Parameter(torch.randn(3, 8, dtype=torch.complex64))
        self.shift = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head((x * self.turn.sum(0) + self.shift).abs())


@scenario
def complex_weights_are_cut_and_dimensions_count_from_the_end_too(mesh):
    vectors, _ = rows()
    for own in meshes(mesh):
        one = trained(pipe(2 * own.data), Turned, vectors)
        for plan in ({"turn": -1}, ("zero2", {"turn": -1})):
            step = fl.shard(pipe(2), own, plan)
            state = step.init(Turned, seed=3)
            assert dict(state.params.outlines())["turn"].dtype is torch.complex64
            assert_close(one, trained(step, Turned, vectors), atol=1e-5)
            assert fl.place(fl.gather(state), own, plan) == state


@scenario
def explain_tells_what_is_held_and_moved(mesh):
    for own in meshes(mesh):
        for plan in ("tensor", ("zero2", "tensor")):
            step = fl.shard(pipe(), own, plan)
            state = step.init(Transformer)
            told = fl.summary(step, state).sharded
            assert told == fl.summary(step, fl.gather(state)).sharded
            parts = [row.bytes for row in told.placed if row.path.startswith(("params", "slots"))]
            held = sum(t.nbytes for t in fl.tree_leaves((state.params, state.slots)))
            assert abs(sum(parts) / held - 1) < 0.01, (sum(parts), held)
            with Traffic(own.group) as traffic:
                step(state, next(iter(rows()[1])))
            if own.data > 1:  # else the group is that of all ranks
                assert abs(traffic.total / told.moved - 1) < 0.1, (plan, traffic.moved, told)


@scenario
def compiling_is_refused(mesh):
    step = fl.compile(fl.shard(pipe(), meshes(mesh)[0], "tensor"), backend="aot_eager")
    state = step.init(Perceptron)
    try:
        step(state, next(iter(rows()[0])))
    except Exception as error:
        assert "cannot be compiled" in str(error), error
    else:
        raise AssertionError("it was compiled")


@scenario
def what_does_not_fit_is_refused(mesh):
    own = meshes(mesh)[0]

    def init(plan):
        return fl.shard(pipe(), own, plan).init(Perceptron)

    for plan, word in (
        ({"fc9.weight": 0}, "fits no parameter"),
        ({"head.weight": 0}, "do not divide"),
        ({"head.bias": 1}, "has the shape"),
        ("zero2", '("zero2", "tensor")'),
        (("zero3", "tensor"), "zero3"),
    ):
        try:
            init(plan)
        except ValueError as error:
            assert word in str(error), error
        else:
            raise AssertionError(plan)


if __name__ == "__main__":
    main()
