"""``unroll``: the values of a loop, and derivatives that agree with finite differences."""

from __future__ import annotations

import itertools
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

DOUBLE = torch.float64
K = 20


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=DOUBLE)
    return x, torch.randint(0, 3, (n,), generator=generator)


BATCHES, VALIDATION = [data(8, i) for i in range(K)], data(30, 99)


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def step_of(optimizer, loss=loss, *after):
    return fl.pipe(loss, fl.grad, fl.update(optimizer), *after)


def outer(state):
    return state.apply(lambda model: loss(model, VALIDATION))


def leaf_of(value):
    return value.detach().clone().requires_grad_()


@fl.tree
class Decayed:
    """A loss with a weight of its second term."""

    weight: Any

    def __call__(self, model, batch):
        return loss(model, batch) + self.weight * model(batch[0]).square().mean()


@fl.tree
class Noisy:
    """A loss with noise on its inputs."""

    strength: Any

    def __call__(self, model, batch):
        return loss(model, (batch[0] + self.strength * torch.randn_like(batch[0]), batch[1]))


def clipped(rate):
    schedule = fl.schedules.cosine(rate, steps=K, warmup=3)
    return fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.adamw(schedule))


def by_examples(weights):
    def weighted(model, batch):
        own = weights[batch[1]]
        return fl.Mean(
            (own * F.cross_entropy(model(batch[0]), batch[1], reduction="none")).sum(), own.sum()
        )

    return weighted


STEPS = {
    "momentum's rate": (0.1, lambda v: step_of(fl.optim.sgd(v, momentum=0.9))),
    "momentum": (0.9, lambda v: step_of(fl.optim.sgd(0.1, momentum=v))),
    "peak of a schedule": (0.01, lambda v: step_of(clipped(v))),
    "weight decay": (0.1, lambda v: step_of(fl.optim.adamw(0.01, weight_decay=v))),
    "loss weight": (0.3, lambda v: step_of(clipped(0.01), Decayed(v))),
    "augmentation": (0.3, lambda v: step_of(clipped(0.01), Noisy(v))),
    "data weights": (
        [1.0, 0.7, 1.5],
        lambda v: step_of(clipped(0.01), by_examples(v)),
    ),
}


def richardson(function, h):
    """The derivative at 0 by central differences, extrapolated twice (Richardson, 1911)."""
    a, b, c = [(function(t) - function(-t)) / (2 * t) for t in (h, h / 2, h / 4)]
    a, b = (4 * b - a) / 3, (4 * c - b) / 3
    return (16 * b - a) / 15


def agree(function, at):
    """All derivatives along one direction, and those of reverse mode with one another."""
    way = torch.cos(torch.arange(1.0, at.numel() + 1, dtype=DOUBLE)).view_as(at)
    scale = 1e-2 * at.abs().max()
    with torch.no_grad():
        expected = richardson(lambda t: float(function(at + t * way)), float(scale))
    found = {"func": torch.func.grad(function)(at)}
    for k in (None, 1, 6):
        wanted = leaf_of(at)
        (found[f"recompute={k}"],) = torch.autograd.grad(function(wanted, recompute=k), wanted)
    numbers = {name: float((g * way).sum()) for name, g in found.items()}
    numbers["jvp"] = float(torch.func.jvp(function, (at,), (way,))[1])
    assert abs(expected) > 1e-6
    assert numbers == pytest.approx(dict.fromkeys(numbers, expected), rel=1e-6)


@pytest.mark.parametrize("name", STEPS)
def test_through_twenty_steps_against_differences(name):
    value, make = STEPS[name]
    at = torch.tensor(value, dtype=DOUBLE)
    state = make(at).init(net, seed=0)
    agree(lambda v, **options: outer(fl.unroll(make(v), state, BATCHES, **options)), at)


def test_initial_parameters_against_differences():
    step = step_of(clipped(0.01))
    state = step.init(net, seed=0)

    def after(weight, **options):
        begun = state.replace(params={**state.params, "0.weight": weight})
        return outer(fl.unroll(step, begun, BATCHES, **options))

    agree(after, state.params["0.weight"])


def test_inputs_of_batches_against_differences():
    step = step_of(clipped(0.01))
    state = step.init(net, seed=0)

    def after(x, **options):
        given = [(x, BATCHES[0][1]), *BATCHES[1:]]
        return outer(fl.unroll(step, state, given, **options))

    agree(after, BATCHES[0][0])


def test_a_derivative_of_a_derivative_goes_through_recomputed_segments():
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(net, seed=0)

    def second(rate, **options):
        rate = leaf_of(rate)
        value = outer(fl.unroll(step_of(fl.optim.sgd(rate)), state, BATCHES[:6], **options))
        (first,) = torch.autograd.grad(value, rate, create_graph=True)
        return torch.autograd.grad(first, rate)[0]

    rate = torch.tensor(0.1, dtype=DOUBLE)
    torch.testing.assert_close(second(rate, recompute=2), second(rate))


