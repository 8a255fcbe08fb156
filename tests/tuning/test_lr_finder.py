"""The learning-rate range test: each candidate exactly, and nothing else moves."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop.tuning.lr_finder import spaced
from fnloop.tuning.lr_search import LrSearch, running_average

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.tensor([1.0, -2.0, 3.0, 0.5]))[:, None]
DATA = fl.Batches((X, Y), batch_size=20)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Linear(8, 1))


def step_of(optimizer, *more):
    return fl.pipe(loss, fl.grad, fl.update(optimizer), *more)


def losses_by_hand(optimizer_at, candidates, state):
    """Losses of steps each of which has its learning rate written in it as a number."""
    found = []
    for lr in candidates:
        (result,) = fl.run(step_of(optimizer_at(lr)), state, DATA, steps=1)
        state, metrics = result
        found.append(float(metrics["loss"]))
    return found


OPTIMIZERS = {
    "number": (fl.optim.sgd(0.3), fl.optim.sgd),
    "schedule from zero": (
        fl.optim.adamw(fl.schedules.cosine(0.5, steps=20, warmup=10)),
        fl.optim.adamw,
    ),
    "chain": (
        fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(0.0)),
        lambda lr: fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(lr)),
    ),
    "masked": (
        fl.optim.masked(fl.optim.adamw(0.1), ["0"]),
        lambda lr: fl.optim.masked(fl.optim.adamw(lr), ["0"]),
    ),
    "from torch": (
        fl.optim.from_torch(torch.optim.RMSprop, lr=fl.schedules.linear(0.1, 0.0, 9)),
        lambda lr: fl.optim.from_torch(torch.optim.RMSprop, lr=lr),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.lightning("U1", "C7")
def test_each_step_is_the_one_with_that_number_to_the_bit(name):
    optimizer, at = OPTIMIZERS[name]
    step = step_of(optimizer)
    state = step.init(network, seed=0)
    found = fl.tuning.find_lr(step, state, DATA, steps=12, max_lr=1.0, stop_at=None)
    assert found.lrs[0] == 1e-7 and found.lrs[-1] == 1.0 and len(found.lrs) == 12
    assert found.losses == losses_by_hand(at, found.lrs, step_of(at(1.0)).init(state))


def test_the_multiplier_of_an_earlier_reduction_does_not_count():
    step = step_of(fl.optim.sgd(0.3))
    state = step.init(network, seed=0)
    reduced = fl.scale(state, "sgd.lr", 0.1)
    assert (
        fl.tuning.find_lr(step, reduced, DATA).losses == fl.tuning.find_lr(step, state, DATA).losses
    )


def test_of_several_labels_one_is_tried_and_the_others_stay():
    labels = {"0": "body", "*": "head"}

    def optimizer(lr):
        return fl.optim.by_label({"body": fl.optim.adamw(1e-3), "head": fl.optim.sgd(lr)}, labels)

    step = step_of(optimizer(0.5))
    state = step.init(network, seed=0)
    with pytest.raises(TypeError, match=r"2 learning rates \(body.adamw.lr, head.sgd.lr\)"):
        fl.tuning.find_lr(step, state, DATA)
    found = fl.tuning.find_lr(step, state, DATA, name="head.sgd.lr", steps=8, max_lr=0.1)
    assert found.losses == losses_by_hand(optimizer, found.lrs, state)
    with pytest.raises(
        ValueError, match=r"no such learning rate; there are: body\.adamw\.lr, head"
    ):
        fl.tuning.find_lr(step, state, DATA, name="sgd.lr")


@pytest.mark.parametrize("every", [1, 3])
def test_a_part_of_a_sequence(every):
    def pair(lr):
        return fl.sequence(
            body=fl.pipe(loss, fl.grad(only="0"), fl.update(fl.optim.sgd(0.01))),
            head=fl.pipe(loss, fl.grad(only="3"), fl.update(fl.optim.adam(lr))),
            every={"head": every},
        )

    step = pair(fl.schedules.linear(0.0, 1.0, steps=50))
    state = step.init(network, seed=0)
    found = fl.tuning.find_lr(step, state, DATA, name="head/adam.lr", steps=6, max_lr=0.1)
    expected, now, batches = [], state, DATA.iterate()
    for lr in found.lrs:
        for _ in range(every):
            _, batch = next(batches)
            now, metrics = pair(lr)(now, batch)
        expected.append(float(metrics["head/loss"]))
    assert found.losses == expected and len(expected) == 6


@pytest.mark.parametrize("trained", [0, 7])
@pytest.mark.lightning("U1")
def test_everything_is_as_it_was(trained):
    step = step_of(fl.optim.adamw(1e-2), fl.ema(0.9))
    state = step.init(network, seed=0)
    state, _ = fl.fit(step, state, DATA, steps=trained)
    copy = fl.tree_map(torch.clone, state)
    versions = [leaf._version for leaf in fl.tree_leaves(state)]
    generators = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    fl.tuning.find_lr(step, state, DATA)
    assert fl.tree_equal(copy, state)
    assert versions == [leaf._version for leaf in fl.tree_leaves(state)]
    assert torch.equal(generators[0], torch.get_rng_state())
    assert generators[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    after, _ = fl.fit(step, state, DATA, steps=5)
    assert fl.tree_equal(after, fl.fit(step, copy, DATA, steps=5)[0])


@pytest.mark.parametrize("options", [{}, {"donate": True}, {"steps": 4}], ids=str)
def test_compiled_it_takes_one_graph_and_the_state_stays(options, caplog):
    step = step_of(fl.optim.adamw(fl.schedules.cosine(0.5, steps=20, warmup=10)))
    fast = fl.compile(step, backend="aot_eager", **options)
    state = fast.init(network, seed=0)
    copy = fl.tree_map(torch.clone, state)
    with caplog.at_level("INFO", logger="fnloop.compile"):
        found = fl.tuning.find_lr(fast, state, DATA, steps=12, max_lr=1.0, stop_at=None)
    assert sum("One graph of" in record.message for record in caplog.records) == 1
    assert fl.tree_equal(copy, state) and fast.graphs == 0
    slow = fl.tuning.find_lr(step, state, DATA, steps=12, max_lr=1.0, stop_at=None)
    assert found.losses == pytest.approx(slow.losses, rel=1e-5)


def test_accumulation_and_half_precision():
    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.amp("bf16"), fl.update(fl.optim.adamw(1e-3)))
    found = fl.tuning.find_lr(step, step.init(network, seed=0), DATA)
    assert 1e-4 < found.suggestion < 1.0


def test_a_skipped_step_has_no_loss_and_many_end_the_test():
    data = [(X[:20], Y[:20]), (X[:20] * torch.inf, Y[:20])]
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(nn.Linear(4, 1))
    found = fl.tuning.find_lr(step, state, data, max_lr=0.1)
    assert [math.isfinite(value) for value in found.losses] == [True, False] * 50
    assert found.suggestion is not None
    found = fl.tuning.find_lr(step, state, data[1:])
    assert len(found.losses) == 16 and found.suggestion is None
    assert "no loss was finite" in repr(found)


def test_it_stops_at_four_times_the_lowest_average():
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(nn.Linear(4, 1), seed=0)
    found = fl.tuning.find_lr(step, state, DATA)
    averages = running_average(found.losses, 0.8)
    assert averages[-1] > 4 * min(averages) and len(found.lrs) < 100
    assert all(averages[k] <= 4 * min(averages[: k + 1]) for k in range(len(averages) - 1))
    assert len(fl.tuning.find_lr(step, state, DATA, max_lr=1.0, stop_at=None).lrs) == 100


def test_a_loss_below_zero_does_not_stop_it_at_once():
    step = fl.pipe(lambda m, b: loss(m, b) - 100.0, fl.grad, fl.update(fl.optim.sgd(0.1)))
    found = fl.tuning.find_lr(step, step.init(nn.Linear(4, 1), seed=0), DATA)
    assert 1e-3 < found.suggestion < 1.0


@pytest.mark.parametrize(
    ("model", "classes", "optimizer", "low", "high"),
    [  # from `low` to `high` the loss after some epochs is within a tenth of what can be had
        (lambda: nn.Linear(4, 1), 0, fl.optim.sgd, 0.01, 0.3),
        (lambda: nn.Linear(4, 1), 0, fl.optim.adam, 0.02, 1.0),
        (lambda: nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2)), 2,
         fl.optim.adamw, 0.003, 0.15),
    ],
)  # fmt: skip
def test_the_suggestion_trains(model, classes, optimizer, low, high):
    def cross_entropy(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    y = (X[:, 0] * X[:, 1] > 0).long() if classes else Y
    data = fl.Batches((X, y), batch_size=20)
    step = fl.pipe(
        cross_entropy if classes else loss,
        fl.grad,
        fl.update(optimizer(fl.schedules.constant(1.0))),
    )
    for seed in range(3):
        found = fl.tuning.find_lr(step, step.init(model, seed=seed), data)
        assert low < found.suggestion < high


@pytest.mark.lightning("D3", "V3")
def test_averages_are_corrected_by_the_number_of_losses():
    # The correction by one more gave 0.505, 0.673, 0.758, ..., 0.918 for a constant loss.
    assert running_average([1.0] * 20, 0.98) == [1.0] * 20
    values, decay, average = torch.randn(50, dtype=torch.float64).tolist(), 0.9, 0.0
    for k, value in enumerate(values, start=1):
        average = decay * average + (1 - decay) * value
        assert running_average(values[:k], decay)[-1] == pytest.approx(average / (1 - decay**k))


@pytest.mark.lightning("D3")
def test_the_suggestion_is_the_steepest_point_of_a_known_curve():
    lrs = spaced(1e-6, 1.0, 61, "exponential")
    fall = [2 - math.tanh(math.log10(lr) + 3) for lr in lrs]  # steepest at 1e-3
    found = LrSearch("sgd.lr", lrs, fall, 0.0, 61)
    assert found.suggestion == pytest.approx(1e-3, rel=1e-9)
    averaged = LrSearch("sgd.lr", lrs, fall, 0.8, 61)
    assert averaged.suggestion == pytest.approx(1e-3, rel=0.3)  # averages do not lag
    rebound = [*fall[:50], *([50.0] * 6), *([5.0] * 5)]
    assert LrSearch("sgd.lr", lrs, rebound, 0.0, 61).suggestion == pytest.approx(1e-3, rel=1e-9)
    rise = LrSearch("sgd.lr", lrs, fall[::-1], 0.8, 61)
    assert rise.suggestion is None and "does not fall by more" in repr(rise)
    noise = torch.randn(61, generator=torch.Generator().manual_seed(0)).tolist()
    assert LrSearch("sgd.lr", lrs, noise, 0.8, 61).suggestion is None
    few = LrSearch("sgd.lr", lrs, [1.0, 0.9, *([math.nan] * 59)], 0.8, 61)
    assert few.suggestion is None and "only 2 of 61 losses were finite" in repr(few)


@pytest.mark.parametrize("spacing", ["exponential", "linear"])
@pytest.mark.lightning("V3")
def test_candidates_stay_within_their_limits(spacing):
    for low, high, n in itertools.product((1e-8, 3e-5, 0.1), (0.3, 1.0, 7.7), (2, 3, 100)):
        found = spaced(low, high, n, spacing)
        assert found[0] == low and found[-1] == high and len(found) == n
        assert found == sorted(found)
        if spacing == "exponential" and n > 2:
            assert np.diff(np.log(found)) == pytest.approx(np.log(high / low) / (n - 1))


def test_the_plot(tmp_path):
    step = step_of(fl.optim.sgd(0.1))
    found = fl.tuning.find_lr(step, step.init(nn.Linear(4, 1), seed=0), DATA)
    figure = found.plot(tmp_path / "plots" / "lr.png")
    assert (tmp_path / "plots" / "lr.png").read_bytes()[:4] == b"\x89PNG"
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "sgd.lr"
    assert figure._repr_png_()[0][:4] == b"\x89PNG"
    LrSearch("sgd.lr", [0.1], [math.nan], 0.8, 1).plot()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"min_lr": 0.0}, ValueError, r"min_lr=...\) takes a number above 0"),
        ({"min_lr": 1.0, "max_lr": 0.1}, ValueError, "which must be larger; got 1 and 0.1"),
        ({"steps": 1}, ValueError, "at least 2"),
        ({"spacing": "log"}, ValueError, '"exponential" or "linear"'),
        ({"smoothing": 1.0}, ValueError, "below 1"),
        ({"stop_at": 1.0}, ValueError, "above 1"),
        ({"metric": "lss"}, ValueError, "looks at 'lss', which this step does not report"),
    ],
)
def test_what_is_wrong_is_said(settings, error, message):
    step = step_of(fl.optim.sgd(0.1))
    with pytest.raises(error, match=message):
        fl.tuning.find_lr(step, step.init(nn.Linear(4, 1)), DATA, **settings)


def test_data_that_would_not_be_the_same_afterwards_is_refused():
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(nn.Linear(4, 1))
    with pytest.raises(TypeError, match="goes on from its own position"):
        fl.tuning.find_lr(step, state, iter([(X, Y)] * 200))
    assert fl.tuning.find_lr(step, state, lambda epoch: iter([(X, Y)] * 3)).suggestion


def test_one_member_of_a_population_is_tried():
    many = fl.ensemble(step_of(fl.optim.sgd(0.1)), 2)
    states = many.init(lambda: nn.Linear(4, 1))
    with pytest.raises(
        ValueError, match=r"2 members\. With one of them: find_lr\(step\.uncompiled"
    ):
        fl.tuning.find_lr(many, states, DATA)
    assert fl.tuning.find_lr(many.uncompiled.member(1), fl.member(states, 1), DATA).suggestion


def test_a_function_has_no_rate_to_set():
    step = step_of(fl.optim.sgd(0.1))
    state = step.init(nn.Linear(4, 1))
    with pytest.raises(TypeError, match=r"takes a step made by fl\.pipe"):
        fl.tuning.find_lr(lambda state, batch: step(state, batch), state, DATA)
    lifted = fl.stage(lambda state, batch: (state, {"loss": fl.Mean(1.0, 1)}), "step")
    with pytest.raises(ValueError, match="finds no learning rate"):
        fl.tuning.find_lr(lifted, lifted.init(nn.Linear(4, 1)), DATA)


@fl.tree
class Wrapper(fl.optim.Optimizer):
    """An optimizer around another that does not say how to change its values."""

    inner: fl.optim.Optimizer
    name: str = "wrapper"

    def init(self, params):
        return self.inner.init(params)

    def names(self):
        return self.inner.names()

    def hyperparameters(self):
        return self.inner.hyperparameters()

    def update(self, grads, memory, params, step):
        return self.inner.update(grads, memory, params, step)

    def resolve(self, step, scale):
        return Wrapper(self.inner.resolve(step, scale))


def test_an_optimizer_that_does_not_take_the_rate_is_told():
    step = step_of(Wrapper(fl.optim.sgd(0.1)))
    with pytest.raises(RuntimeError, match=r"asked for sgd\.lr = 1e-07, and the step used 1e-08"):
        fl.tuning.find_lr(step, step.init(nn.Linear(4, 1)), DATA)


@pytest.mark.parametrize("seed", range(6))
def test_a_last_batch_of_one_example_counts_for_one(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(201, 4, dtype=torch.float64, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(201, 1, dtype=torch.float64, generator=generator)
    step = step_of(fl.optim.sgd(1e-3))
    state = step.init(nn.Linear(4, 1).double())
    found = fl.tuning.find_lr(step, state, fl.Batches((x, y), 20))
    assert set(found.weights) == {20.0, 1.0}
    assert found.suggestion is not None and 2e-3 < found.suggestion < 1
