"""Law 7 over every exported stage and optimizer, and the other laws for compiled steps."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import testing
from fnloop.testing import LawError
from tests.laws.steps import EXPORTED, OPTIMIZERS

# Those whose constructor needs arguments, or which need help.
MATRICES = lambda name, p: "matrix" if p.ndim == 2 else "rest"  # noqa: E731
EXAMPLES = {
    "chain": lambda: fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.adamw(1e-2)),
    "masked": lambda: fl.optim.masked(fl.optim.adam(1e-2), ["first", "head.bias"]),
    "by_label": lambda: fl.optim.by_label(
        {"matrix": fl.optim.adam(1e-2), "rest": fl.optim.sgd(0.1)}, MATRICES
    ),
    "muon": lambda: fl.optim.by_label(
        {"matrix": fl.optim.muon(1e-2), "rest": fl.optim.adamw(1e-2)}, MATRICES
    ),
    "clip_by_norm": lambda: fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.sgd(0.1)),
    "clip_by_value": lambda: fl.optim.chain(fl.optim.clip_by_value(0.01), fl.optim.sgd(0.1)),
    "norms": lambda: fl.optim.chain(
        fl.optim.norms(name="before"),
        fl.optim.clip_by_norm(0.1),
        fl.optim.norms({"body": "first", "head": "head"}),
        fl.optim.sgd(0.1),
    ),
    "add_decayed_weights": lambda: fl.optim.chain(
        fl.optim.add_decayed_weights(0.1, ["*weight"]), fl.optim.sgd(0.1, momentum=0.9)
    ),
    "soap": lambda: fl.optim.soap(1e-2, every=2),
    "prodigy": lambda: fl.optim.prodigy(d0=1e-2, growth=2.0),
    "schedule_free": lambda: fl.optim.schedule_free(fl.optim.adamw(1e-2, b1=0.0)),
    "lbfgs": lambda: fl.optim.lbfgs(max_iter=2, max_eval=1, history_size=1),
    "scale_by": lambda: fl.optim.chain(fl.optim.scale_by(0.5), fl.optim.sgd(0.1)),
    "noise": lambda: fl.optim.chain(fl.optim.noise(0.1), fl.optim.adamw(1e-2)),
    "freeze": lambda: fl.optim.by_label(
        {"no": fl.optim.freeze(), "yes": fl.optim.sgd(0.1)}, {"first": "no", "*": "yes"}
    ),
}
UNCOMPILED = {"from_torch"}
# Functions of a gradient stage, which are no stages.
FUNCTIONS = {"epsilon", "hessian_product", "implicit", "lanczos", "sharpness", "swag_sample"}
CALLBACKS = {"swag"}


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


def other_loss(model, batch):
    return -model(batch[0]).logsumexp(1).square().mean()


def positive_loss(model, batch):
    return model(batch[0]).logsumexp(1).square().mean()


class Net(nn.Module):
    """BatchNorm, dropout, tied weights, a frozen parameter, a buffer of integers.

    No bias before the BatchNorm: its gradient is zero but for rounding, and Adam divides by it.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        x = self.drop(F.relu(self.norm(self.first(x)))) * self.frozen
        return self.head(F.relu(self.second(x)))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.first(x).tanh())


def make(kind=Net):
    torch.manual_seed(0)
    return kind()