class Deep(nn.Module):
    """With dropout and batch statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)
        ).double()

    def forward(self, x):
        return self.layers(x)


PIPELINES = {
    "adamw": lambda v: step_of(fl.optim.adamw(v)),
    "accumulate, ema": lambda v: fl.pipe(
        loss, fl.grad, fl.accumulate(3), fl.update(fl.optim.adam(v)), fl.ema(0.9)
    ),
    "half precision": lambda v: fl.pipe(
        loss, fl.grad, fl.amp("bf16"), fl.update(fl.optim.adamw(v, weight_decay=0.1))
    ),
    "guard": lambda v: fl.pipe(
        loss,
        fl.grad,
        fl.update(fl.optim.sgd(v, momentum=0.9)),
        fl.guard(fl.rules.spike("loss", 8, window=4)),
    ),
    "sequence": lambda v: fl.sequence(
        first=fl.pipe(loss, fl.grad(only="layers.0.*"), fl.update(fl.optim.adam(v))),
        last=fl.pipe(loss, fl.grad(only="layers.4"), fl.update(fl.optim.sgd(v))),
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("asked", [False, True])
def test_the_values_are_those_of_a_loop_to_the_bit(name, asked):
    rate = torch.tensor(0.05, dtype=DOUBLE, requires_grad=asked)
    step = PIPELINES[name](rate)
    state = expected = step.init(Deep, seed=0)
    given = BATCHES[:7]
    for batch in given:
        expected, _ = step(expected, batch)
    gradients = []
    for options in ({}, {"recompute": 1}, {"recompute": 3}, {"truncate": 2}, {"truncate": 9}):
        found = fl.unroll(step, state, given, **options)
        assert found == expected
        if "truncate" not in options:
            wanted = [leaf.requires_grad for leaf in fl.tree_leaves(found)]
            assert wanted == [leaf.requires_grad for leaf in fl.tree_leaves(expected)]
            assert any(wanted) == asked
        if asked and options != {"truncate": 2}:
            gradients += torch.autograd.grad(found.apply(lambda m: loss(m, VALIDATION)), rate)
    for gradient in gradients:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=0)
    with torch.no_grad():
        if not asked:
            assert fl.unroll(step, state, given, recompute=2) == expected


def test_what_is_cut_off_is_taken_as_given():
    state = step_of(fl.optim.adamw(0.1)).init(net, seed=0)
    rate = torch.tensor(0.1, dtype=DOUBLE)
    middle = fl.unroll(step_of(fl.optim.adamw(rate)), state, BATCHES[:5])

    def rest(rate):
        return outer(fl.unroll(step_of(fl.optim.adamw(rate)), middle, BATCHES[5:8]))

    def whole(rate, **options):
        return outer(fl.unroll(step_of(fl.optim.adamw(rate)), state, BATCHES[:8], **options))

    def cut(rate, **options):
        return whole(rate, truncate=3, **options)

    expected = torch.func.grad(rest)(rate)
    found = [torch.func.grad(cut)(rate)]
    found.append(torch.func.jvp(cut, (rate,), (torch.ones((), dtype=DOUBLE),))[1])
    for k in (None, 2):
        wanted = leaf_of(rate)
        found += torch.autograd.grad(cut(wanted, recompute=k), wanted)
    torch.testing.assert_close(found, [expected] * 4)
    assert not torch.allclose(torch.func.grad(whole)(rate), expected)


def test_a_skipped_step_inside_does_no_harm():
    bad = (torch.full_like(BATCHES[0][0], torch.nan), BATCHES[0][1])
    given = [*BATCHES[:3], bad, *BATCHES[3:6]]
    state = step_of(clipped(0.1)).init(net, seed=0)

    def after(rate, **options):
        return outer(fl.unroll(step_of(clipped(rate)), state, given, **options))

    rate = torch.tensor(0.1, dtype=DOUBLE)
    with torch.no_grad():
        expected = richardson(lambda t: float(after(rate + t)), 1e-3)
    found = [float(torch.func.jvp(after, (rate,), (torch.ones((), dtype=DOUBLE),))[1])]
    for k in (None, 2, 4):
        wanted = leaf_of(rate)
        found += map(float, torch.autograd.grad(after(wanted, recompute=k), wanted))
    assert found == pytest.approx([expected] * 4, rel=1e-6)
    assert torch.func.grad(after)(rate).isnan()  # as the page on derivatives says


class Counter:
    """Bytes of the tensors that autograd keeps for backward passes."""

    def __init__(self):
        self.now = self.most = 0
        self._users: dict[int, int] = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self._users[address] = self._users.get(address, 0) + 1
        if self._users[address] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        kept = Kept(tensor.detach())  # a result of the node would be a cycle
        weakref.finalize(kept, self._free, address, size)
        return kept

    def _free(self, address, size):
        self._users[address] -= 1
        if not self._users[address]:
            self.now -= size


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor):
        self.tensor = tensor


def most_kept(steps, recompute):
    rate = torch.tensor(0.01, dtype=DOUBLE, requires_grad=True)
    step = step_of(clipped(rate))
    state, counter = step.init(net, seed=0), Counter()
    given = [BATCHES[i % K] for i in range(steps)]
    with torch.autograd.graph.saved_tensors_hooks(counter.pack, lambda kept: kept.tensor):
        value = outer(fl.unroll(step, state, given, recompute=recompute))
        torch.autograd.grad(value, rate)
    return counter.most


def test_the_memory_of_segments_grows_as_the_root_of_the_steps():
    whole = [most_kept(steps, None) for steps in (16, 64)]
    assert 3.5 < whole[1] / whole[0] < 4.5
    parts = [most_kept(steps, k) for steps, k in ((16, 4), (64, 8), (256, 16))]
    for a, b in itertools.pairwise(parts):
        assert 1.5 < b / a < 2.5
    assert parts[2] < whole[0] * 1.6


TEACHER = net()
SCALE = torch.ones((), dtype=DOUBLE)


def distilled(model, batch):
    return SCALE * (model(batch[0]) - TEACHER(batch[0])).square().mean()


def test_gradients_of_what_a_loss_finds_outside(monkeypatch):
    scale = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    monkeypatch.setitem(distilled.__globals__, "SCALE", scale.exp())  # computed from another
    step = step_of(fl.optim.sgd(0.3), distilled)
    state = step.init(net, seed=0)
    found = []
    for k in (None, 1, 3):
        value = outer(fl.unroll(step, state, BATCHES[:7], recompute=k))
        found.append(torch.autograd.grad(value, [scale, *TEACHER.parameters()], retain_graph=True))
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-12, atol=1e-15)
    assert all(gradient.abs().max() > 1e-6 for gradient in found[0])


def test_a_tensor_that_is_both_hyperparameter_and_closed_over():
    state = step_of(fl.optim.sgd(0.5, momentum=0.45)).init(net, seed=0)

    def after(value, **options):
        def own(model, batch):
            return value * loss(model, batch)

        step = step_of(fl.optim.sgd(value, momentum=value * 0.9), own)
        return outer(fl.unroll(step, state, BATCHES[:7], **options))

    agree(after, torch.tensor(0.5, dtype=DOUBLE))


def test_segments_refuse_tensors_that_cannot_be_told_apart():
    raw = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    weights = raw.softmax(0)

    def both(model, batch):
        return by_examples(weights)(model, batch).value() + raw.sum() * loss(model, batch)

    step = step_of(fl.optim.sgd(0.1), both)
    with pytest.raises(ValueError, match=r"closes over .*from which that is computed"):
        fl.unroll(step, step.init(net, seed=0), BATCHES[:4], recompute=2)


class Hidden:
    """A holder of a tensor that no search finds."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def test_segments_refuse_tensors_that_are_not_found():
    hidden = Hidden(torch.ones((), dtype=DOUBLE, requires_grad=True))
    rate = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    step = step_of(fl.optim.sgd(rate), lambda m, b: hidden.value * loss(m, b))
    with pytest.raises(ValueError, match="must know every tensor"):
        fl.unroll(step, step.init(net, seed=0), BATCHES[:4], recompute=2)


