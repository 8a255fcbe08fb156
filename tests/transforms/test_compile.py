"""What can be compiled: models, losses, batches and metrics as people write them."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop._torch import machine_code
from fnloop.trees.paths import tree_items


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def batch(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randn(n, 2, generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def step_of(loss=mse, optimizer=None, grad=(), after=()):
    return fl.pipe(loss, fl.grad, *grad, fl.update(optimizer or fl.optim.sgd(0.1)), *after)


def compiled(step, **options):
    return fl.compile(step, backend="aot_eager", **options)


def agree(step, state, batches):
    """Law 7, for the donating step alone: it is the harder one."""
    fast = compiled(step, donate=True)
    expected, got = state, state.replace()
    for batch in batches:
        expected, reports = step(expected, batch)
        got, reported = fast(got, batch)
        assert distance(expected, got) < 1e-5
        assert list(reports) == list(reported)
        for a, b in zip(fl.tree_leaves(reports), fl.tree_leaves(reported), strict=True):
            a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert fast.graphs == 1


def distance(a, b):
    """The largest difference between two states."""
    a, b = dict(tree_items(a)), dict(tree_items(b))
    assert a.keys() == b.keys()
    apart = [(x.double() - b[path].double()).abs() for path, x in a.items() if x.numel()]
    return max(float(difference.detach().max()) for difference in apart)


class Model(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


class Cube(torch.autograd.Function):
    """With a gradient that is wrong on purpose: who computes it by other means is seen."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 5 * x * grad


def attend(self, x):
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(0, 1)[None] for t in self.qkv(x).chunk(3, -1))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return self.out(mixed[0].transpose(0, 1).flatten(1))


def writes_on_itself(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    self.seen = x.mean()
    return self.layer(x) * self.calls


MODELS = {
    "in place": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)),
    "attention": lambda: Model(attend, qkv=nn.Linear(4, 24), out=nn.Linear(8, 2)),
    "multi-head attention": lambda: Model(
        lambda self, x: self.out(self.a(x[None], x[None], x[None])[0][0]),
        a=nn.MultiheadAttention(4, 2, batch_first=True),
        out=nn.Linear(4, 2),
    ),
    "transformer layer": lambda: Model(
        lambda self, x: self.out(self.a(x[None])[0]),
        a=nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        out=nn.Linear(4, 2),
    ),
    "lstm": lambda: Model(
        lambda self, x: self.out(self.a(x.view(-1, 2, 2))[0][:, -1]),
        a=nn.LSTM(2, 3, batch_first=True),
        out=nn.Linear(3, 2),
    ),
    "gru": lambda: Model(
        lambda self, x: self.out(self.a(x.view(-1, 2, 2))[0][:, -1]),
        a=nn.GRU(2, 3, batch_first=True, bidirectional=True),
        out=nn.Linear(6, 2),
    ),
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 2)
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.Tanh(), nn.Linear(8, 2)
    ),
    "custom function": lambda: Model(
        lambda self, x: self.b(Cube.apply(self.a(x))), a=nn.Linear(4, 3), b=nn.Linear(3, 2)
    ),
    "checkpointing": lambda: Model(
        lambda self, x: self.b(checkpoint(lambda t: self.a(t).tanh(), x, use_reentrant=False)),
        a=nn.Linear(4, 3),
        b=nn.Linear(3, 2),
    ),
    "attributes": lambda: Model(writes_on_itself, layer=nn.Linear(4, 2)),
    "mixed dtypes": lambda: Model(
        lambda self, x: self.b(self.a(x.double()).float()) + self.c(x.bfloat16()).float(),
        a=nn.Linear(4, 3).double(),
        b=nn.Linear(3, 2),
        c=nn.Linear(4, 2).bfloat16(),
    ),
}


@pytest.mark.filterwarnings("ignore:The model Model changed something outside")
@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    step = step_of()
    agree(step, step.init(MODELS[name], seed=3), [batch(), batch(seed=1), batch(seed=2)])


