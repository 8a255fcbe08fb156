"""What counts, when, and in which order: rules that users of Lightning rely on, and its defects."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl


def net(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def examples(n=40):
    make = torch.Generator().manual_seed(1)
    return 8 * torch.randn(n, 4, generator=make), torch.randint(0, 3, (n,), generator=make)


CLIPPING = {
    "norm": (fl.optim.clip_by_norm(0.05), lambda p: nn.utils.clip_grad_norm_(p, 0.05)),
    "value": (fl.optim.clip_by_value(0.01), lambda p: nn.utils.clip_grad_value_(p, 0.01)),
}


@pytest.mark.lightning("V7", "T25", "P2")
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("by", CLIPPING)
def test_clipping_is_of_unscaled_gradients_of_the_whole_batch(by, parts):
    """After unscaling and accumulating, before the step, as in torch's recipe for both."""
    ours, theirs = CLIPPING[by]
    amp = fl.amp("fp16", init_scale=2.0**10, interval=3)
    optimizer = fl.optim.chain(ours, fl.optim.sgd(0.5, momentum=0.9))
    step = fl.pipe(loss, fl.grad, fl.accumulate(parts), amp, fl.update(optimizer))
    model = net()
    state = step.init(model)
    reference = copy.deepcopy(model)
    sgd = torch.optim.SGD(reference.parameters(), 0.5, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    x, y = examples(8)
    for i in range(8):
        batch = (x * torch.inf if i == 3 else x + i, y)
        sgd.zero_grad()
        for part in zip(*(tensor.chunk(parts) for tensor in batch), strict=True):
            with torch.autocast("cpu", dtype=torch.float16):
                value = loss(reference, part) / parts
            scaler.scale(value).backward()
        scaler.unscale_(sgd)
        theirs(reference.parameters())
        scaler.step(sgd)
        scaler.update()
        state, metrics = step(state, batch)
        assert float(state["amp"]["scale"]) == scaler.get_scale()
        assert float(metrics["skipped"]) == (i == 3)
        for name, p in reference.named_parameters():
            torch.testing.assert_close(state.params[name], p.detach(), rtol=2e-3, atol=2e-5)
    assert float(metrics["amp.scale"]) > 2.0**10  # it grew, and the bound did not move with it


SCHEDULE = fl.schedules.linear(1.0, 0.0, steps=10)

SKIPS = {
    "a gradient that is not finite": (
        fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(SCHEDULE))),
        lambda x, y: (x * torch.nan, y),
    ),
    "a loss scale that is too large": (
        fl.pipe(loss, fl.grad, fl.amp("fp16", init_scale=256.0), fl.update(fl.optim.sgd(SCHEDULE))),
        lambda x, y: (x * torch.inf, y),
    ),
    "a loss that asks for it": (
        fl.pipe(
            lambda model, batch: fl.Mean(loss(model, batch) * len(batch[0]), len(batch[0]) % 8),
            fl.grad,
            fl.accumulate(2),
            fl.update(fl.optim.sgd(SCHEDULE)),
        ),
        lambda x, y: (torch.cat([x] * 4), torch.cat([y] * 4)),  # two parts of eight examples
    ),
    "a guard": (
        fl.pipe(
            loss,
            fl.grad,
            fl.update(fl.optim.sgd(SCHEDULE)),
            fl.guard(lambda state, m: (state, {"bad": float(m["loss"]) > 50})),
        ),
        lambda x, y: (1000 * x, y),
    ),
}


@pytest.mark.lightning("P2", "V7")
@pytest.mark.parametrize("name", SKIPS)
def test_a_skipped_step_moves_neither_a_schedule_nor_the_count(name):
    """In Lightning both go on (#5558); torch's own recipe asks whether the step was taken."""
    step, spoil = SKIPS[name]
    x, y = examples(4)
    state, committed, rates = step.init(net()), 0, []
    for i in range(12):
        bad = i in (0, 4, 5)
        state, metrics = step(state, spoil(x, y) if bad else (x / 8, y))
        assert float(metrics["skipped"]) == bad
        if not bad:
            rates.append(float(metrics["sgd.lr"]))
            committed += 1
        assert (int(state.step), int(state.calls)) == (committed, i + 1)
    assert rates == pytest.approx([1.0 - i / 10 for i in range(9)], abs=1e-6)