def test_a_loss_may_make_tensors_that_require_gradients():
    def smooth(model, batch):  # a penalty on the slope (Gulrajani et al., 2017)
        x = batch[0].clone().requires_grad_()
        scores = model(x)
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return F.cross_entropy(scores, batch[1]) + slope.square().mean()

    rate = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    step = step_of(fl.optim.sgd(rate), smooth)
    state = step.init(net, seed=0)
    values = [outer(fl.unroll(step, state, BATCHES[:7], recompute=k)) for k in (None, 3)]
    whole, parts = [torch.autograd.grad(value, rate)[0] for value in values]
    torch.testing.assert_close(parts, whole)


def test_a_population_inside():
    def after(rate, **options):
        step = fl.ensemble(step_of(fl.optim.sgd(rate, momentum=0.9)), 3)
        trained = fl.unroll(step, step.init(net, seed=0), BATCHES[:5], **options)
        return sum(outer(fl.member(trained, i)) for i in range(3))

    rate = torch.tensor(0.1, dtype=DOUBLE)
    with torch.no_grad():
        expected = richardson(lambda t: float(after(rate + t)), 1e-3)
    for k in (None, 2):
        wanted = leaf_of(rate)
        (found,) = torch.autograd.grad(after(wanted, recompute=k), wanted)
        assert float(found) == pytest.approx(expected, rel=1e-6)