class Odd(nn.Module):
    """Parameters of every kind that does not lie in a vector, beside some that do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.tied = self.layer.weight
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.unused = nn.Parameter(torch.ones(3))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.transposed = nn.Parameter(torch.randn(3, 4).t())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        y = self.layer(x) * self.scalar * self.frozen + F.linear(x, self.tied)
        return y + (x @ self.transposed).sum(1, keepdim=True)


@pytest.mark.parametrize(
    "optimizer",
    [
        fl.optim.adamw(0.01),
        fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.sgd(0.1, momentum=0.9)),
    ],
)
def test_odd_parameters(optimizer):
    step = step_of(optimizer=optimizer, after=[fl.ema(0.9)])
    agree(step, step.init(Odd, seed=3), [batch(), batch(seed=1), batch(seed=2)])


def images(seed):
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last), batch(seed=seed)[1]


def test_channels_last_parameters_and_images():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 2),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    step = step_of(optimizer=fl.optim.adamw(0.01), after=[fl.ema(0.9)])
    state = step.init(model)
    agree(step, state, [images(0), images(1)])
    after, _ = compiled(step)(state, images(0))
    assert after.params["0.weight"].stride() == state.params["0.weight"].stride()


def test_group_norms_of_channels_last_images():
    """By Inductor. A backend that calls PyTorch's kernels may meet other strides than recorded."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
    step = step_of()
    state = step.init(model.to(memory_format=torch.channels_last))
    fl.testing.check_compiles(step, state, [images(0), images(1)], backend="inductor")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    step = step_of(optimizer=fl.optim.adamw(0.01), after=[fl.ema(0.9)])
    batches = [tuple(t.to(dtype) for t in batch(seed=i)) for i in range(3)]
    state = step.init(net().to(dtype))
    agree(step, state, batches)
    if dtype is torch.float64:
        expected, got = step(state, batches[0])[0], compiled(step)(state, batches[0])[0]
        assert distance(expected, got) < 1e-14


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"sparse": True}])
def test_embeddings(options):
    def indices(seed):
        i = torch.randint(0, 6, (5,), generator=torch.Generator().manual_seed(seed))
        return i, batch(seed=seed)[1]

    step = step_of()
    model = nn.Sequential(nn.Embedding(6, 4, **options), nn.Linear(4, 2))
    agree(step, step.init(model), [indices(0), indices(1)])


@fl.tree
class Pair:
    x: torch.Tensor
    y: torch.Tensor
    times: int = 2


def constants(model, batch):
    inside = torch.tensor([1.0, 2.0, 3.0]).mean() + torch.from_numpy(np.arange(3.0)).float().sum()
    return mse(model, batch) * inside