DATA = {
    "a short last batch": lambda: fl.Batches(examples(38), 8),
    "without it": lambda: fl.Batches(examples(38), 8, drop_last=True),
    "a loader": lambda: DataLoader(TensorDataset(*examples(38)), 8, shuffle=True),
    "a limit": lambda: fl.data.limit(fl.Batches(examples(38), 8), 3),
    "a fraction": lambda: fl.data.limit(fl.Batches(examples(38), 8), 0.5),
}


@pytest.mark.lightning("M8", "V7")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", DATA)
def test_the_steps_of_a_run_are_batches_times_epochs(name, parts):
    """A schedule over them ends with the last step; parts of a batch are no steps."""
    batches = fl.data.limit(DATA[name](), 1.0).batches
    assert name.startswith(("a limit", "a fraction")) or batches == len(DATA[name]())
    schedule = fl.schedules.linear(0.1, 0.0, steps=3 * batches)
    step = fl.pipe(loss, fl.grad, fl.accumulate(parts), fl.update(fl.optim.sgd(schedule)))
    state, history = fl.fit(
        step,
        step.init(net()),
        DATA[name](),
        epochs=3,
        callbacks=[fl.History(every=1)],
    )
    assert int(state.step) == int(state.cursor[2]) == 3 * batches
    rates = [0.1 * (1 - i / (3 * batches)) for i in range(3 * batches)]
    assert history["sgd.lr"] == pytest.approx(rates, abs=1e-7)
    assert float(schedule(state.step)) == 0.0


@fl.tree
class AroundGrad(fl.base.GradStage):
    wraps: ClassVar[str] = "grad"
    label: ClassVar[str] = "around_grad"
    inner: Any
    note: Callable[[str], None]

    def __call__(self, state, batch):
        self.note("gradient")
        found = self.inner(state, batch)
        self.note("gradient's end")
        return found


@fl.tree
class AroundStep(fl.base.StepStage):
    wraps: ClassVar[str] = "step"
    label: ClassVar[str] = "around_step"
    inner: Any
    note: Callable[[str], None]

    def __call__(self, state, batch):
        self.note("step")
        found = self.inner(state, batch)
        self.note("step's end")
        return found


@pytest.mark.lightning("C23", "H5", "H7", "V8", "D11")
def test_the_order_is_that_of_the_text():
    """Stages, the outermost first, callbacks, early stopping too, in their places, then effects."""
    order = []

    def noted(name, result):
        order.append(name)
        return result

    def epoch(number):
        for _ in range(2):
            yield examples(4)

    def told(model, batch):
        return noted("loss", loss(model, batch))

    def callback(name):
        return lambda state, metrics: noted(name, (state, metrics))

    step = fl.pipe(
        told,
        fl.grad,
        functools.partial(AroundGrad, note=order.append),
        fl.update(fl.optim.sgd(0.1)),
        functools.partial(AroundStep, note=order.append),
    )
    validate = fl.validate(lambda m, b: noted("validation", loss(m, b)), [examples(4)])
    _, history = fl.fit(
        step,
        step.init(net()),
        epoch,
        epochs=9,
        callbacks=[
            fl.effect(lambda state, metrics: noted("effect", None)),
            callback("before"),
            fl.every(1, validate, unit="epoch"),
            callback("after"),
            fl.early_stopping("val/loss", patience=1, min_delta=1e9),
            callback("last"),
        ],
    )
    one = ["step", "gradient", "loss", "gradient's end", "step's end"]
    tail = ["after", "last", "effect"]
    short, long = ["before", *tail], ["before", "validation", *tail]
    example = ["validation"]  # of one batch, once: which metrics will there be?
    assert order == [*one, *example, *short, *one, *long, *one, *short, *one, *long]
    assert history.status == "stopped"


