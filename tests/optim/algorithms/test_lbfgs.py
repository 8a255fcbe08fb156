"""L-BFGS against ``torch.optim.LBFGS``: the same iterates to rounding, by as many evaluations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import optim
from fnloop.optim.torch_bridge import from_torch


class Point(nn.Module):
    """Begins at the point (-1.2, 1) from which Rosenbrock's function is usually minimized."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([-1.2, 1.0]))

    def forward(self, batch):
        x, y = self.at
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rosenbrock(model, batch):
    return model(batch)


def regression(model, batch):
    x, y = batch
    return (model(x) - y).square().mean()


def logistic(model, batch):
    x, y = batch
    penalty = sum([p.square().sum() for p in model.parameters()])
    return F.cross_entropy(model(x), (y[:, 0] > 0).long()) + 1e-3 * penalty


def data(n=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return x, torch.sin(2 * x.sum(1, keepdim=True))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def classifier():
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


PROBLEMS = {
    "rosenbrock": (lambda: Point().double(), rosenbrock, torch.zeros(1)),
    "network": (mlp, regression, data()),
    "logistic": (classifier, logistic, data()),
}
SETTINGS = {
    "searching": {"max_iter": 6, "line_search": "strong_wolfe"},
    "few evaluations": {"max_iter": 5, "max_eval": 3, "lr": 3.0, "line_search": "strong_wolfe"},
    "short history": {"max_iter": 4, "history_size": 2, "line_search": "strong_wolfe"},
    "long steps": {"max_iter": 3, "lr": 20.0, "line_search": "strong_wolfe"},
    "short steps": {"max_iter": 3, "lr": 1e-2, "line_search": "strong_wolfe"},
    "one iteration": {"max_iter": 1, "line_search": "strong_wolfe"},
    "fixed": {"max_iter": 4, "lr": 1e-3, "line_search": None},
    "fixed, one iteration": {"max_iter": 1, "lr": 1e-3, "line_search": None},
    "until it is flat": {"tolerance_grad": 1e-2, "line_search": "strong_wolfe"},
    "until it changes little": {"tolerance_change": 1e-2, "line_search": "strong_wolfe"},
}
ONES = torch.ones(2, dtype=torch.float64)
SIZE = {"history_size": 10}


def torch_steps(problem, settings, steps):
    """Yields the parameters after each step, the loss before it, and its evaluations."""
    make, loss, batch = PROBLEMS[problem]
    model = make()
    given = {**SIZE, **settings, "line_search_fn": settings["line_search"]}
    del given["line_search"]
    optimizer = torch.optim.LBFGS(model.parameters(), **given)

    def closure():
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        value = loss(model, batch)
        value.backward()
        return value

    for _ in range(steps):
        evaluations = 0
        value = optimizer.step(closure).detach()
        params = {name: p.detach().clone() for name, p in model.named_parameters()}
        yield params, float(value), evaluations


def compare(problem, settings, compiled, steps=4):
    make, loss, batch = PROBLEMS[problem]
    step = fl.pipe(loss, fl.grad, fl.update(optim.lbfgs(**{**SIZE, **settings})))
    state = step.init(make())
    step = fl.compile(step, backend="aot_eager") if compiled else step
    for params, value, evaluations in torch_steps(problem, settings, steps):
        state, metrics = step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(value, rel=1e-6, abs=1e-12)
        assert float(metrics["lbfgs.evaluations"]) == evaluations
        for name, p in params.items():
            torch.testing.assert_close(state.params[name], p, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_iterates_and_evaluations_are_those_of_torch(problem, settings):
    compare(problem, settings, compiled=False)


@pytest.mark.parametrize("settings", ["few evaluations", "fixed"])
def test_also_where_values_cannot_be_looked_at(settings):
    compare("logistic", {**SETTINGS[settings], "history_size": 3}, compiled=True)


def test_rosenbrock_is_solved_where_a_gradient_step_has_hardly_begun():
    make, loss, batch = PROBLEMS["rosenbrock"]
    step = fl.pipe(loss, fl.grad, fl.update(optim.lbfgs(max_iter=40)))
    state, metrics = step(step.init(make()), batch)
    torch.testing.assert_close(state.params["at"], ONES, rtol=0, atol=1e-5)
    assert float(metrics["lbfgs.evaluations"]) < 60


def test_micro_batches_dropout_and_statistics_are_those_of_the_gradient_stage():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)

        def forward(self, x):
            return self.b(F.dropout(self.norm(self.a(x)).tanh(), 0.2))

    def step_of(optimizer):
        return fl.pipe(regression, fl.grad, fl.accumulate(2), fl.update(optimizer))

    step, plain = step_of(optim.lbfgs(max_iter=8)), step_of(optim.sgd(0.1))
    state = step.init(lambda: Net().double(), seed=0)
    after, _ = step(state, data())
    assert after.buffers == plain(plain.init(state), data())[0].buffers
    # One loss is minimized, since its masks stay the same.
    before = fl.base.loss_at(step.inner, state, data())
    assert fl.base.loss_at(step.inner, state, data(), after.params) < 0.5 * before


def test_it_turns_back_where_the_loss_is_not_finite():
    def loss(model, batch):
        return model.at.sum() - model.at.log().sum()  # least at 1, and nan below 0

    step = fl.pipe(loss, fl.grad, fl.update(optim.lbfgs(lr=100.0, max_iter=20)))
    state = step.init(Point().double())
    state = state.replace(params={"at": torch.tensor([3.0, 0.5], dtype=torch.float64)})
    fixed = fl.pipe(loss, fl.grad, fl.update(optim.lbfgs(lr=100.0, line_search=None)))
    stays, metrics = fixed(fixed.init(state), torch.zeros(1))
    assert stays.params == state.params and float(metrics["lbfgs.evaluations"]) == 2
    for _ in range(3):
        state, _ = step(state, torch.zeros(1))
    torch.testing.assert_close(state.params["at"], ONES, rtol=0, atol=1e-5)


def test_where_nothing_is_left_to_do_parameters_keep_their_bits():
    step = fl.pipe(rosenbrock, fl.grad, fl.update(optim.lbfgs()))
    state = step.init(Point().double()).replace(params={"at": torch.ones(2).double()})
    after, metrics = step(state, torch.zeros(1))
    assert after.params == state.params and int(after.step) == 1
    assert float(metrics["lbfgs.evaluations"]) == 1


def test_some_parameters_by_name_and_a_rate_of_zero():
    step = fl.pipe(regression, fl.grad(only="2"), fl.update(optim.lbfgs(max_iter=3)))
    state = step.init(mlp())
    after, _ = step(state, data())
    assert after.params["0.weight"] is not None
    assert torch.equal(after.params["0.weight"], state.params["0.weight"])
    assert not torch.equal(after.params["2.weight"], state.params["2.weight"])
    frozen, _ = step(fl.scale(after, "lbfgs.lr", 0.0), data())
    assert frozen.params == after.params
    assert frozen["update"]["lbfgs"] == after["update"]["lbfgs"]


def test_parameters_that_the_loss_does_not_reach_stay():
    def loss(model, batch):
        return model[0](batch[0]).square().mean()

    step = fl.pipe(loss, fl.grad, fl.update(optim.lbfgs(max_iter=3)))
    state = step.init(mlp())
    state, _ = fl.pipe(regression, fl.grad, fl.update(optim.lbfgs(max_iter=3)))(state, data())
    after, _ = step(state, data())
    assert torch.equal(after.params["2.weight"], state.params["2.weight"])
    assert fl.base.loss_at(step.inner, after, data()) < fl.base.loss_at(step.inner, state, data())


def test_half_precision_and_complex_parameters():
    torch.manual_seed(0)
    target = torch.randn(3, dtype=torch.complex128)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.h = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
            self.z = nn.Parameter(torch.zeros(3, dtype=torch.complex128))

    def loss(model, batch):
        return (model.z - target).abs().square().sum() + (model.h.double() - 2).square().sum()

    step = fl.pipe(loss, fl.grad, fl.update(optim.lbfgs()))
    state, _ = step(step.init(Both), torch.zeros(1))
    torch.testing.assert_close(state.params["z"], target, rtol=1e-3, atol=1e-3)
    assert state.params["h"].tolist() == [2.0, 2.0, 2.0]


def test_it_stands_alone():
    for wrap in (
        lambda own: optim.chain(optim.clip_by_norm(1.0), own),
        lambda own: optim.masked(own, ["w"]),
        lambda own: optim.by_label({"a": own}, {"*": "a"}),
    ):
        with pytest.raises(TypeError, match=r"lbfgs .* stands alone in fl.update\(lbfgs"):
            wrap(optim.lbfgs())


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"line_search": "wolfe"}, ValueError, 'takes "strong_wolfe" or None'),
        ({"max_iter": 0}, ValueError, r"lbfgs\(max_iter=...\)"),
        ({"history_size": 1.5}, TypeError, r"lbfgs\(history_size=...\)"),
    ],
)
def test_wrong_settings_are_refused(settings, error, match):
    with pytest.raises(error, match=match):
        optim.lbfgs(**settings)


def test_torch_s_is_refused_with_a_pointer():
    with pytest.raises(TypeError, match=r"LBFGS needs a closure.*fl\.optim\.lbfgs"):
        from_torch(torch.optim.LBFGS, lr=0.1)
