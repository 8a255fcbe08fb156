"""The laws over every exported stage, optimizer and callback: to be exported is to be covered."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import testing
from fnloop.profiling.stage_clock import StageClock, clocked
from tests.laws.steps import EXPORTED, OPTIMIZERS

# Its model counts its calls in evaluation too, so that the laws see whether one leaves something.
pytestmark = pytest.mark.filterwarnings("ignore:The model Net wrote to its buffers in evaluation")

# Functions of a gradient stage, which are no stages.
FUNCTIONS = {"epsilon", "hessian_product", "implicit", "lanczos", "sharpness", "swag_sample"}
SCHEMES = {
    name for name, value in vars(fl.schemes).items() if not name.startswith("_") and callable(value)
}

# Optimizers whose constructor needs arguments, or which need help.
MATRICES = lambda name, p: "matrix" if p.ndim == 2 else "rest"  # noqa: E731
OPTIMIZER_EXAMPLES = {
    "chain": lambda: fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-2)),
    "masked": lambda: fl.optim.chain(
        fl.optim.masked(fl.optim.add_decayed_weights(0.1), lambda name, p: p.ndim > 1),
        fl.optim.sgd(0.1),
    ),
    "by_label": lambda: fl.optim.by_label(
        {"matrix": fl.optim.adam(1e-2), "rest": fl.optim.sgd(0.1)}, MATRICES
    ),
    "muon": lambda: fl.optim.by_label(
        {"matrix": fl.optim.muon(1e-2), "rest": fl.optim.adamw(1e-2)}, MATRICES
    ),
    "from_torch": lambda: fl.optim.from_torch(torch.optim.NAdam, lr=1e-2),
    "soap": lambda: fl.optim.soap(1e-2, every=2),
    "prodigy": lambda: fl.optim.prodigy(d0=1e-2, growth=2.0),
    "schedule_free": lambda: fl.optim.schedule_free(fl.optim.adamw(1e-2, b1=0.0)),
    "lbfgs": lambda: fl.optim.lbfgs(max_iter=3, history_size=3),
    "clip_by_norm": lambda: fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.sgd(0.1)),
    "clip_by_value": lambda: fl.optim.chain(fl.optim.clip_by_value(0.01), fl.optim.sgd(0.1)),
    "norms": lambda: fl.optim.chain(
        fl.optim.norms(name="before"),
        fl.optim.clip_by_norm(0.1),
        fl.optim.norms({"body": "first", "head": "head"}),
        fl.optim.sgd(0.1),
    ),
    "add_decayed_weights": lambda: fl.optim.chain(
        fl.optim.add_decayed_weights(0.1), fl.optim.sgd(0.1)
    ),
    "scale_by": lambda: fl.optim.chain(fl.optim.scale_by(0.5), fl.optim.sgd(0.1)),
    "noise": lambda: fl.optim.chain(fl.optim.noise(0.1), fl.optim.adamw(1e-2)),
}


def optimizer_example(name):
    if name in OPTIMIZER_EXAMPLES:
        return OPTIMIZER_EXAMPLES[name]()
    return OPTIMIZERS[name]()


# What to put into a stage's required parameters.
PRECISIONS = ("bf16", "fp16", "tf32", "bf16-true", "fp64")
GRAD_STAGES = {"accumulate": [fl.accumulate(3)], "amp": [fl.amp(name) for name in PRECISIONS]}
STEP_STAGES = {
    "ema": [fl.ema(0.9), fl.ema(fl.schedules.linear(0.5, 0.9, steps=10))],
    "guard": [
        fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2)),
        fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2), then="rewind", every=2),
        fl.guard(fl.rules.nonfinite("loss")),
    ],
}
CALLBACKS = {
    "every": lambda: fl.every(2, fl.validate(loss, validation())),
    "validate": lambda: fl.validate(loss, validation(), params="ema", statistics=data()),
    "early_stopping": lambda: fl.early_stopping("loss", patience=2),
    "reduce_on_plateau": lambda: fl.reduce_on_plateau("loss", patience=0),
    "stage": lambda: fl.stage(halve_lr, "callback"),
    "spike": lambda: fl.rules.spike("loss"),
    "nonfinite": lambda: fl.rules.nonfinite("loss", patience=2),
    "keep_best": lambda: fl.tuning.keep_best("loss", slots="ema"),
    "swag": lambda: fl.schemes.swag(rank=2),
}


def halve_lr(state, metrics):
    return fl.scale(state, "adamw.lr", 0.5), {**metrics, "halved": fl.Sum(1.0)}


class Net(nn.Module):
    """BatchNorm, dropout, tied weights, a frozen parameter, a buffer that is not saved."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x):
        self.calls += 1
        x = self.drop(F.relu(self.norm(self.first(x)))) * self.frozen
        return self.head(F.relu(self.second(x)))


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).float().mean()}