@pytest.mark.lightning("L10", "V10")
def test_an_epochs_mean_weighs_batches_by_their_examples():
    """The sum of value times batch size, over the sum of batch sizes; others as they are named."""
    values = torch.tensor([1.0, 1, 1, 1, 3, 3, 3, 3, 8, 8])

    def told(model, x):
        kinds = {"most": fl.Max(x.max()), "least": fl.Min(x.min()), "last": fl.Last(x[0])}
        return model(x[:, None]).mean() * 0 + x.mean(), {
            "mean": x.mean(),
            "total": fl.Sum(x.sum()),
            **kinds,
        }

    step = fl.pipe(told, fl.grad, fl.update(fl.optim.sgd(0.0)))
    data = fl.Batches(values, 4, shuffle=False)
    seen = {}

    def look(state, metrics):
        seen.update({name: float(metric) for name, metric in metrics.items()})
        return state, metrics

    state, history = fl.fit(
        step,
        step.init(nn.Linear(1, 1)),
        data,
        epochs=1,
        callbacks=[
            fl.every(1, fl.validate(told, data), unit="epoch"),
            fl.every(1, look, unit="epoch"),
        ],
    )
    expected = {"loss": 3.2, "mean": 3.2, "total": 32.0, "most": 8.0, "least": 1.0, "last": 8.0}
    found = fl.evaluate(told, state, data)
    for name, value in expected.items():  # (1 * 4 + 3 * 4 + 8 * 2) / 10, and not (1 + 3 + 8) / 3
        assert history[-1][name] == seen[name] == pytest.approx(value)
        assert history[-1][f"val/{name}"] == found[name] == pytest.approx(value)


@pytest.mark.lightning("T19", "V10")
def test_what_a_check_before_the_first_step_draws_is_its_own():
    """Random numbers, batches and BatchNorm of a first validation leave no trace in the run."""

    def noisy(model, batch):
        return loss(model, (batch[0] + torch.randn(()), batch[1]))

    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    step = fl.pipe(noisy, fl.grad, fl.update(fl.optim.adam(0.01)))
    shuffled = fl.Batches(examples(20), 4, seed=3)

    def trained(**first):
        validate = fl.every(1, fl.validate(noisy, shuffled), unit="epoch", **first)
        data = DataLoader(TensorDataset(*examples()), 8, shuffle=True)
        return fl.fit(step, step.init(build, seed=0), data, epochs=2, callbacks=[validate])

    (with_it, one), (without, other) = trained(first=True), trained()
    assert fl.tree_equal(with_it, without)
    assert one.rows[1:] == other.rows and set(one[0]) == {"epoch", "step", "val/loss"}


@pytest.mark.lightning("L9", "X7")
def test_a_loop_of_ones_own_has_callbacks_checkpoints_and_files(tmp_path):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adam(0.01)))
    data = fl.Batches(examples(), 8)

    def callbacks(folder):
        return [
            fl.every(1, fl.validate(loss, data), unit="epoch"),
            fl.checkpoint(folder / "saved", keep=None),
            fl.track(fl.trackers.CSV(folder / "a.csv"), every=2),
        ]

    fl.fit(step, step.init(net()), data, epochs=2, callbacks=callbacks(tmp_path / "fit"))
    for state, metrics in fl.run(
        step, step.init(net()), data, epochs=2, callbacks=callbacks(tmp_path / "run")
    ):
        assert ("val/loss" in metrics) == (int(state.cursor[1]) == 0)
    written, own = ((tmp_path / name / "a.csv").read_text() for name in ("fit", "run"))
    assert own == written and len(own.splitlines()) == 1 + 6
    last = fl.load(tmp_path / "run" / "saved", like=step.init(net()))
    assert fl.tree_equal(last.params, state.params)


@pytest.mark.lightning("K11")
@pytest.mark.parametrize("rate", [0.003, fl.schedules.linear(0.01, 0.0, steps=20)])
def test_a_run_that_is_resumed_with_another_rate_goes_on_with_that(tmp_path, rate):
    """Memory comes from the checkpoint, hyperparameters from the code."""

    def step(lr):
        return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(lr)), fl.ema(0.9))

    data, saving = fl.Batches(examples(), 8), fl.checkpoint(tmp_path)
    first, _ = fl.fit(step(0.1), step(0.1).init(net()), data, steps=7, callbacks=[saving])
    by_hand, _ = fl.fit(step(rate), first, data, steps=6)
    start = step(rate).init(net(), seed=5)
    resumed, history = fl.fit(step(rate), start, data, steps=13, resume=tmp_path)
    assert fl.tree_equal(resumed, by_hand)
    assert history["adamw.lr"][-1] == pytest.approx(0.003 if rate == 0.003 else 0.01 * 8 / 20)
