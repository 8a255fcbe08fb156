"""Writes to parameters are refused wherever a model runs; random numbers come from the state."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.ones(6, 1)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def step_of(function, lr=0.1):
    return fl.pipe(function, fl.grad, fl.update(fl.optim.sgd(lr)))


STEP = step_of(loss)


class Writes(nn.Linear):
    def __init__(self, write):
        super().__init__(3, 1)
        self.write = write
        self.register_buffer("mask", torch.tensor([[1.0, 0.0, 1.0]]))

    def forward(self, x):
        self.write(self)
        return super().forward(x)


def mask(m):
    m.weight.data *= m.mask


def mask_again(m):  # changes no value
    m.weight.data *= 1


def through_a_view(m):
    m.weight.detach().view(-1)[0] = 0


def clamp(m):
    with torch.no_grad():
        m.weight.clamp_(max=0.1)


def renorm(m):
    m.weight.data = torch.renorm(m.weight.data, 2, 0, 0.01)


def replace(m):
    m.weight = nn.Parameter(m.weight * m.mask)


def delete(m):
    del m.weight
    m.weight = torch.ones(1, 3)


WRITES = [mask, mask_again, through_a_view, clamp, renorm, replace, delete]


def runs(step, state):
    yield lambda: step(state, (X, Y))
    yield lambda: fl.compile(step, backend="aot_eager")(state, (X, Y))
    yield lambda: fl.evaluate(loss, state, [(X, Y)])
    yield lambda: list(fl.predict(lambda m, b: m(b[0]), state, [(X, Y)]))
    yield lambda: fl.validate(loss, [(X, Y)])(state, {})


@pytest.mark.filterwarnings("ignore:The loss .* was computed from parameters")
@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_writes_to_a_parameter_are_refused_everywhere_before_they_happen(write):
    state = STEP.init(Writes(write), seed=0)
    before = {name: p.clone() for name, p in state.params.items()}
    for run in runs(STEP, state):
        with pytest.raises(RuntimeError, match=r"parameter 'weight'(.|\n)*F\.linear\(x, weight"):
            run()
        assert all(torch.equal(p, before[name]) for name, p in state.params.items())


def test_an_embedding_with_a_maximal_norm_is_refused_everywhere():
    loss = lambda m, b: m(b).square().mean()  # noqa: E731
    step, tokens = step_of(loss), torch.tensor([1, 2])
    state = step.init(nn.Embedding(5, 3, max_norm=0.1), seed=0)
    before = state.params["weight"].clone()
    for run in (
        lambda: step(state, tokens),
        lambda: fl.evaluate(loss, state, [tokens]),
        lambda: list(fl.predict(lambda m, b: m(b), state, [tokens])),
        lambda: fl.validate(loss, [tokens])(state, {}),
    ):
        with pytest.raises(RuntimeError, match=r"'weight' in place(.|\n)*max_norm"):
            run()
        assert torch.equal(state.params["weight"], before)


def test_packed_parameters_are_named_too():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))

    def writes(model, batch):
        model[1].weight.data *= 2
        return loss(model, batch)

    fast = fl.compile(step_of(writes), backend="aot_eager")
    state = fast.init(model)
    with pytest.raises(RuntimeError, match=r"'1\.weight' in place"):
        step_of(writes)(state, (X, Y))
    with pytest.raises(RuntimeError, match=r"'1\.weight' in place"):
        fast(state, (X, Y))


def test_the_remedy_works():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.register_buffer("mask", torch.tensor([[1.0, 0.0, 1.0]]))

        def forward(self, x):
            return F.linear(x, self.weight * self.mask, self.bias)

    state = STEP.init(Masked(), seed=0)
    fast = fl.compile(STEP, backend="aot_eager")
    torch.testing.assert_close(
        fast(state, (X, Y))[0].params["weight"], STEP(state, (X, Y))[0].params["weight"]
    )


def test_a_write_that_comes_late_is_refused_too():
    calls = []

    def late(m):
        calls.append(1)
        if len(calls) >= 3:  # the third call is not looked at closely
            clamp(m)

    state = STEP.init(Writes(late), seed=0)
    STEP(state, (X, Y))
    STEP(state, (X, Y))
    with pytest.raises(RuntimeError, match="'weight' in place"):
        STEP(state, (X, Y))


def test_a_stage_that_writes_through_data_is_refused_when_compiled():
    def writes(state, batch):
        state, metrics = STEP(state, batch)
        state.params["bias"].data.mul_(1)
        batch[0].data.mul_(2)
        return state, metrics

    fast = fl.compile(writes, backend="aot_eager")
    with pytest.raises(fl.errors.CompileError, match=r"writes to the batch \(0\) in place"):
        fast(STEP.init(nn.Linear(3, 1)), (X, Y))


def test_models_that_are_trees_too():
    @fl.tree
    class Tree:
        w: torch.Tensor

        def __call__(self, x):
            self.w.data.mul_(2)
            return x @ self.w

    state = STEP.init(Tree(torch.ones(3, 1)))
    for run in runs(STEP, state):
        with pytest.raises(RuntimeError, match="parameter 'w' in place"):
            run()
    assert torch.equal(state.params["w"], torch.ones(3, 1))


def test_buffers_may_be_written_to_in_any_way():
    def write(m):
        m.mask.data *= 2
        m.mask.data = m.mask.data + 1

    state = STEP.init(Writes(write), seed=0)
    for i in range(3):
        state, _ = STEP(state, (X, Y))
        expected = torch.tensor([[1.0, 0.0, 1.0]])
        for _ in range(i + 1):
            expected = expected * 2 + 1
        assert torch.equal(state.buffers["mask"], expected)


def test_a_state_made_under_inference_mode_can_be_evaluated():
    with torch.inference_mode():
        state = fl.tree_map(torch.clone, STEP.init(nn.Linear(3, 1), seed=0))
        inside = fl.evaluate(loss, state, [(X, Y)])
    assert fl.evaluate(loss, state, [(X, Y)]) == inside


# Random numbers


def everywhere():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def mixup(model, batch):
    x, y = batch
    share = np.random.beta(0.4, 0.4)
    order = list(range(len(x)))
    random.shuffle(order)
    return loss(model, (share * x + (1 - share) * x[order], share * y + (1 - share) * y[order]))


class Drops(nn.Module):
    """Draws from the global generators inside the model."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        factor = random.random() + np.random.randn()
        return self.linear(x) * factor + torch.rand(1)