def arrays(n=30, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def bad_batch():
    x, y = arrays(7)
    return x * float("nan"), y


def batches():
    return [arrays(7), bad_batch(), arrays(7, seed=2), arrays(7, seed=3)]


def data():
    return fl.Batches(arrays(16), batch_size=6, seed=3)  # with a short last batch


def step_of(optimizer=None, grad=(), after=()):
    return fl.pipe(loss, fl.grad, *grad, fl.update(optimizer or fl.optim.adamw(1e-2)), *after)


STAGES = {
    "update": step_of(),
    "accumulate": step_of(grad=[fl.accumulate(3)]),
    "frozen": fl.pipe(
        loss,
        fl.grad(frozen=["first", "norm"]),
        fl.accumulate(2),
        fl.update(fl.optim.adamw(1e-2)),
    ),
    "amp bf16": step_of(grad=[fl.amp("bf16")]),
    "amp fp16": step_of(grad=[fl.amp("fp16", interval=2)]),
    "amp of modules": step_of(grad=[fl.amp("bf16", modules={"head": "fp32"})]),
    "amp fp64": step_of(grad=[fl.amp("fp64")]),
    "ema": step_of(
        after=[fl.ema(0.9), fl.ema(fl.schedules.linear(0.5, 0.9, steps=10), name="fast")]
    ),
    "guard": step_of(after=[fl.ema(0.9), fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2))]),
    "guard rewind": step_of(
        after=[fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2), then="rewind", every=2)]
    ),
    "everything": step_of(
        fl.optim.chain(
            fl.optim.clip_by_norm(1.0),
            fl.optim.adamw(fl.schedules.cosine(1e-2, steps=20, warmup=3)),
        ),
        grad=[fl.accumulate(2), fl.amp("fp16", interval=2)],
        after=[fl.ema(0.9)],
    ),
    "sam": step_of(grad=[fl.accumulate(2), fl.schemes.sam(0.1)]),
    "sam adaptive": step_of(grad=[fl.schemes.sam(0.5, adaptive=True)]),
    "lookahead": step_of(after=[fl.schemes.lookahead(2)]),
    "centralize": step_of(fl.optim.chain(fl.schemes.centralize(), fl.optim.adamw(1e-2))),
    "hypergradient": step_of(fl.schemes.hypergradient(fl.optim.adam(1e-2), 1e-4)),
    "sgld": step_of(fl.optim.sgd(0.1), after=[fl.schemes.sgld(0.01)]),
    "sghmc": step_of(fl.optim.sgd(0.1), after=[fl.schemes.sghmc(0.01)]),
    "several": fl.pipe(
        fl.schemes.several(body=fl.grad(loss, only=["first", "norm"]), all=other_loss),
        fl.update(fl.optim.adamw(1e-2)),
    ),
    "pcgrad": fl.pipe(
        fl.schemes.pcgrad(a=loss, b=other_loss, c=fl.grad(loss, only="head")),
        fl.update(fl.optim.sgd(0.1)),
    ),
    "gradnorm": fl.pipe(
        fl.schemes.gradnorm(lr=0.01, a=loss, b=positive_loss),
        fl.update(fl.optim.adamw(1e-2)),
    ),
    "noise_scale": step_of(grad=[fl.schemes.noise_scale(3)]),
    "extragradient": step_of(grad=[fl.schemes.extragradient(0.1)]),
    "evolution": step_of(fl.optim.sgd(0.01), grad=[fl.schemes.evolution(0.1, 3)]),
    "forward_gradient": step_of(fl.optim.sgd(0.01), grad=[fl.schemes.forward_gradient]),
    "sequence": fl.sequence(
        body=fl.pipe(
            loss,
            fl.grad(only=["first", "norm"]),
            fl.update(fl.optim.adamw(fl.schedules.cosine(1e-2, steps=20, warmup=3))),
        ),
        head=fl.pipe(
            loss,
            fl.grad(only="head"),
            fl.accumulate(2),
            fl.amp("fp16", interval=2),
            fl.update(fl.optim.sgd(0.1, momentum=0.9)),
            fl.ema(0.9),
        ),
    ),
}
"""Every stage, in pipelines as they are written."""


def optimizer_step(name):
    return step_of(EXAMPLES[name]() if name in EXAMPLES else OPTIMIZERS[name]())


def tolerance(name):
    half = name.startswith(("amp", "sequence"))
    return {"rtol": 1e-3, "atol": 1e-3} if half else {}  # half precision rounds


def test_every_exported_stage_is_covered():
    factories = {
        name
        for name, value in EXPORTED.items()
        if getattr(value, "__module__", "").startswith("fnloop.stages")
        and inspect.isfunction(value)
    }
    covered = {part.label for step in STAGES.values() for part in step.stages()}
    assert factories <= {*covered, "pipe", "scale", "stage"}, "add the new stage here"


def test_every_scheme_is_covered():
    schemes = {n for n, f in vars(fl.schemes).items() if not n.startswith("_") and callable(f)}
    alone = {
        "dp_sgd",
        *FUNCTIONS,
        *CALLBACKS,
    }  # refuses BatchNorm: see tests/schemes/test_privacy.py
    assert schemes <= {name.split()[0] for name in STAGES} | alone, "add the new scheme here"


