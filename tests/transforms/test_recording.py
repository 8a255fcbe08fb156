"""Random numbers of a compiled step: those of the step that is not compiled, to the bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fnloop as fl


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def batch(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randn(n, 2, generator=generator)


def compiled(step, **options):
    return fl.compile(step, backend="aot_eager", **options)


class Noisy(nn.Module):
    """A linear layer after some randomness."""

    def __init__(self, noise):
        super().__init__()
        self.layer, self._noise = nn.Linear(4, 2), noise

    def forward(self, x):
        return self.layer(self._noise(x))


def drawn_by(noise, x):
    """A loss that reports what was drawn: bits can be compared, whatever is computed from them."""

    def loss(model, batch):
        drawn = noise(batch[0])
        return mse(model, batch), {"drawn": fl.Last(drawn), "sum": fl.Sum(drawn.double().sum())}

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return step, step.init(nn.Linear(4, 2), seed=5)


NOISES = {
    "rand_like": torch.rand_like,
    "randn_like": torch.randn_like,
    "randint_like": lambda x: torch.randint_like(x, 5),
    "rand": lambda x: torch.rand(3, 2),
    "rand in float64": lambda x: torch.rand(3, 2, dtype=torch.float64),
    "randn": lambda x: torch.randn(x.shape),
    "randint": lambda x: torch.randint(2, 7, (9,)),
    "randperm": lambda x: torch.randperm(9),
    "normal": lambda x: torch.normal(1.0, 2.0, (4, 3)),
    "bernoulli(p)": lambda x: torch.bernoulli(x, 0.3),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(0.3),
    "uniform_": lambda x: torch.empty(5).uniform_(1, 2),
    "exponential_": lambda x: torch.empty_like(x).exponential_(),
    "bernoulli of tensors": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli of a transposed tensor": lambda x: torch.bernoulli(x.t().sigmoid()),
    "bernoulli in float64": lambda x: torch.bernoulli(x.double().sigmoid()),
    "normal of tensors": lambda x: torch.normal(x, x.abs()),
    "normal of a mean": lambda x: torch.normal(x, 0.5),
    "multinomial": lambda x: torch.multinomial(x.softmax(1), 1).double(),
    "multinomial, several": lambda x: torch.multinomial(x.softmax(1), 3).double(),
    "multinomial, a row": lambda x: torch.multinomial(x.flatten().softmax(0), 7).double(),
    "multinomial, replaced": lambda x: torch.multinomial(x.softmax(1), 1, True).double(),
    "a categorical distribution": lambda x: torch.distributions.Categorical(logits=x).sample(),
    "a Bernoulli distribution": lambda x: torch.distributions.Bernoulli(logits=x).sample(),
    "a normal distribution": lambda x: torch.distributions.Normal(x, x.abs()).rsample(),
    "on a transposed tensor": lambda x: torch.rand_like(x.t()),
    "written over afterwards": lambda x: torch.rand_like(x).mul_(2).add_(x),
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout of channels": lambda x: F.dropout1d(x[None], 0.5),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "gumbel softmax": lambda x: F.gumbel_softmax(x, hard=True),
    "attention dropout": lambda x: F.scaled_dot_product_attention(
        x[None], x[None], x[None], dropout_p=0.5
    ),
    "several in a row": lambda x: (
        torch.rand_like(x) + torch.randn(4) - F.dropout(x) * torch.rand(())
    ),
    "as many as there are": lambda x: torch.stack([torch.rand(()) for _ in range(7)]),
}


@pytest.mark.parametrize("name", NOISES)
def test_draws_are_those_of_the_eager_step_to_the_bit(name):
    step, state = drawn_by(NOISES[name], batch()[0])
    fast = compiled(step, donate=True)
    expected, got = state, state.replace()
    seen = []
    for i in range(3):
        expected, wanted = step(expected, batch(seed=i))
        got, metrics = fast(got, batch(seed=i))
        assert fl.tree_equal(wanted["drawn"].value(), metrics["drawn"].value())
        seen.append(metrics["drawn"].value())
    assert not torch.equal(seen[0], seen[1])
    assert fast.graphs == 1


MEMBERS_DRAW = (
    "bernoulli of tensors", "normal of tensors", "multinomial", "multinomial, several",
    "multinomial, a row",
)  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS_DRAW)
def test_members_draw_what_each_draws_alone(name):
    step, state = drawn_by(NOISES[name], batch()[0])
    members = [state.replace(key=state.key + i) for i in range(3)]
    states = fl.tree_map(lambda *leaves: torch.stack(leaves), *members)
    many = torch.func.vmap(step, in_dims=(0, None), randomness="different")
    _, metrics = compiled(many)(states, batch())
    for i, member in enumerate(members):
        wanted = step(member, batch())[1]["drawn"].value()
        assert torch.equal(metrics["drawn"].value()[i], wanted)


@pytest.mark.parametrize("weights", [-1.0, 0.0, torch.inf, torch.nan])
def test_multinomial_refuses_weights_that_are_none(weights):
    step, state = drawn_by(lambda x: torch.multinomial(x, 1).double(), batch()[0])
    fast, (x, y) = compiled(step), batch()
    fast(state, (x.abs() + 1, y))
    wrong = x.abs() + 1
    wrong[2] = weights
    for each, error in ((step, RuntimeError), (fast, AssertionError)):
        with pytest.raises(error):
            each(state, (wrong, y))


def test_each_micro_batch_draws_its_own():
    def loss(model, batch):
        noise = torch.rand(3)
        metrics = {"first": fl.Max(noise[0]), "least": fl.Min(noise[1]), "sum": fl.Sum(noise[2])}
        return mse(model, batch), metrics

    step = fl.pipe(loss, fl.grad, fl.accumulate(3), fl.update(fl.optim.sgd(0.1)))
    fast = compiled(step)
    expected = got = step.init(nn.Linear(4, 2), seed=5)
    for i in range(2):
        expected, wanted = step(expected, batch(seed=i))
        got, metrics = fast(got, batch(seed=i))
        for name in ("first", "least"):
            assert float(wanted[name]) == float(metrics[name])
        assert float(metrics["sum"]) == pytest.approx(float(wanted["sum"]), abs=1e-6)
    assert float(metrics["first"]) != float(metrics["least"])


def test_another_key_and_another_call_draw_other_numbers_without_a_new_graph():
    step, state = drawn_by(torch.rand_like, batch()[0])
    fast = compiled(step)
    states = [state, state.replace(key=state.key + 1), state.replace(calls=state.calls + 1)]
    drawn = [fast(s, batch())[1]["drawn"].value() for s in states]
    for s, values in zip(states, drawn, strict=True):
        assert torch.equal(values, step(s, batch())[1]["drawn"].value())
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert fast.graphs == 1


def test_the_global_generator_is_neither_read_nor_moved():
    step, state = drawn_by(F.dropout, batch()[0])
    fast = compiled(step)
    results = []
    for seed in (1, 2):  # the first call makes the graph
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(fast(state, batch()))
        assert torch.equal(before, torch.get_rng_state())
    assert fl.tree_equal(*results)


def distance(a, b):
    return max(
        float((a.params[name].double() - b.params[name].double()).abs().max()) for name in a.params
    )


def test_dropout_under_activation_checkpointing_draws_the_same_mask_twice():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def block(self, x):
            return F.dropout(self.a(x).tanh(), 0.5)

        def forward(self, x):
            x = F.dropout(x, 0.3)
            x = checkpoint(self.block, x, use_reentrant=False)
            return F.dropout(self.b(x), 0.3)

    step = fl.pipe(mse, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    fast = compiled(step)
    expected = got = step.init(Model, seed=3)
    for i in range(3):
        expected, got = step(expected, batch(seed=i))[0], fast(got, batch(seed=i))[0]
    assert distance(expected, got) < 1e-6


@fl.tree
class Sharpness(fl.base.GradStage):
    """Sharpness-aware minimization: the gradient at a point uphill, on the same batch."""

    wraps = "grad"
    label = "sharpness"
    inner: object

    def __call__(self, state, x):
        _, grads = self.inner(state, x)
        uphill = {name: p + 0.05 * grads.mean[name] for name, p in state.params.items()}
        after, grads = self.inner(state.replace(params=uphill), x)
        return after.replace(params=state.params), grads


def test_two_gradients_of_one_batch_have_one_mask():
    step = fl.pipe(mse, fl.grad, Sharpness, fl.update(fl.optim.sgd(0.1)))
    state = step.init(lambda: Noisy(F.dropout), seed=2)
    assert distance(step(state, batch())[0], compiled(step)(state, batch())[0]) < 1e-6


REFUSED = {
    "bernoulli": (
        lambda x: torch.bernoulli(x.sigmoid().half()).to(x.dtype),
        "depend on a tensor's values",
    ),
    "multinomial": (
        lambda x: torch.multinomial(x.softmax(1), 9, replacement=True),
        "Draw rows of one each",
    ),
    "poisson": (lambda x: torch.poisson(x.abs()), "depend on a tensor's values"),
    "a generator": (
        lambda x: torch.rand(x.shape, generator=torch.Generator().manual_seed(1)),
        "generator of its own",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_beforehand_is_an_error(name):
    noise, message = REFUSED[name]
    step, state = drawn_by(noise, batch()[0])
    with pytest.raises(fl.errors.CompileError, match=message) as caught:
        compiled(step)(state, batch())
    assert "test_recording.py, line" in str(caught.value)
    step(state, batch())  # which is no error without fl.compile


@fl.tree
class Twice(fl.base.StepStage):
    wraps = "step"
    label = "twice"
    inner: object

    def __call__(self, state, x):
        state, _ = self.inner(state, x)
        return self.inner(state, x)


def test_a_second_step_may_draw_nothing():
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)), Twice)
    state = step.init(nn.Linear(4, 2))
    assert distance(step(state, batch())[0], compiled(step)(state, batch())[0]) < 1e-6
    noisy = step.init(lambda: Noisy(F.dropout))
    with pytest.raises(fl.errors.CompileError, match=r"state\.key or state\.calls"):
        compiled(step)(noisy, batch())


def changes(change):
    inner = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)))

    @fl.tree
    class Changing(fl.base.StepStage):
        wraps = "step"
        label = "changing"
        inner: object

        def __call__(self, state, x):
            after, metrics = self.inner(state, x)
            return change(after), metrics

    return Changing(inner), inner.init(nn.Linear(4, 2)).put("mine", {"n": torch.ones(())})


NOT_ITS_OWN = {
    "a new slot": (lambda s: s.put("new", torch.ones(())), "adds the slot 'new'"),
    "a slot that it does not own": (lambda s: s.put("mine", {"n": torch.ones(())}), "slot 'mine'"),
    "a slot that goes": (
        lambda s: s.replace(slots={"update": s["update"]}),
        "takes the slot 'mine'",
    ),
    "the cursor": (lambda s: s.replace(cursor=s.cursor + 1), r"changes state\.cursor"),
    "no state": (lambda s: s.params, "in place of a State"),
}


@pytest.mark.parametrize("name", NOT_ITS_OWN)
def test_what_is_not_the_steps_own_is_not_dropped_in_silence(name):
    change, message = NOT_ITS_OWN[name]
    step, state = changes(change)
    with pytest.raises(fl.errors.CompileError, match=message):
        compiled(step)(state, batch())


def test_a_slot_that_no_stage_owns_cannot_be_read_as_a_constant():
    def loss(model, batch, state):
        return mse(model, batch) * state["mine"]["n"]

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(4, 2)).put("mine", {"n": torch.ones(())})
    with pytest.raises(fl.errors.CompileError, match="slot 'mine', which none of its stages owns"):
        compiled(step)(state, batch())


def test_a_slot_that_the_step_does_not_use_passes_by():
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)))
    mine = {"n": torch.ones(())}
    for donate in (False, True):
        after, _ = compiled(step, donate=donate)(
            step.init(nn.Linear(4, 2)).put("mine", mine), batch()
        )
        assert after["mine"] is mine


@pytest.mark.parametrize("draw", [np.random.rand, random.random], ids=["numpy", "random"])
def test_a_stage_cannot_draw_from_elsewhere(draw):
    def noisy(inner):
        def call(state, x):
            state, grads = inner(state, x)
            return state, grads.replace(mean=grads.mean.scale(1 + float(draw())))

        return fl.stage(call, "grad")

    step = fl.pipe(mse, fl.grad, noisy, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(4, 2))
    before = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(fl.errors.CompileError, match="a stage of the step draws from"):
        compiled(step)(state, batch())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_step_runs_once_to_be_recorded():
    runs = []

    def loss(model, batch):
        runs.append(batch)
        return mse(model, batch)

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = compiled(step)
    state = step.init(Noisy(nn.Dropout(0.5)), seed=0)
    for _ in range(3):
        state, _ = step(state, batch())
    assert len(runs) == 1