class Rate(nn.Module):
    """A learning rate that is learned."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.tensor(-2.0, dtype=DOUBLE))

    def forward(self):
        return self.log.exp()


def test_the_outer_problem_is_a_training_step_too():
    begun = step_of(fl.optim.sgd(0.1)).init(net, seed=0)

    def outer_step(**options):
        def after(model, batches):
            inner = step_of(fl.optim.sgd(model()))
            return fl.Mean(outer(fl.unroll(inner, begun, batches, **options)), 1.0)

        return fl.pipe(after, fl.grad, fl.update(fl.optim.adam(0.1)))

    whole, parts = outer_step(), outer_step(recompute=2)
    state = whole.init(Rate, seed=0)
    given = tuple(BATCHES[:5])
    fast = fl.compile(whole, backend="aot_eager")
    results = [each(each(state, given)[0], given) for each in (whole, parts, fast)]
    for after, metrics in results:
        torch.testing.assert_close(after.params["log"], results[0][0].params["log"])
        assert float(metrics["loss"]) == pytest.approx(float(results[0][1]["loss"]))
        assert abs(float(after.params["log"]) + 2) > 0.1


def test_a_compiled_step_may_differentiate_through_others():
    inner = step_of(fl.optim.sgd(0.1))

    def slope(state, batches):
        def after(log_rate):
            return outer(fl.unroll(step_of(fl.optim.sgd(log_rate.exp())), state, batches))

        return state, {"slope": fl.Last(torch.func.grad(after)(torch.tensor(-2.0).double()))}

    step, state = fl.stage(slope, "step"), inner.init(net, seed=0)
    given = tuple(BATCHES[:3])
    expected = float(step(state, given)[1]["slope"])
    found = fl.compile(step, backend="aot_eager")(state, given)[1]["slope"]
    assert float(found) == pytest.approx(expected) and expected != 0


def test_mapped_over_starts():
    step = step_of(fl.optim.sgd(0.1))
    states = [step.init(net, seed=i).params for i in range(2)]
    state = step.init(net, seed=0)

    def after(params):
        return outer(fl.unroll(step, state.replace(params=params), BATCHES[:3]))

    many = torch.func.vmap(torch.func.grad(after))(fl.tree_map(lambda *t: torch.stack(t), *states))
    for i, params in enumerate(states):
        expected = torch.func.grad(after)(params)
        torch.testing.assert_close(many["0.weight"][i], expected["0.weight"])


def test_a_step_that_begins_inside_of_a_transform():
    code = (
        "import torch, fnloop as fl\n"
        "def after(rate):\n"
        "    loss = lambda m, b: (m(b) - 1).square().mean()\n"
        "    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(rate)))\n"
        "    state = step.init(lambda: torch.nn.Linear(2, 1), seed=0)\n"
        "    trained = fl.unroll(step, state, [torch.ones(3, 2)] * 3)\n"
        "    return trained.apply(lambda model: loss(model, torch.ones(3, 2)))\n"
        "assert torch.func.grad(after)(torch.tensor(0.01)) < 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_refused():
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(net, seed=0)
    with pytest.raises(TypeError, match=r"takes a state.* step\.init"):
        fl.unroll(step, net(), BATCHES)
    with pytest.raises(TypeError, match="which is one batch"):
        fl.unroll(step, state, BATCHES[0][0])
    with pytest.raises(ValueError, match=r"step\.uncompiled"):
        fl.unroll(fl.compile(step, backend="aot_eager"), state, BATCHES)
    with pytest.raises(ValueError, match=r"unroll\(truncate=\.\.\.\) takes"):
        fl.unroll(step, state, BATCHES, truncate=0)

    def after(params):
        return outer(fl.unroll(step, state.replace(params=params), BATCHES, recompute=4))

    with pytest.raises(RuntimeError, match=r"inside torch.func.*Use torch\.autograd"):
        torch.func.grad(after)(state.params)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match=r'torch\.autocast.*fl\.amp\("bf16"\)'),
    ):
        fl.unroll(step, state, BATCHES, recompute=4)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        bridged = step_of(fl.optim.from_torch(torch.optim.SGD, lr=0.1))
        begun = bridged.init(net, seed=0)
        begun = begun.replace(params=fl.tree_map(leaf_of, begun.params))
        fl.unroll(bridged, begun, BATCHES, recompute=4)


def test_no_batch_is_no_step():
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(net, seed=0)
    assert fl.unroll(step, state, [], recompute=2, truncate=3) == state


def test_the_model_of_a_population_is_that_of_a_member():
    step = fl.ensemble(step_of(fl.optim.sgd(0.1)), 2)
    with pytest.raises(ValueError, match=r"fl\.member\(state, i\)\.apply"):
        outer(step.init(net, seed=0))