def other_loss(model, batch):
    return -model(batch[0]).logsumexp(1).square().mean()


def positive_loss(model, batch):
    return model(batch[0]).logsumexp(1).square().mean()


def plain_loss(model, batch):
    """No batch statistics, no randomness; a weight for each example."""
    x, y, w = batch
    losses = F.cross_entropy(model(x), y, reduction="none")
    return fl.Mean((w * losses).sum(), w.sum())


def net():
    torch.manual_seed(0)
    return Net()


def arrays(n=30):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def data():
    return fl.Batches(arrays(), batch_size=8, seed=3)


def validation():
    return fl.Batches(arrays(9), batch_size=4, shuffle=False)


def batch():
    return arrays(7)


def bad_batch():
    x, y = arrays(7)
    return x * float("nan"), y


def step_of(optimizer=None, grad=(), after=()):
    return fl.pipe(loss, fl.grad, *grad, fl.update(optimizer or fl.optim.adamw(1e-2)), *after)


def pair(**options):
    """Two players with optimizers, a loss scale, averages and micro-batches of their own."""
    return fl.sequence(
        body=fl.pipe(
            loss,
            fl.grad(only=["first", "norm"]),
            fl.amp("fp16", interval=2),
            fl.update(fl.optim.adamw(fl.schedules.cosine(1e-2, steps=20, warmup=3))),
            fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2)),
        ),
        head=fl.pipe(
            loss,
            fl.grad(only="head"),
            fl.accumulate(2),
            fl.update(fl.optim.sgd(0.1, momentum=0.9)),
            fl.ema(0.9),
        ),
        **options,
    )


# Published schemes, by their names in `fl.schemes`.
SCHEME_STEPS = {
    "sam": step_of(grad=[fl.schemes.sam(0.1)]),
    "sam adaptive": step_of(
        grad=[fl.accumulate(2), fl.amp("fp16", interval=2), fl.schemes.sam(0.5, adaptive=True)]
    ),
    "lookahead": step_of(after=[fl.schemes.lookahead(2), fl.ema(0.9)]),
    "centralize": step_of(fl.optim.chain(fl.schemes.centralize(), fl.optim.adamw(1e-2))),
    "hypergradient": step_of(fl.schemes.hypergradient(fl.optim.adam(1e-2), 1e-4)),
    "sgld": step_of(fl.optim.sgd(0.1), after=[fl.schemes.sgld(0.01)]),
    "sghmc": step_of(fl.optim.sgd(0.1), after=[fl.schemes.sghmc(0.01)]),
    "several": fl.pipe(
        fl.schemes.several(body=fl.grad(loss, only=["first", "norm"]), all=other_loss),
        fl.accumulate(2),
        fl.amp("fp16", interval=2),
        fl.update(fl.optim.adamw(1e-2)),
    ),
    "pcgrad": fl.pipe(
        fl.schemes.pcgrad(a=loss, b=other_loss, c=fl.grad(loss, only="head")),
        fl.update(fl.optim.adamw(1e-2)),
    ),
    "gradnorm": fl.pipe(
        fl.schemes.gradnorm(lr=0.01, a=loss, b=positive_loss),
        fl.update(fl.optim.adamw(1e-2)),
    ),
    "noise_scale": step_of(grad=[fl.schemes.noise_scale(3)]),
    "extragradient": step_of(grad=[fl.schemes.extragradient(0.1)]),
    "evolution": step_of(fl.optim.sgd(0.01), grad=[fl.schemes.evolution(0.1, 3)]),
    "forward_gradient": step_of(fl.optim.sgd(0.01), grad=[fl.schemes.forward_gradient]),
}

