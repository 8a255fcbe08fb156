"""Vmapped, packed and differentiated, over every exported stage and optimizer."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing
from fnloop.testing import LawError
from fnloop.trees.paths import map_with_path

EXPORTED = {name: getattr(fl, name) for name in dir(fl) if not name.startswith("_")}
OPTIMIZERS = {
    name: value
    for name, value in vars(fl.optim).items()
    if inspect.isclass(value)
    and issubclass(value, fl.optim.Optimizer)
    and value is not fl.optim.Optimizer
}


def matrices(name, p):
    return "matrix" if p.ndim == 2 else "rest"


def then_sgd(transform):
    return fl.optim.chain(transform, fl.optim.sgd(0.1))


# With every number in use, for a derivative with respect to it.
EXAMPLES = {
    "adadelta": [fl.optim.adadelta(0.5, eps=1e-3, weight_decay=0.1)],
    "adafactor": [  # in the first step what is clipped has the size 1, where clipping has a kink
        fl.optim.adafactor(0.1, clip_threshold=0.5, weight_decay=0.1),
        fl.optim.adafactor(0.1, clip_threshold=2.0, eps1=1e-4),
    ],
    "adagrad": [fl.optim.adagrad(0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator=0.1)],
    "adam": [fl.optim.adam(0.1, weight_decay=0.1), fl.optim.adam(0.1, amsgrad=True)],
    "adamw": [fl.optim.adamw(0.1), fl.optim.adamw(0.1, amsgrad=True)],
    "adamax": [fl.optim.adamax(0.1, weight_decay=0.1)],
    "lamb": [fl.optim.lamb(0.1)],
    "lbfgs": [
        fl.optim.lbfgs(0.5, max_iter=3, history_size=2),
        fl.optim.lbfgs(0.1, max_iter=2, history_size=2, line_search=None),
    ],
    "lion": [fl.optim.lion(0.1, weight_decay=0.1)],
    "muon": [
        fl.optim.by_label({"matrix": fl.optim.muon(0.1), "rest": fl.optim.sgd(0.1)}, matrices)
    ],
    "soap": [fl.optim.soap(0.1, every=2, max_size=4)],
    "prodigy": [
        fl.optim.prodigy(0.5, d0=0.1, growth=1.5, weight_decay=0.1),
        fl.optim.prodigy(0.5, d0=0.1, eps=1e-2, bias_correction=True, safeguard_warmup=True),
        fl.optim.prodigy(0.5, d0=0.1, eps=1e-2, decoupled=False, weight_decay=0.1, b3=0.9),
    ],
    "schedule_free": [
        fl.optim.schedule_free(fl.optim.adamw(0.1, b1=0.0)),
        fl.optim.schedule_free(fl.optim.sgd(fl.schedules.linear(0.1, 0.05, 9, warmup=2)), r=0.5),
    ],
    "nadam": [fl.optim.nadam(0.1, weight_decay=0.1)],
    "radam": [fl.optim.radam(0.1, weight_decay=0.1)],
    "rmsprop": [
        fl.optim.rmsprop(0.1, eps=1e-2, weight_decay=0.1),
        fl.optim.rmsprop(0.1, eps=1e-2, momentum=0.9, centered=True),
    ],
    "sgd": [
        fl.optim.sgd(0.1),
        fl.optim.sgd(0.1, momentum=0.9, dampening=0.1, weight_decay=0.1),
        fl.optim.sgd(0.1, momentum=0.9, nesterov=True),
    ],
    "chain": [fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.adamw(0.1))],
    "masked": [
        fl.optim.chain(
            fl.optim.masked(fl.optim.add_decayed_weights(0.1), lambda name, p: p.ndim > 1),
            fl.optim.sgd(0.1),
        )
    ],
    "by_label": [
        fl.optim.by_label({"matrix": fl.optim.adam(0.1), "rest": fl.optim.sgd(0.1)}, matrices)
    ],
    "clip_by_norm": [then_sgd(fl.optim.clip_by_norm(0.1)), then_sgd(fl.optim.clip_by_norm(100.0))],
    "clip_by_value": [then_sgd(fl.optim.clip_by_value(0.05))],
    "norms": [then_sgd(fl.optim.norms({"weights": "*.weight", "biases": "*.bias"}))],
    "add_decayed_weights": [then_sgd(fl.optim.add_decayed_weights(0.1))],
    "scale_by": [then_sgd(fl.optim.scale_by(0.5))],
    "noise": [then_sgd(fl.optim.noise(0.1, 0.7))],
    "freeze": [
        fl.optim.by_label(
            {"no": fl.optim.freeze(), "yes": fl.optim.sgd(0.1)}, {"0.*": "no", "*": "yes"}
        )
    ],
}
ALONE = {"from_torch"}  # neither vmapped nor differentiated: see the test at the end


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(), {"size": model(x).abs().mean()}


def other_loss(model, batch):
    return -model(batch[0]).tanh().sum(1).square().mean()


def positive_loss(model, batch):
    return model(batch[0]).tanh().sum(1).square().mean()


def wild(state, metrics):
    return state, {**metrics, "bad": metrics["loss"].value() > 1e9}


def step_of(optimizer=None, grad=(), after=()):
    return fl.pipe(loss, fl.grad, *grad, fl.update(optimizer or fl.optim.adamw(0.1)), *after)


STAGES = {
    "grad": [fl.grad(loss)],
    "update": [step_of(), step_of(fl.optim.adamw(fl.schedules.cosine(0.1, steps=9, warmup=2)))],
    "accumulate": [step_of(grad=[fl.accumulate(3)])],
    "amp": [
        step_of(grad=[fl.amp("bf16")]),
        step_of(grad=[fl.amp("fp16", interval=2)]),
        step_of(grad=[fl.accumulate(2), fl.amp("fp16", interval=2)]),
        step_of(grad=[fl.amp("bf16", modules={"*": "fp32"})]),
        step_of(grad=[fl.amp("fp64")]),
    ],
    "ema": [step_of(after=[fl.ema(0.9), fl.ema(fl.schedules.linear(0.5, 0.9, 10), name="fast")])],
    "guard": [
        step_of(after=[fl.guard(wild)]),
        step_of(after=[fl.guard(fl.rules.spike("loss", warmup=2), then="rewind", every=2)]),
    ],
    "nonfinite": [step_of(after=[fl.guard(fl.rules.nonfinite("loss", patience=2))])],
    "spike": [step_of(after=[fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2))])],
    "stage": [fl.stage(step_of(after=[fl.ema(0.9)]), "step")],
    "sequence": [
        fl.sequence(
            first=fl.pipe(loss, fl.grad(only="0"), fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)),
            last=fl.pipe(
                loss,
                fl.grad(only="2"),
                fl.accumulate(2),
                fl.update(fl.optim.sgd(0.1, momentum=0.9)),
            ),
            every={"last": 2},
        )
    ],
}
# Functions and callbacks, which are not part of a step.
FUNCTIONS = {
    "epsilon",
    "hessian_product",
    "implicit",
    "lanczos",
    "sharpness",
    "swag_sample",
    "swag",
}
SCHEMES = {
    "sam": [
        step_of(grad=[fl.schemes.sam(0.1)]),
        step_of(grad=[fl.accumulate(2), fl.schemes.sam(0.5, adaptive=True)]),
    ],
    "lookahead": [step_of(after=[fl.schemes.lookahead(2)])],
    "centralize": [step_of(then_sgd(fl.schemes.centralize()))],
    "hypergradient": [
        step_of(fl.schemes.hypergradient(fl.optim.sgd(0.1, momentum=0.9), 1e-2)),
        step_of(fl.schemes.hypergradient(fl.optim.adam(0.1), 1e-2)),
    ],
    "sgld": [step_of(fl.optim.sgd(0.1), after=[fl.schemes.sgld(0.01)])],
    "sghmc": [step_of(fl.optim.sgd(0.1), after=[fl.schemes.sghmc(0.01)])],
    "several": [
        fl.pipe(
            fl.schemes.several(first=fl.grad(loss, only="0"), all=other_loss),
            fl.update(fl.optim.sgd(0.1)),
        )
    ],
    "pcgrad": [
        fl.pipe(
            fl.schemes.pcgrad(a=loss, b=other_loss, c=fl.grad(loss, only="2")),
            fl.update(fl.optim.sgd(0.1)),
        )
    ],
    "dp_sgd": [step_of(grad=[fl.schemes.dp_sgd(0.1, 0.5)])],
    "gradnorm": [
        fl.pipe(
            fl.schemes.gradnorm(lr=0.01, a=loss, b=positive_loss),
            fl.update(fl.optim.sgd(0.1)),
        )
    ],
    "noise_scale": [
        step_of(grad=[fl.schemes.noise_scale(3)]),
        step_of(grad=[fl.schemes.noise_scale()]),
    ],
    "extragradient": [step_of(grad=[fl.schemes.extragradient(0.1)])],
    "evolution": [
        step_of(fl.optim.sgd(0.01), grad=[fl.schemes.evolution(0.1, 3)]),
        step_of(fl.optim.sgd(0.01), grad=[fl.accumulate(2), fl.schemes.evolution(0.1, 2)]),
    ],
    "forward_gradient": [
        step_of(fl.optim.sgd(0.01), grad=[fl.schemes.forward_gradient]),
        step_of(fl.optim.sgd(0.01), grad=[fl.schemes.forward_gradient, fl.accumulate(2)]),
    ],
}
STEPS = {
    **{f"{name}-{i}": s for name, many in STAGES.items() for i, s in enumerate(many)},
    **{f"{name}-{i}": s for name, many in SCHEMES.items() for i, s in enumerate(many)},
    **{
        f"optimizer {name}-{i}": step_of(optimizer)
        for name, many in EXAMPLES.items()
        for i, optimizer in enumerate(many)
    },
}


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


@functools.cache
def batch(n=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return x, torch.randn(n, 3, generator=generator, dtype=dtype)


def state_of(step, seed=0, dtype=torch.float32):
    inner = step_of(after=[fl.ema(0.9)]) if isinstance(step, type(STAGES["stage"][0])) else step
    return inner.init(lambda: net().to(dtype), seed=seed)


def as_tensors(tree):
    """The numbers among the hyperparameters as float64 tensors.

    But for those of a loss scale, which is float32: differences would be those of its rounding.
    """

    def convert(path, leaf):
        kept = type(leaf) is not float or not leaf or path.endswith(SCALES)
        return leaf if kept else torch.tensor(leaf, dtype=torch.float64)

    return map_with_path(convert, tree)


SCALES = ("init_scale", "min_scale", "growth", "backoff")


def tolerance(step):
    half = any(part.label == "amp" for part in step.stages()) or "muon" in repr(step)
    return {"rtol": 3e-2, "atol": 1e-2} if half else {}  # half precision rounds


def test_every_exported_stage_and_optimizer_has_an_example():
    stages = {
        name
        for name, value in EXPORTED.items()
        if getattr(value, "__module__", "").startswith("fnloop.stages")
        and (inspect.isfunction(value) or issubclass(value, fl.base.Callback))
        and value is not fl.base.Callback
    }
    assert stages - {"pipe", "scale"} <= set(STAGES), "add an example of the new stage"
    assert set(OPTIMIZERS) == set(EXAMPLES) | ALONE, "add an example of the new optimizer"
    for name, many in EXAMPLES.items():
        kinds = [type(part) for example in many for part in parts_of(example)]
        assert OPTIMIZERS[name] in kinds
    for name in ("accumulate", "amp", "ema", "guard", "update", "grad", "nonfinite", "spike"):
        assert any(name in {p.label for p in s.stages()} for s in STAGES[name])


def test_every_scheme_has_an_example():
    schemes = {n for n, f in vars(fl.schemes).items() if not n.startswith("_") and callable(f)}
    assert schemes - FUNCTIONS == set(SCHEMES), "add an example of the new scheme"


def parts_of(optimizer):
    yield optimizer
    for value in vars(optimizer).values():
        inner = value.values() if isinstance(value, dict) else value
        for part in inner if isinstance(value, (dict, tuple, list)) else [value]:
            if isinstance(part, fl.optim.Optimizer):
                yield from parts_of(part)


@pytest.fixture(params=STEPS, ids=str)
def step(request):
    return STEPS[request.param]


def test_a_population_does_what_each_member_does_alone(step):
    states = [state_of(step, seed) for seed in range(3)]
    testing.check_vmaps(step, states, batch(), **tolerance(step))


def test_it_does_not_matter_how_tensors_are_stored(step):
    testing.check_layouts(step, state_of(step), batch())


def test_law_12_derivatives_are_right(step, monkeypatch):
    if "muon" in repr(step):  # differences say nothing of what is rounded to bfloat16 underway
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)
    step = as_tensors(step)
    state = state_of(step, dtype=torch.float64)
    testing.check_differentiable(step, state, batch(dtype=torch.float64), steps=3)


def test_a_loss_scale_takes_tensors_as_well():
    numbers = {"init_scale": 2.0**10, "growth": 4.0, "backoff": 0.25, "min_scale": 2.0**9}
    tensors = {name: torch.tensor(n, dtype=torch.float64) for name, n in numbers.items()}
    steps = [step_of(grad=[fl.amp("fp16", **given, interval=1)]) for given in (numbers, tensors)]
    states = [state_of(step) for step in steps]
    for x in (batch()[0], batch()[0] * torch.nan, batch()[0] * torch.nan):
        for i, step in enumerate(steps):
            testing.check_stable(step, states[i], (x, batch()[1]))
            states[i], _ = step(states[i], (x, batch()[1]))
        assert fl.tree_diff(*states) == ""
    assert float(states[0]["amp"]["scale"]) == 2.0**9


RATES = [name for name in OPTIMIZERS if name not in ALONE and hasattr(OPTIMIZERS[name], "lr")]


@pytest.mark.parametrize("name", RATES)
def test_a_sweep_over_learning_rates_is_a_step_for_each(name):
    def with_rate(lr):
        # Rounding grows with every iteration of a step.
        # And a side of 5 would have gradients of rank 3, whose eigenbasis rounding decides.
        options = {"lbfgs": {"max_iter": 3}, "soap": {"max_size": 4}}
        optimizer = OPTIMIZERS[name](lr=lr, **options.get(name, {}))
        if name == "muon":
            parts = {"matrix": optimizer, "rest": fl.optim.sgd(lr)}
            optimizer = fl.optim.by_label(parts, matrices)
        return step_of(optimizer, after=[fl.ema(0.9)])

    def run(lr, state):
        for _ in range(3):
            state, metrics = with_rate(lr)(state, batch())
        return state.params, state["ema"], metrics["loss"].value()

    rates = torch.tensor([0.0, 0.01, 0.3])
    step = with_rate(0.1)
    state = step.init(net)
    batch()
    swept = torch.func.vmap(lambda lr: run(lr, state))(rates)
    for i, lr in enumerate(rates.tolist()):
        expected = run(lr, state)
        for a, b in zip(fl.tree_leaves(expected), fl.tree_leaves(swept), strict=True):
            torch.testing.assert_close(b[i], a, **(tolerance(step) or {"rtol": 1e-4, "atol": 1e-5}))


def test_a_sweep_over_a_decay_and_a_weight_of_the_loss():
    @fl.tree
    class weighted:
        weight: torch.Tensor

        def __call__(self, model, batch):
            return self.weight * loss(model, batch)[0]

    def step_with(weight, decay):
        return fl.pipe(weighted(weight), fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(decay))

    weights, decays = torch.tensor([0.5, 2.0]), torch.tensor([0.5, 0.9])
    state = step_with(weights[0], 0.5).init(net)
    batch()
    swept, reports = torch.func.vmap(lambda w, d: step_with(w, d)(state, batch()))(weights, decays)
    for i in range(2):
        after, metrics = step_with(weights[i], float(decays[i]))(state, batch())
        assert float(metrics["loss"]) == pytest.approx(float(reports["loss"].value()[i]))
        for name, average in after["ema"].items():
            torch.testing.assert_close(swept["ema"][name][i], average)
            torch.testing.assert_close(swept.params[name][i], after.params[name])


def test_from_torch_refuses_to_be_vmapped_and_differentiated():
    optimizer = fl.optim.from_torch(torch.optim.NAdam, lr=1e-2)
    step = step_of(optimizer)
    state = step.init(net)
    x, y = batch()
    with pytest.raises(RuntimeError, match="cannot be"):
        torch.func.vmap(lambda x: step(state, (x, y))[1]["loss"].value())(x.expand(2, 7, 4))
    wanted = {name: p.clone().requires_grad_() for name, p in state.params.items()}
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        step(state.replace(params=wanted), batch())
    testing.check_layouts(step, state, batch())


# A check that cannot fail is worthless.


def test_differentiable_sees_a_derivative_that_is_lost():
    inner = step_of(fl.optim.sgd(0.1))

    def detached(state, x):
        after, metrics = inner(state, x)
        return after.replace(params=after.params.detach()), metrics

    state = state_of(inner, dtype=torch.float64)
    with pytest.raises(LawError, match="law 12, derivatives: through"):
        testing.check_differentiable(fl.stage(detached, "step"), state, batch(dtype=torch.float64))


def test_vmaps_sees_a_member_that_sees_the_others():
    def one_for_all(state, x):
        noise = torch.rand(())  # of torch's own generator
        return state.replace(params=state.params.add(noise)), {}

    step = fl.stage(one_for_all, "step")
    states = [step_of().init(net, seed=seed) for seed in range(2)]
    with pytest.raises(LawError, match="vmap: member 0 of"):
        testing.check_vmaps(step, states, batch())


def test_layouts_sees_a_step_that_goes_by_storages():
    def by_storage(state, x):
        params = state.params.zip_map(lambda p: p / p.numel())
        return state.replace(params=params), {}

    with pytest.raises(LawError, match="layouts: "):
        testing.check_layouts(fl.stage(by_storage, "step"), step_of().init(net), batch())
