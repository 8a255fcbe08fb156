"""Every exported stage, scheme and optimizer, in steps as they are written: for the laws."""

from __future__ import annotations

import functools
import inspect

import torch
from torch import nn

import fnloop as fl

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
    "amp": [  # not with Adam, which divides by what half precision rounds
        step_of(fl.optim.sgd(0.1), grad=[fl.amp("bf16")]),
        step_of(fl.optim.sgd(0.1), grad=[fl.amp("fp16", interval=2)]),
        step_of(fl.optim.sgd(0.1), grad=[fl.accumulate(2), fl.amp("fp16", interval=2)]),
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


def state_of(step, seed=0, dtype=torch.float32, model=net):
    inner = step_of(after=[fl.ema(0.9)]) if isinstance(step, type(STAGES["stage"][0])) else step
    return inner.init(lambda: model().to(dtype), seed=seed)


def tolerance(step):
    half = any(part.label == "amp" for part in step.stages()) or "muon" in repr(step)
    return {"rtol": 3e-2, "atol": 1e-2} if half else {}  # half precision rounds