def penalized(model, batch):
    x = batch[0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return mse(model, batch) + slope.square().mean()


def per_example(model, batch):
    return torch.func.vmap(lambda x, y: (model(x) - y).square().mean())(*batch).mean()


def reading_the_state(model, batch, state):
    warm = (state.step + 1) / 10 + state.cursor[2]  # which `run` moves
    near = (state["ema"]["0.weight"] - model[0].weight).square().sum()
    return mse(model, batch) * warm.float() + near


def everything(model, batch):
    x, labels = batch[0], batch[1].argmax(1)
    logits = model(x)
    return F.cross_entropy(logits, labels), {
        "confusion": fl.metrics.confusion(logits, labels),
        "scores": fl.metrics.f1(logits, labels),
        "count": fl.Sum(labels.sum()),
        "largest": fl.Max(labels.max()),
        "weight": fl.Last(model[0].weight),
        "again": fl.Last(model[0].weight),
        "number": 3,
    }


LOSSES = {
    "constants": constants,
    "gradient penalty": penalized,
    "vmap": per_example,
    "reading the state": reading_the_state,
    "metrics": everything,
    "fl.Mean": lambda m, b: fl.Mean((m(b[0]) - b[1]).square().sum() * b[1].abs().mean(), 2.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    step = step_of(LOSSES[name], after=[fl.ema(0.9)])
    agree(step, step.init(net()), [batch(), batch(seed=1), batch(seed=2)])


def test_a_loss_sees_the_cursor_move():
    step = step_of(reading_the_state, after=[fl.ema(0.9)])
    data = fl.Batches(batch(8), 4, seed=1)
    *_, (expected, _) = fl.run(step, step.init(net()), data, steps=4)
    *_, (got, _) = fl.run(compiled(step), step.init(net()), data, steps=4)
    assert distance(expected, got) < 1e-6


def test_batches_of_any_structure():
    def loss(model, batch):
        pair = batch["pair"]
        scaled = model(pair.x) * batch["more"]["factor"] - pair.y
        return scaled.square().mean() * pair.times

    step = step_of(loss)
    batches = [{"pair": Pair(*batch(seed=i)), "more": {"factor": 2.5, "x": None}} for i in (0, 1)]
    agree(step, step.init(net()), batches)


def test_micro_batches_and_ragged_cuts():
    step = step_of(grad=[fl.accumulate(3)])
    fast, state = compiled(step), step.init(net())
    for n in (7, 2, 1):
        assert distance(step(state, batch(n))[0], fast(state, batch(n))[0]) < 1e-6
    assert fast.graphs == 3
    micro = fl.data.Micro((batch(3), batch(5, seed=1)))
    assert distance(step(state, micro)[0], fast(state, micro)[0]) < 1e-6


def test_hyperparameters_that_are_tensors_are_no_constants():
    lr = torch.tensor(0.1)
    step = step_of(
        optimizer=fl.optim.by_label(
            {"a": fl.optim.sgd(lr), "b": fl.optim.adam(lr)}, {"0": "a", "*": "b"}
        )
    )
    agree(step, step.init(net()), [batch(), batch(seed=1)])
    fast, state = compiled(step), step.init(net())
    fast(state, batch())
    lr.mul_(3)
    assert distance(step(state, batch())[0], fast(state, batch())[0]) < 1e-6
    assert fast.graphs == 1


def test_tensors_from_outside_are_not_copied():
    few, many = torch.ones(3), torch.ones(20)
    step = step_of(lambda model, batch: mse(model, batch) * few.sum() * many.mean())
    fast, state = compiled(step), step.init(net())
    fast(state, batch())
    few.mul_(2)
    many.mul_(3)
    assert distance(step(state, batch())[0], fast(state, batch())[0]) < 1e-5


def requires_gradients(state):
    return any(leaf.requires_grad for leaf in fl.tree_leaves(state))


def distilled(teacher, quiet=True):
    """A loss with a teacher whose parameters require gradients, as they do by default."""

    def loss(model, batch):
        with torch.set_grad_enabled(not quiet):
            target = teacher(batch[0])
        return F.mse_loss(model(batch[0]), target)

    return loss


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.filterwarnings("ignore:The loss .* was computed from parameters")
def test_a_teacher_that_requires_gradients_is_a_constant(backend, quiet):
    teacher = net().eval()
    step = step_of(distilled(teacher, quiet), after=[fl.ema(0.9)])
    fast = fl.compile(step, donate=True, backend=backend)
    student = net()
    with torch.no_grad():
        student[0].weight.mul_(0.5)
    state = step.init(student)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for i in range(3):
        state, _ = fast(state, batch(seed=i))
        optimizer.zero_grad()
        F.mse_loss(student(batch(seed=i)[0]), teacher(batch(seed=i)[0]).detach()).backward()
        optimizer.step()
        teacher.load_state_dict({n: 2 * p for n, p in teacher.state_dict().items()})
    assert not requires_gradients(state) and fast.graphs == 1
    for name, p in student.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.filterwarnings("ignore:The loss .* was computed from parameters")
@pytest.mark.parametrize("kind", ["fit", "run", "ensemble", "criterion"])
def test_no_state_requires_gradients_after_a_teacher(kind):
    teacher = net().eval()
    loss = distilled(teacher)
    if kind == "criterion":
        weight = nn.Parameter(torch.ones(2))
        loss = lambda model, batch: (weight * (model(batch[0]) - batch[1])).square().mean()  # noqa: E731
    step = step_of(loss)
    if kind == "ensemble":
        step = fl.ensemble(step, 2)
    fast, state = compiled(step), step.init(net)
    if kind == "run":
        *_, (state, _) = fl.run(fast, state, [batch()] * 3, epochs=1)
    elif kind == "fit":
        state, _ = fl.fit(fast, state, [batch()] * 3, epochs=1, progress=False)
    else:
        for _ in range(3):
            state, _ = fast(state, batch())
    assert not requires_gradients(state)


def test_one_tensor_in_two_places_may_be_two_tensors_later():
    step = step_of(lambda model, batch: (model(batch[0]) - 2 * model(batch[1]) + batch[2]).mean())
    fast, state = compiled(step), step.init(net())
    (x, y), (other, _) = batch(), batch(seed=1)
    fast(state, (x, x, y))
    assert distance(step(state, (x, other, y))[0], fast(state, (x, other, y))[0]) < 1e-6
    assert fast.graphs == 1


def test_multipliers_that_are_one_tensor():
    step = step_of(optimizer=fl.optim.adamw(0.01))
    state = step.init(net())
    one = torch.ones(())
    memory = {**state["update"], "scale": dict.fromkeys(state["update"]["scale"], one)}
    fast, state = compiled(step), state.put("update", memory)
    fast(state, batch())
    state = fl.scale(state, "adamw.lr", 10.0)
    assert distance(step(state, batch())[0], fast(state, batch())[0]) < 1e-6


class Hot(nn.Module):
    def __init__(self, temperature):
        super().__init__()
        self.layer, self.temperature = nn.Linear(4, 2), temperature

    def forward(self, x):
        return self.layer(x) * self.temperature


def resting():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[1].eval()
    return model


class Configured(nn.Module):
    """What it does is in a dict, whose order counts."""

    def __init__(self, **moves):
        super().__init__()
        self.layer, self.moves = nn.Linear(4, 2), moves

    def forward(self, x):
        x = self.layer(x)
        for factor in self.moves.values():
            x = x * factor + 1
        return x


def hooked(hook, **options):
    model = nn.Linear(4, 2)
    model.register_forward_hook(hook, **options)
    return model


def double(module, inputs, output):
    return 2 * output


@pytest.mark.parametrize(
    "first, second",
    [
        (lambda: Hot(1.0), lambda: Hot(5.0)),
        (lambda: Configured(a=1.0), lambda: Configured(a=5.0)),
        (lambda: Configured(a=2.0, b=3.0), lambda: Configured(b=3.0, a=2.0)),
        (lambda: nn.Linear(4, 2), lambda: hooked(double)),
        (lambda: hooked(double), lambda: hooked(lambda module, inputs, output: 3 * output)),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), resting),
    ],
)
def test_two_models_that_look_alike_have_two_graphs(first, second):
    step = step_of()
    fast = compiled(step)
    for make in (first, second, first):
        state = step.init(make)
        assert distance(step(state, batch())[0], fast(state, batch())[0]) < 1e-6


def test_two_models_that_are_alike_have_one_graph():
    fast = compiled(step_of())
    for seed in (0, 1):
        fast(fast.init(lambda: Hot(2.0), seed=seed), batch())
    assert fast.graphs == 1


@pytest.mark.parametrize("make", [lambda: Configured(a=2.0, b=3.0), lambda: hooked(double)])
def test_models_with_equal_dicts_and_hooks_have_one_graph(make):
    fast = compiled(step_of())
    for seed in (0, 1):
        fast(fast.init(make, seed=seed), batch())
    assert fast.graphs == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_loss_may_loop_over_the_keys_of_a_batch(dynamic):
    def loss(model, batch):
        return mse(model, (torch.cat([*batch["features"].values()], 1), batch["y"]))

    step = step_of(loss)
    fast, state, (x, y) = compiled(step, dynamic=dynamic), step.init(net()), batch()
    a, b = x.split(x.shape[1] // 2, 1)
    for features in ({"a": a, "b": b}, {"b": b, "a": a}, {"a": a, "b": b}):
        given = {"features": features, "y": y}
        assert distance(step(state, given)[0], fast(state, given)[0]) < 1e-6
    assert fast.graphs == 2


def test_what_a_graph_depends_on_makes_another():
    seen = []

    def loss(model, batch):
        seen.append(1)
        return mse(model, batch)

    step = step_of(loss)
    fast, state = compiled(step), step.init(net())
    variants = [
        batch(),
        batch(3),
        tuple(t.t().contiguous().t() for t in batch()),
        (*batch(), 1),
        (*batch(), 1.0),
        (*batch(), True),
        (*batch(), -0.0),
        (*batch(), 0.0),
        (*batch(), "text"),
        list(batch()),
    ]
    for n, x in enumerate(variants[:7], start=1):
        fast(state, x)
        fast(state, x)
        assert fast.graphs == n
    with pytest.warns(UserWarning, match="8 graphs of one step"):
        fast(state, variants[7])
    for x in variants:
        fast(state, x)
    assert fast.graphs == len(variants)
    calls = len(seen)
    for x in variants:
        assert distance(fast(state, x)[0], step(state, x)[0]) < 1e-6
    assert len(seen) - calls == len(variants)  # the step's, not the graph's


def test_nan_in_a_batch_is_the_same_number_each_time():
    fast = compiled(step_of())
    state = fast.init(net())
    for _ in range(3):
        fast(state, (*batch(), float("nan")))
    assert fast.graphs == 1


def test_autocast_around_the_step_counts():
    step = step_of()
    fast, state = compiled(step), step.init(net())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = fast(state, batch())[0]
        assert distance(step(state, batch())[0], rounded) < 1e-6
    assert distance(fast(state, batch())[0], rounded) > 1e-6
    assert distance(step(state, batch())[0], fast(state, batch())[0]) < 1e-6


def test_under_no_grad():
    step = step_of()
    fast, state = compiled(step), step.init(net())
    with torch.no_grad():
        got = fast(state, batch())[0]
    assert distance(step(state, batch())[0], got) < 1e-6
    assert not any(p.requires_grad for p in got.params.values())


def test_changed_threads_take_another_graph():
    fast = compiled(step_of())
    state = fast.init(net())
    fast(state, batch())
    torch.set_num_threads(2)
    try:
        fast(state, batch())
    finally:
        torch.set_num_threads(1)
    assert fast.graphs == 2


def test_scaling_a_rate_between_steps_takes_no_new_graph():
    step = step_of(optimizer=fl.optim.adamw(fl.schedules.cosine(0.1, steps=9, warmup=2)))
    fast = compiled(step)
    expected = got = step.init(net())
    for factor in (0.5, 0.0, 3.0):
        expected, got = step(expected, batch())[0], fast(got, batch())[0]
        expected, got = fl.scale(expected, "adamw.lr", factor), fl.scale(got, "adamw.lr", factor)
    assert distance(expected, got) < 1e-6
    assert fast.graphs == 1


def test_a_callback_with_memory_takes_no_new_graph():
    fast = compiled(step_of())
    data = fl.Batches(batch(8), 4)
    for _ in fl.run(
        fast, fast.init(net()), data, steps=4, callbacks=[fl.early_stopping("loss", patience=9)]
    ):
        pass
    assert fast.graphs == 1


@fl.tree
class Shrink(fl.base.StepStage):
    """A stage as a user writes it, with `fl.tree_map` over the parameters."""

    wraps = "step"
    label = "shrink"
    inner: object

    def __call__(self, state, x):
        state, metrics = self.inner(state, x)
        norms = {"norm": fl.Last(sum(p.square().sum() for p in fl.tree_leaves(state.params)))}
        params = fl.tree_map(lambda p: p / 2, state.params)
        return state.replace(params=params), {**metrics, **norms}


def test_a_users_stage_may_map_over_the_parameters():
    step = step_of(optimizer=fl.optim.adamw(0.01), after=[Shrink, fl.ema(0.9)])
    agree(step, step.init(net()), [batch(), batch(seed=1)])


def test_a_gradient_stage_is_compiled_too():
    stage = fl.pipe(mse, fl.grad, fl.accumulate(2))
    state = stage.init(net())
    _, expected = stage(state, batch())
    _, got = compiled(stage)(state, batch())
    assert list(got.mean) == list(expected.mean)
    for name, mean in expected.mean.items():
        torch.testing.assert_close(got.mean[name], mean)
    assert float(got.weight) == 5.0


def test_a_compiled_step_in_a_compiled_step_is_a_part_of_it():
    inner = compiled(step_of())
    outer = compiled(lambda state, batch: inner(state, batch))
    state = inner.init(net())
    assert distance(inner.inner(state, batch())[0], outer(state, batch())[0]) < 1e-6
    assert (inner.graphs, outer.graphs) == (0, 1)


def test_states_go_from_one_step_to_another_and_back():
    other = step_of(lambda model, batch: model(batch[0]).abs().mean(), fl.optim.adamw(0.01))
    step = step_of(optimizer=fl.optim.adamw(0.01))
    for donate in (False, True):
        fast, second = compiled(step, donate=donate), compiled(other, donate=donate)
        expected = step.init(net())
        got = expected.replace()
        for i in range(3):
            for eager, run in ((step, fast), (other, second), (step, step)):
                expected = eager(expected, batch(seed=i))[0]
                got = run(got, batch(seed=i))[0]
        assert distance(expected, got) < 1e-5
        assert (fast.graphs, second.graphs) == (1, 1)


def test_parts_of_a_state_may_be_replaced():
    def change(i, state):
        memory = state["update"]
        zeros = fl.tree_map(torch.zeros_like, state.params)
        return [
            state,
            state.replace(params=fl.tree_map(lambda p: p + 1, state.params)),
            state.replace(key=state.key + 1, step=state.step + 5),
            state.put("update", {**memory, "adamw": {**memory["adamw"], "mu": zeros}}),
            state.replace(params={**state.params, "0.bias": torch.ones(8)}),
            state.replace(params=dict(reversed(state.params.items()))),
        ][i]

    step = step_of(optimizer=fl.optim.adamw(0.01))
    for donate in (False, True):
        fast = compiled(step, donate=donate)
        expected = step.init(net())
        got = expected.replace()
        for i in range(6):
            expected, got = change(i, expected), change(i, got)
            expected, got = step(expected, batch(seed=i))[0], fast(got, batch(seed=i))[0]
            params = {name: expected.params[name] for name in got.params}
            assert distance(expected.replace(params=params), got) < 1e-5, i


def test_a_loaded_state_goes_on(tmp_path):
    step = step_of(optimizer=fl.optim.adamw(0.01), after=[fl.ema(0.9)])
    fast = compiled(step, donate=True)
    state = fast(fast.init(net()), batch())[0]
    loaded = fl.load(fl.save(state, tmp_path), like=state)
    pickled = pickle.loads(pickle.dumps(state))
    copied = copy.deepcopy(state)
    after = fl.tree_map(torch.clone, fast(state, batch(seed=1))[0])
    for again in (loaded, pickled, copied):
        assert fl.tree_diff(after, fast(again, batch(seed=1))[0]) == ""
    assert fast.graphs == 1


def test_a_pickled_state_has_the_size_of_its_tensors():
    step = step_of()
    state = step.init(lambda: nn.Linear(4, 1000))
    expected, got = step(state, (torch.ones(3, 4), torch.ones(3, 1))), None
    got = compiled(step)(state, (torch.ones(3, 4), torch.ones(3, 1)))
    assert len(pickle.dumps(got[0])) < 1.1 * len(pickle.dumps(expected[0]))


def test_copies_of_a_compiled_step_compile_anew():
    fast = compiled(step_of())
    state = fast.init(net())
    expected = fast(state, batch())[0]
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert (twin.graphs, twin == fast) == (0, True)
        assert fl.tree_equal(twin(state, batch())[0], expected)


def test_another_rate_by_tree_at_is_another_step():
    fast = compiled(step_of())
    state = fast.init(net())
    fast(state, batch())
    slow = fl.tree_at(lambda step: step.inner.optimizer.lr, fast, 0.01)
    expected = step_of(optimizer=fl.optim.sgd(0.01))(state, batch())[0]
    assert distance(expected, slow(state, batch())[0]) < 1e-6
    assert fast.inner.optimizer.lr == 0.1


def test_it_prints_as_the_pipeline_that_it_is():
    assert repr(fl.compile(step_of())).splitlines()[-2:] == ["    compile,", ")"]
    assert "compile(donate=True, backend='aot_eager')" in repr(compiled(step_of(), donate=True))


def test_a_function_as_backend_gets_the_one_graph():
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    step = step_of(
        optimizer=fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(0.01)),
        after=[fl.ema(0.9)],
    )
    fast, state = fl.compile(step, backend=backend), step.init(net())
    assert distance(step(state, batch())[0], fast(state, batch())[0]) < 1e-6
    fast(state, batch(seed=1))
    assert len(seen) == 1
    called = {str(node.target) for node in seen[0].graph.nodes}
    assert any("tanh_backward" in name for name in called)  # the backward pass is in it
    assert any("lerp" in name for name in called)  # and the moments


def test_max_autotune_is_asked_of_inductor(monkeypatch):
    asked = []

    def build(graph, inputs, inner_compile, config_patches):
        asked.append(config_patches)
        return graph.forward

    monkeypatch.setattr(machine_code.inductor(), "compile_fx", build)
    for mode in ("default", "max-autotune"):
        fast = fl.compile(step_of(), mode=mode)
        fast(fast.init(net()), batch())
    assert [bool(options.get("max_autotune")) for options in asked] == [False, True]
    assert all(options["cpp_wrapper"] for options in asked)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_inductor_takes_the_lstm_of_onednn_and_says_nothing(caplog):
    def penalized(model, batch):
        layer, head = model.layer, model.head
        x = batch[0].view(-1, 2, 2).clone().requires_grad_()
        out, (h, _) = layer(x)
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return F.mse_loss(head(out[:, -1]), batch[1]) + h.square().mean() + slope.square().mean()

    def build():
        torch.manual_seed(0)
        layer = nn.LSTM(2, 3, 2, batch_first=True, bidirectional=True)
        return nn.ModuleDict({"layer": layer, "head": nn.Linear(6, 2)})

    log = logging.getLogger("torch")  # which does not propagate
    log.addHandler(caplog.handler)
    step = step_of(penalized, fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.adamw(0.01)))
    fast = fl.compile(step, donate=True)
    expected, got = step.init(build()), fast.init(build())
    try:
        for seed in range(3):
            expected = step(expected, batch(seed=seed))[0]
            with torch.set_grad_enabled(seed != 2):  # the kernel looks at that
                got = fast(got, batch(seed=seed))[0]
    finally:
        log.removeHandler(caplog.handler)
    assert distance(expected, got) < 1e-5
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_inside_inference_mode_it_says_what_to_do():
    step = fl.compile(
        fl.pipe(lambda model, x: model(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1))),
        backend="aot_eager",
    )
    state = step.init(torch.nn.Linear(2, 1))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no_grad"):
        step(state, torch.ones(3, 2))


@pytest.mark.parametrize("seen", [True, False])
def test_the_first_call_says_what_it_does_where_somebody_looks(monkeypatch, seen):
    screen = type("Screen", (io.StringIO,), {"isatty": lambda self: seen})()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    fast = fl.compile(step, backend="aot_eager")
    state = fast.init(torch.nn.Linear(2, 1))
    for _ in range(2):
        state, _ = fast(state, torch.ones(3, 2))
    said = screen.getvalue().splitlines()
    assert len(said) == (2 if seen else 0)
    if seen:
        assert "compiling the step for a batch of f32[3,2], once for this shape" in said[0]
        assert re.fullmatch(r"fl.compile: one graph of \d+ operations, in \d+\.\d s", said[1])