STEPS = {
    "plain": step_of(),
    **{
        f"{name}-{i}": step_of(grad=[s])
        for name, many in GRAD_STAGES.items()
        for i, s in enumerate(many)
    },
    **{
        f"{name}-{i}": step_of(after=[s])
        for name, many in STEP_STAGES.items()
        for i, s in enumerate(many)
    },
    "everything": step_of(
        fl.optim.chain(
            fl.optim.clip_by_norm(1.0),
            fl.optim.adamw(fl.schedules.cosine(1e-2, steps=20, warmup=3)),
        ),
        grad=[fl.accumulate(2), fl.amp("fp16", interval=2)],
        after=[fl.ema(0.9), fl.ema(0.5, name="fast")],
    ),
    "amp of modules": step_of(grad=[fl.amp("bf16", modules={"head": "fp32", "*ond": "fp16"})]),
    "amp inside": step_of(grad=[fl.amp("fp16"), fl.accumulate(2)]),
    **{f"optimizer {name}": step_of(optimizer_example(name)) for name in OPTIMIZERS},
    "frozen by phases": fl.pipe(
        loss,
        fl.grad(frozen=fl.schedules.by_step({0: ["first", "norm"], 2: "norm", 4: None})),
        fl.accumulate(fl.schedules.by_epoch({1: 2})),
        fl.amp("fp16", interval=2),
        fl.update(fl.optim.adamw(1e-2)),
        fl.ema(0.9),
    ),
    **SCHEME_STEPS,
    "sequence": pair(),
    "sequence, every other call": fl.pipe(pair(every={"head": 2}), fl.ema(0.9)),
}


@pytest.fixture(params=STEPS, ids=str)
def step(request):
    return STEPS[request.param]


def test_every_exported_stage_is_covered():
    factories = {
        name
        for name, value in EXPORTED.items()
        if getattr(value, "__module__", "").startswith("fnloop.stages")
        and inspect.isfunction(value)
    }
    callbacks = {
        name
        for name, value in EXPORTED.items()
        if inspect.isclass(value)
        and issubclass(value, fl.base.Callback)
        and value is not fl.base.Callback
    }
    # Laws of `population`, which takes a state of many runs: tests/loop/test_exploiting.py.
    others = {"grad", "update", "pipe", "scale", "sequence", "population"}
    known = {*GRAD_STAGES, *STEP_STAGES, *CALLBACKS, *others}
    assert factories | callbacks <= known, "add an example of the new stage to this file"


def test_every_scheme_is_covered():
    alone = {"dp_sgd", *FUNCTIONS}  # refuses BatchNorm: laws in tests/schemes/test_privacy.py
    assert {name.split()[0] for name in SCHEME_STEPS} | alone | set(CALLBACKS) >= SCHEMES, (
        "add the new scheme to this file"
    )


@pytest.mark.lightning("Z1")
def test_law_1_a_step_changes_nothing_that_it_is_given(step):
    model = net()
    testing.check_pure(step, step.init(model), batch(), model)


@pytest.mark.lightning("T27")
def test_law_2_same_inputs_same_bits(step):
    testing.check_repeatable(step, step.init(net()), batch())


def test_law_3_init_is_idempotent_and_loses_nothing(step):
    testing.check_init(step, net())


def test_law_3_a_stage_can_be_added_to_an_old_state():
    old = step_of().init(net())
    old, _ = step_of()(old, batch())
    new = STEPS["everything"].init(old)
    kept = new.replace(slots={name: new.slots[name] for name in old.slots})
    assert fl.tree_diff(old, kept.put("update", old["update"])) == ""
    assert new["update"]["adamw"] == old["update"]["adamw"]
    assert set(new.slots) == {"update", "amp", "ema", "fast"}