CASES = [(mixup, lambda: nn.Linear(3, 1)), (loss, Drops)]


@pytest.mark.parametrize(("function", "build"), CASES)
def test_draws_of_python_and_numpy_are_a_function_of_the_state(function, build):
    step = step_of(function)
    state = step.init(build, seed=0)
    before, results = everywhere(), []
    for seed in range(5):
        random.seed(seed)
        np.random.seed(seed)
        ambient = everywhere()
        results.append(step(state, (X, Y)))
        assert everywhere()[:2] == ambient[:2]
    assert all(result == results[0] for result in results)
    random.setstate(before[0])
    losses = set()
    for _ in range(5):  # other numbers in each step
        state, metrics = step(state, (X, Y))
        losses.add(float(metrics["loss"]))
    assert len(losses) == 5
    fl.testing.check_pure(step, state, (X, Y))
    fl.testing.check_repeatable(step, state, (X, Y))
    fl.testing.check_resumes(step, state, [(X, Y)] * 4, steps=3)
    values = [fl.evaluate(function, state, [(X, Y)] * 3) for _ in range(4)]
    assert all(value == values[0] for value in values)


@pytest.mark.parametrize(("function", "build"), CASES)
def test_a_recording_that_would_freeze_a_draw_is_an_error(function, build):
    step = step_of(function)
    fast, ambient = fl.compile(step, backend="aot_eager"), everywhere()
    with pytest.raises(
        fl.errors.CompileError, match=r"draws from random and numpy\.random, and the gra"
    ):
        fast(step.init(build, seed=0), (X, Y))
    assert everywhere() == ambient


