"""A check that cannot fail is worthless: each one catches a stage that breaks its law."""

from __future__ import annotations

import functools
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing
from fnloop.testing import LawError


def loss(model, batch):
    return model(batch).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def state():
    return STEP.init(nn.Linear(2, 1))


def test_pure_sees_a_changed_parameter():
    def bad(state, batch):
        state.params["bias"].mul_(1.0)  # same values, but written
        return state, {}

    with pytest.raises(LawError, match="params/bias"):
        testing.check_pure(bad, state(), torch.ones(3, 2))


def test_pure_sees_a_changed_batch():
    def bad(state, batch):
        batch.add_(1)
        return state, {}

    with pytest.raises(LawError, match="law 1"):
        testing.check_pure(bad, state(), torch.ones(3, 2))


def test_pure_sees_the_global_random_state():
    def bad(state, batch):
        torch.rand(())
        return state, {}

    with pytest.raises(LawError, match="random state"):
        testing.check_pure(bad, state(), torch.ones(3, 2))


def test_pure_sees_the_users_module():
    model = nn.Linear(2, 1)

    def bad(state, batch):
        model.weight.data.add_(1)
        return state, {}

    with pytest.raises(LawError, match=r"model/weight"):
        testing.check_pure(bad, STEP.init(model), torch.ones(3, 2), model)


@pytest.mark.parametrize(
    ("draw", "place"), [(random.random, "Python"), (np.random.rand, "NumPy"), (torch.seed, "torch")]
)
def test_pure_sees_every_global_generator(draw, place):
    def bad(state, batch):
        draw()
        return state, {}

    before = torch.get_rng_state()
    with pytest.raises(LawError, match=f"global random state of {place}"):
        testing.check_pure(bad, state(), torch.ones(3, 2))
    torch.set_rng_state(before)


CHANGES = {
    "hooks of the model": lambda m: m.register_forward_hook(lambda *_: None),
    "history": lambda m: m.history.append(1),
    "training": lambda m: m.train(not m.training),
    "new": lambda m: setattr(m, "new", 1),
    "table": lambda m: m.table.data.mul_(2),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("place", ["the module", "the state's module"])
def test_pure_sees_what_a_module_keeps_outside_of_its_tensors(name, place):
    model = nn.Linear(2, 1)
    model.history, model.table = [], torch.ones(2)
    given = STEP.init(model)

    def bad(state, batch):
        CHANGES[name](model if place == "the module" else state.skeleton.module)
        return state, {}

    with pytest.raises(LawError, match=f"changed what {place} keeps outside .*: {name}"):
        testing.check_pure(bad, given, torch.ones(3, 2), model)


def test_repeatable_sees_global_randomness():
    def bad(state, batch):
        return state.replace(params={k: torch.rand_like(p) for k, p in state.params.items()}), {}

    with pytest.raises(LawError, match="law 2"):
        testing.check_repeatable(bad, state(), None)


def test_init_sees_a_memory_that_starts_anew():
    class Forgetful(type(STEP)):
        def init(self, model, seed=0):
            return super().init(model, seed).put("update", {"x": torch.rand(())})

    with pytest.raises(LawError, match="law 3"):
        testing.check_init(Forgetful(STEP.inner, STEP.optimizer), nn.Linear(2, 1))


def test_accumulates_sees_a_mean_of_means():
    def wrong(model, batch):  # claims weight 1 whatever the size
        return fl.Mean(model(batch).square().mean(), 1)

    grad = fl.grad(wrong)
    with pytest.raises(LawError, match="law 4"):
        testing.check_accumulates(
            grad, grad.init(nn.Linear(2, 1)), torch.arange(10.0).reshape(5, 2)
        )


def test_resumes_sees_hidden_memory():
    calls = []

    def bad(state, batch):
        calls.append(1)
        bias = state.params["bias"] + len(calls)
        return state.replace(params={**state.params, "bias": bias}, step=state.step + 1), {}

    with pytest.raises(LawError, match="law 8"):
        testing.check_resumes(bad, state(), fl.Batches(torch.ones(4, 2), 2), steps=3)


def test_effects_sees_an_effect_that_writes():
    meddle = fl.effect(lambda state, metrics: state.params["bias"].add_(1.0))
    with pytest.raises(LawError, match="law 9"):
        testing.check_effects(STEP, state(), fl.Batches(torch.ones(4, 2), 2), lambda: [meddle])


def test_skips_sees_a_step_that_goes_on():
    def bad(state, batch):
        return state.replace(step=state.step + 1), {"skipped": fl.Sum(1.0)}

    with pytest.raises(LawError, match="law 10"):
        testing.check_skips(bad, state(), torch.full((3, 2), torch.nan))


def test_stable_sees_another_dtype():
    def bad(state, batch):
        return state.replace(params={k: p.double() for k, p in state.params.items()}), {}

    with pytest.raises(LawError, match="params/weight, params/bias"):
        testing.check_stable(bad, state(), None)


def test_fixtures_are_the_checks(pytester):
    pytester.makeconftest('pytest_plugins = ["fnloop.testing.fixtures"]')
    pytester.makepyfile(
        """
        import fnloop.testing

        def test(check_pure, check_stable):
            assert check_pure is fnloop.testing.check_pure
            assert check_stable is fnloop.testing.check_stable
        """
    )
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_init_of_a_callback():
    watch = fl.early_stopping("val/loss", patience=2)
    with pytest.raises(TypeError, match=r"needs val/loss\. Give an example: .*metrics="):
        testing.check_init(watch, nn.Linear(2, 1))
    testing.check_init(watch, nn.Linear(2, 1), metrics={"val/loss": fl.Mean(1.0, 1)})
    testing.check_init(watch, state(), metrics={"val/loss": fl.Mean(1.0, 1)})
    digits = fl.metrics.confusion(torch.eye(2), torch.tensor([0, 1]))
    inside = fl.early_stopping("val/digits/f1", mode="max")
    testing.check_init(inside, state(), metrics={"val/digits": digits})

    @fl.tree
    class Forgetful(fl.base.Callback):
        name: str = "forgetful"

        def init(self, state, metrics):
            return state.put(self.name, torch.rand(()))

    with pytest.raises(LawError, match="law 3"):
        testing.check_init(Forgetful(), nn.Linear(2, 1))


def test_compiles_takes_gradient_stages():
    grad = fl.pipe(loss, fl.grad, fl.accumulate(2))
    testing.check_compiles(grad, grad.init(nn.Linear(2, 1)), [torch.ones(4, 2)] * 2)


def test_compiles_says_that_a_callback_is_none():
    with pytest.raises(TypeError, match=r"early_stopping\(.* is a callback"):
        testing.check_compiles(fl.early_stopping("loss"), state(), [])


@fl.tree
class Cut(fl.base.StepStage):
    wraps: ClassVar[str] = "step"
    inner: Any
    factor: Any
    other: Any

    def __call__(self, state, x):
        after, metrics = self.inner(state, x)
        factor = self.factor.detach() * self.other
        return after.replace(params=after.params.scale(factor)), metrics


def test_differentiable_names_the_leaf():
    factor, other = (torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.7))
    step = functools.partial(Cut, factor=factor, other=other)(STEP)
    double = step.init(lambda: nn.Linear(2, 1).double(), seed=0)
    with pytest.raises(LawError, match=r"off most is the hyperparameter factor: 0 where finite"):
        testing.check_differentiable(step, double, torch.ones(3, 2).double())

    def cut(state, batch):
        held = {"bias": state.params["bias"].detach()}
        return STEP(state.replace(params={**state.params, **held}), batch)

    with pytest.raises(LawError, match=r"off most is the parameter bias: "):
        testing.check_differentiable(cut, double, torch.ones(3, 2).double())