@pytest.mark.lightning("T24")
@pytest.mark.parametrize("weights", ["equal", "random", "some zero"])
def test_law_4_accumulation_is_one_big_batch(weights):
    x, y = arrays(11)
    w = {
        "equal": torch.ones(11),
        "random": torch.rand(11, generator=torch.Generator().manual_seed(2)),
        "some zero": torch.tensor([0.0, 0, 0, 0, 1, 2, 0, 3, 1, 1, 0]),
    }[weights]
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    grad = fl.grad(plain_loss)
    testing.check_accumulates(grad, grad.init(model), (x, y, w), ks=(2, 3, 4, 11))


@pytest.mark.parametrize(
    "stage", [s for many in GRAD_STAGES.values() for s in many], ids=lambda s: s.func.label
)
def test_law_4_under_every_gradient_stage(stage):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    grad = stage(fl.grad(loss))
    rtol = 3e-2 if grad.label == "amp" else 1e-4  # half precision rounds
    testing.check_accumulates(
        grad, grad.init(model), arrays(11), rtol=rtol, atol=2e-3 if rtol > 1e-3 else 1e-6
    )


@pytest.mark.lightning("D6", "D7")
def test_law_8_a_resumed_run_is_the_run(step):
    testing.check_resumes(step, step.init(net()), data(), steps=6, at=(2, 5))


@pytest.mark.lightning("D6", "C12")
def test_law_8_at_every_step_with_callbacks():
    def callbacks():
        return [
            fl.every(3, fl.validate(loss, validation(), params="ema", statistics=data())),
            fl.early_stopping("val/loss", patience=100),
            fl.every(1, note_epoch, unit="epoch"),
        ]

    step = STEPS["everything"]
    testing.check_resumes(step, step.init(net()), data(), steps=9, callbacks=callbacks)


def note_epoch(state, metrics):
    return state, {**metrics, "epoch_loss": metrics["loss"]}


def test_law_9_effects_change_nothing(tmp_path):
    def callbacks():
        return [
            fl.every(2, fl.validate(loss, validation(), params="ema", statistics=data())),
            fl.early_stopping("val/loss"),
            fl.checkpoint(tmp_path / "checkpoints", monitor="val/loss"),
            fl.track(fl.trackers.JSONL(tmp_path / "log.jsonl")),
            fl.progress(),
            fl.History(),
            fl.effect(lambda state, metrics: None),
        ]

    step = STEPS["everything"]
    testing.check_effects(step, step.init(net()), data(), callbacks, steps=8)


def test_law_10_a_bad_batch_changes_nothing(step):
    state = step.init(net())
    state, _ = step(state, batch())
    testing.check_skips(step, state, bad_batch())


def test_law_10_a_batch_of_weight_zero_is_a_skip():
    step = fl.pipe(plain_loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))
    state = step.init(nn.Linear(6, 3))
    testing.check_skips(step, state, (*arrays(5), torch.zeros(5)))


def test_law_11_a_step_keeps_the_shape_of_the_state(step):
    testing.check_stable(step, step.init(net()), batch())


def test_a_clock_around_each_stage_changes_nothing(step):
    state, clock = step.init(net()), StageClock(torch.device("cpu"))
    with clock.running():
        timed = clocked(step)(state, batch())
    assert fl.tree_equal(timed, step(state, batch()))


@pytest.mark.lightning("C1")
@pytest.mark.parametrize("name", CALLBACKS)
def test_laws_1_2_and_11_for_callbacks(name):
    callback = CALLBACKS[name]()
    step = step_of(after=[fl.ema(0.9)])
    model = net()
    state, metrics = step(step.init(model), batch())
    state = callback.init(state.replace(cursor=torch.tensor([1, 0, 4])), metrics)
    assert fl.tree_equal(callback.init(state, metrics), state)  # law 3
    testing.check_pure(callback, state, metrics, model)
    testing.check_repeatable(callback, state, metrics)
    testing.check_stable(callback, state, metrics)