def test_a_function_made_anew_for_each_call_is_known_again():
    state = STEP.init(nn.Linear(3, 1), seed=0)
    values = {
        fl.evaluate(lambda m, b: m(b[0]).mean() + random.random(), state, [(X, Y)])["loss"]
        for _ in range(7)
    }
    assert len(values) == 1


def test_members_of_a_population_may_not_share_python_s_numbers():
    step = step_of(mixup)
    states = [step.init(lambda: nn.Linear(3, 1), seed=i) for i in range(2)]
    with pytest.raises(NotImplementedError, match="members of a vmapped step the same numbers"):
        fl.testing.check_vmaps(step, states, (X, Y))


GENERATORS = {
    "torch": (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand((), generator=g)),
    "numpy": (lambda: np.random.default_rng(1), lambda g: g.normal()),
    "numpy's old": (lambda: np.random.RandomState(1), lambda g: g.randn()),
    "python": (lambda: random.Random(1), lambda g: g.gauss(0, 1)),
}


class Draws(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 1), kind
        self.generators = {"own": GENERATORS[kind][0]()}

    def forward(self, x):
        return self.linear(x) * float(GENERATORS[self.kind][1](self.generators["own"]))


@pytest.mark.parametrize("kind", GENERATORS)
def test_generators_of_the_model_itself(kind):
    model = Draws(kind)
    state = STEP.init(model, seed=0)
    first = STEP(state, (X, Y))
    assert all(STEP(state, (X, Y)) == first for _ in range(4))
    _, other = STEP(state.replace(calls=state.calls + 1), (X, Y))
    assert float(other["loss"]) != float(first[1]["loss"])
    twin = pickle.loads(pickle.dumps(state))
    assert STEP(twin, (X, Y))[0] == first[0]
    a, b = (m.generators["own"] for m in (model, fl.to_module(state)))
    assert float(GENERATORS[kind][1](a)) == float(GENERATORS[kind][1](b))
    with pytest.raises(
        fl.errors.CompileError, match=r"generators\['own'\]|a generator of its own|value"
    ):
        fl.compile(STEP, backend="aot_eager")(state, (X, Y))


def test_a_generator_that_only_torch_reads_cannot_be_vmapped():
    class Noisy(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.generator = torch.Generator()

        def forward(self, x):
            return super().forward(x) + torch.rand(x.shape[0], 1, generator=self.generator)

    states = [STEP.init(Noisy, seed=i) for i in range(2)]
    with pytest.raises(NotImplementedError, match="generator of its own"):
        fl.testing.check_vmaps(STEP, states, (X, Y))


OWN = np.random.default_rng(3)


def globally(model, batch):
    return loss(model, batch) * OWN.uniform(0.5, 1.5)


@pytest.mark.parametrize("kind", [*GENERATORS, "a global one"])
def test_generators_that_a_loss_finds(kind):
    if kind == "a global one":
        function, untouched = globally, lambda: OWN.random() == np.random.default_rng(3).random()
    else:
        make, draw = GENERATORS[kind]
        own = {"generators": [make()]}
        function = lambda m, b: loss(m, b) * float(draw(own["generators"][0]))  # noqa: E731
        untouched = lambda: float(draw(own["generators"][0])) == float(draw(make()))  # noqa: E731
    step = step_of(function)
    state = step.init(nn.Linear(3, 1), seed=0)
    results = [step(state, (X, Y)) for _ in range(5)]
    assert all(result == results[0] for result in results)
    _, other = step(state.replace(calls=state.calls + 1), (X, Y))
    assert float(other["loss"]) != float(results[0][1]["loss"])
    with pytest.raises(fl.errors.CompileError):
        fl.compile(step, backend="aot_eager")(state, (X, Y))
    assert untouched()


def test_a_compiled_step_tells_at_its_first_call_too():
    class Counts(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    fast = fl.compile(STEP, backend="aot_eager")
    state = fast.init(Counts(3, 1))
    with pytest.warns(UserWarning, match="Counts changed something outside .*: calls") as told:
        for _ in range(3):
            state, _ = fast(state, (X, Y))
    assert len(told) == 1