@pytest.mark.lightning("X2")
@pytest.mark.parametrize("name", STAGES)
def test_law_7_for_every_stage(name):
    step = STAGES[name]
    testing.check_compiles(step, step.init(make()), batches(), **tolerance(name))


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - UNCOMPILED))
def test_law_7_for_every_optimizer(name):
    step = optimizer_step(name)
    testing.check_compiles(step, step.init(make(Small)), batches())


def test_law_7_a_bare_function_is_a_step():
    inner = STAGES["ema"]

    def twice(state, batch):
        state, _ = inner(state, batch)
        return inner(state, batch)

    step = fl.stage(twice, "step")
    testing.check_compiles(step, inner.init(make(Small)), batches())


def test_from_torch_says_that_it_cannot_be_compiled():
    step = step_of(fl.optim.from_torch(torch.optim.NAdam, lr=1e-2))
    with pytest.raises(RuntimeError, match="cannot be compiled"):
        testing.check_compiles(step, step.init(make(Small)), batches())


INDUCTOR = {
    "amp bf16 and everything": (
        step_of(
            fl.optim.chain(
                fl.optim.clip_by_norm(1.0),
                fl.optim.adamw(fl.schedules.cosine(1e-2, steps=20, warmup=3)),
            ),
            grad=[fl.accumulate(2), fl.amp("bf16")],
            after=[fl.ema(0.9)],
        ),
        Net,
    ),
    "lamb": (step_of(fl.optim.lamb(1e-2)), Small),
}
INDUCTOR_SLOWLY = {
    "update": (STAGES["update"], Net),
    "everything": (STAGES["everything"], Net),
    "muon": (step_of(EXAMPLES["muon"]()), Small),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")  # Inductor imports torch.jit
@pytest.mark.parametrize("name", INDUCTOR)
def test_law_7_built_by_inductor(name):
    step, kind = INDUCTOR[name]
    testing.check_compiles(
        step, step.init(make(kind)), batches(), backend="inductor", **tolerance(name)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
@pytest.mark.parametrize("name", INDUCTOR_SLOWLY)
def test_law_7_built_by_inductor_for_more(name):
    step, kind = INDUCTOR_SLOWLY[name]
    testing.check_compiles(
        step, step.init(make(kind)), batches(), backend="inductor", rtol=1e-3, atol=1e-3
    )


# One graph for each of these for the whole file; the laws must hold at the first call as well.
COMPILED = {name: fl.compile(step, backend="aot_eager") for name, step in STAGES.items()}
LAWFUL = ("update", "ema", "guard", "guard rewind", "everything", "sequence")


@pytest.mark.parametrize("name", LAWFUL)
def test_laws_1_2_10_and_11_for_the_compiled_step(name):
    step, model = fl.compile(STAGES[name], backend="aot_eager"), make()
    state = step.init(model)
    testing.check_pure(step, state, arrays(7), model)  # this call makes the graph
    state, _ = step(state, arrays(7))
    testing.check_pure(step, state, arrays(7), model)
    testing.check_repeatable(step, state, arrays(7))
    testing.check_skips(step, state, bad_batch())
    testing.check_stable(step, state, arrays(7))
    assert step.graphs == 1


@pytest.mark.parametrize("name", LAWFUL)
def test_law_8_a_compiled_run_goes_on_from_a_checkpoint(name):
    step = COMPILED[name]
    testing.check_resumes(step, step.init(make()), data(), steps=6, at=(0, 1, 4))
    assert step.graphs == 2  # the second for the short last batch


@pytest.mark.parametrize("name", LAWFUL)
def test_fit_donates_and_gives_the_bits_of_run(name):
    step = COMPILED[name]
    state = step.init(make())
    *_, (expected, _) = fl.run(step, state, data(), steps=9)
    given = fl.tree_map(torch.clone, state)
    fitted, _ = fl.fit(step, state, data(), steps=9)
    assert fl.tree_diff(expected, fitted) == ""
    assert fl.tree_equal(state, given), "fit wrote into its caller's state"
    again, _ = fl.fit(step, fitted, data(), steps=2)
    *_, (expected, _) = fl.run(step, expected, data(), steps=2)
    assert fl.tree_diff(expected, again) == ""


def test_law_8_fit_resumes_with_donation_from_its_folder(tmp_path):
    step = COMPILED["everything"]
    state = step.init(make())
    whole, _ = fl.fit(step, state, data(), steps=9)
    fl.fit(step, state, data(), steps=5, callbacks=[fl.checkpoint(tmp_path, keep=1)])
    resumed, _ = fl.fit(
        step, state, data(), steps=9, callbacks=[fl.checkpoint(tmp_path)], resume=tmp_path
    )
    assert fl.tree_diff(whole, resumed) == ""


@pytest.mark.filterwarnings("ignore:The model Net wrote to its buffers in evaluation")
def test_law_9_effects_change_no_bit_of_a_donated_run(tmp_path):
    held_out = fl.Batches(arrays(9), 4, shuffle=False)

    def callbacks():
        return [
            fl.every(2, fl.validate(loss, held_out, params="ema", statistics=data())),
            fl.early_stopping("val/loss", patience=100),
            fl.checkpoint(tmp_path / "checkpoints", monitor="val/loss"),
            fl.track(fl.trackers.JSONL(tmp_path / "log.jsonl")),
            fl.History(),
        ]

    step = COMPILED["ema"].donating()
    state = step.init(make())
    without, _ = fl.fit(step, state.replace(), data(), steps=6, callbacks=callbacks()[:2])
    with_all, _ = fl.fit(step, state.replace(), data(), steps=6, callbacks=callbacks())
    assert fl.tree_diff(without, with_all) == ""


def plain_loss(model, batch):
    return model(batch).square().mean()


def broken(change):
    """A step that is another one while it is recorded."""
    inner = fl.pipe(plain_loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    calls = []

    def step(state, batch):
        calls.append(1)
        return change(*inner(state, batch), len(calls))

    return fl.stage(step, "step"), inner.init(nn.Linear(2, 1)), [torch.ones(3, 2)] * 2


def test_compiles_sees_another_result():
    def change(state, metrics, n):
        params = {name: p + 0.01 * n for name, p in state.params.items()}
        return state.replace(params=params), metrics

    with pytest.raises(LawError, match=r"law 7(.|\n)*params/weight .* 2 of 2 values, at most 0.0"):
        testing.check_compiles(*broken(change))


def test_compiles_sees_other_metrics():
    def change(state, metrics, n):
        return state, {**metrics, "n": fl.Last(float(n))}

    with pytest.raises(LawError, match=r"law 7(.|\n)*n/latest .* 1 of 1 values"):
        testing.check_compiles(*broken(change))


def test_compiles_sees_names_in_another_order():
    def change(state, metrics, n):
        return state, metrics if n == 1 else dict(reversed(metrics.items()))

    with pytest.raises(LawError, match=r"law 7.* reports sgd.weight_decay, sgd.lr, skipped, loss"):
        testing.check_compiles(*broken(change))


def test_compiles_sees_a_second_graph():
    step, state, _ = broken(lambda state, metrics, n: (state, metrics))
    with pytest.raises(LawError, match=r"law 7.* 2 graphs after 2 batches"):
        testing.check_compiles(step, state, [torch.ones(3, 2), torch.ones(2, 2)])


def test_compiles_sees_a_batch_that_is_written_to():
    def change(state, metrics, n):
        return state, metrics

    step, state, _ = broken(change)

    def writes(state, batch):
        batch.mul_(1.5)
        return step(state, batch)

    with pytest.raises(fl.errors.CompileError, match="writes to the batch in place"):
        testing.check_compiles(fl.stage(writes, "step"), state, [torch.ones(3, 2)])


def test_compiles_sees_a_backend_that_writes_to_a_batch():
    def careless(graph, inputs):
        (place,) = [i for i, t in enumerate(inputs) if t.shape == (3, 2)]

        def run(*given):
            results = graph(*given)
            given[place].mul_(1.5)
            return results

        return run

    step, state, _ = broken(lambda state, metrics, n: (state, metrics))
    with pytest.raises(LawError, match=r"law 7.* changed its input in place"):
        testing.check_compiles(step, state, [torch.ones(3, 2)], backend=careless)