@pytest.mark.parametrize(
    ("of", "model", "cause"),
    [
        (loss, nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1)), "draws random numbers"),
        (loss, nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), "batch statistics"),
        (lambda m, b: m(b).square().sum(), nn.Linear(2, 1), r"no mean over .*fl\.Mean\(total"),
    ],
    ids=["dropout", "batch norm", "sum"],
)
def test_accumulation_that_differs_says_why(of, model, cause):
    grad = fl.grad(of)
    with pytest.raises(LawError, match=rf"law 4, accumulation: .* off by .*{cause}"):
        testing.check_accumulates(
            grad, grad.init(model), torch.rand(7, 2, generator=torch.Generator().manual_seed(0))
        )


@pytest.mark.parametrize("given", [loss, STEP])
def test_accumulation_is_checked_of_a_gradient_stage(given):
    with pytest.raises(TypeError, match=r"gradient stage, such as fl\.pipe\(loss, fl\.grad\)"):
        testing.check_accumulates(given, state(), torch.ones(4, 2))


def test_a_run_that_resumes_otherwise_says_whether_saving_has_to_do_with_it():
    class Shuffled:
        """Data in an order of its own on each pass."""

        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([torch.full((2, 2), float(self.passes + i)) for i in range(3)])

    with pytest.raises(LawError, match=r"(?s)not the same without a stop either.*fl\.Batches"):
        testing.check_resumes(STEP, state(), Shuffled(), steps=3)

    class Memory(fl.base.Callback):
        """Keeps in itself, from a start of its own, what it changes the state by."""

        def __init__(self):
            self.seen = 0

        def __call__(self, state, metrics):
            self.seen += 1
            return state.replace(params=state.params.scale(1 / self.seen)), metrics

    with pytest.raises(LawError, match=r"(?s)Without a stop it is the same.*init_state"):
        testing.check_resumes(
            STEP, state(), fl.Batches(torch.ones(4, 2), 2), steps=3, callbacks=lambda: [Memory()]
        )


def test_other_laws_say_the_usual_cause():
    with pytest.raises(LawError, match=r"(?s)law 2.*fl\.randomness"):
        calls = []

        def counting(state, batch):
            calls.append(1)
            return state.replace(step=state.step + len(calls)), {}

        testing.check_repeatable(counting, state(), None)
