"""Learning rates are lowered by the rules of torch's ReduceLROnPlateau."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop import testing

SETTINGS = [
    {},
    {"patience": 0, "factor": 0.5},
    {"patience": 2, "cooldown": 3, "factor": 0.5},
    {"patience": 1, "threshold": 0.3},
    {"patience": 1, "threshold": 0.3, "threshold_mode": "abs", "mode": "max"},
    {"patience": 1, "threshold": 0.1, "mode": "max", "cooldown": 1, "factor": 0.3},
    {"patience": 1, "min_scale": 0.03},
]


def loss(model, x):
    return model(x).square().mean()


def step_of(optimizer=None):
    return fl.pipe(loss, fl.grad, fl.update(optimizer or fl.optim.sgd(0.2)))


@pytest.mark.lightning("H2")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_random_sequences_give_torchs_rates(settings, seed):
    draw = random.Random(seed)
    values = [draw.choice([draw.gauss(1, 1), 1.0, float("nan"), float("inf")]) for _ in range(60)]
    callback = fl.reduce_on_plateau("val/loss", **settings)
    step = step_of()
    state = callback.init(step.init(nn.Linear(1, 1)), {})
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.2)
    theirs = dict(settings)
    theirs["min_lr"] = 0.2 * theirs.pop("min_scale", 0.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **theirs)
    rates = set()
    for value in values:
        state, metrics = callback(state, {"val/loss": fl.Last(value)})
        before = optimizer.param_groups[0]["lr"]
        reference.step(value)
        rate = optimizer.param_groups[0]["lr"]
        rates.add(rate)
        assert 0.2 * float(state["update"]["scale"]["sgd.lr"]) == pytest.approx(rate, rel=1e-5)
        if not settings.get("min_scale"):  # which torch does not go below
            assert float(metrics["reduce_on_plateau"]) == (rate < before)
    assert len(rates) > 1


def test_a_schedule_goes_on_scaled_and_other_settings_stay():
    step = step_of(fl.optim.adamw(fl.schedules.linear(0.2, 0.0, steps=10)))
    callback = fl.reduce_on_plateau(
        "loss", patience=0, factor=0.5, threshold=10.0, threshold_mode="abs"
    )
    state, x = step.init(nn.Linear(1, 1)), torch.ones(3, 1)
    rates, decays = [], []
    for _, metrics in fl.run(step, state, [x], steps=3, callbacks=[callback]):
        rates.append(float(metrics["adamw.lr"]))
        decays.append(float(metrics["adamw.weight_decay"]))
    # No loss is better than the first one by so much: the second lowers the third rate.
    assert rates == pytest.approx([0.2, 0.18, 0.16 * 0.5])
    assert len(set(decays)) == 1


def test_it_lowers_the_rates_that_are_named_in_any_part_and_label():
    heads = fl.optim.by_label(
        {"w": fl.optim.sgd(0.1), "b": fl.optim.adamw(0.1)}, {"weight": "w", "bias": "b"}
    )
    step = fl.sequence(
        a=fl.pipe(loss, fl.grad, fl.update(heads)),
        b=fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1), name="own")),
    )
    first = step.init(nn.Linear(1, 1))

    def lowered(*rates):
        callback = fl.reduce_on_plateau("loss", patience=0, factor=0.5, rates=rates)
        state = callback.init(first, {})
        for value in (1.0, 1.0):
            state, _ = callback(state, {"loss": fl.Last(value)})
        scales = {**state["a/update"]["scale"], "own": state["b/own"]["scale"]["sgd.lr"]}
        return sorted(name for name, multiplier in scales.items() if float(multiplier) != 1)

    assert lowered() == ["b.adamw.lr", "own", "w.sgd.lr"]
    assert lowered("a/w.sgd.lr") == ["w.sgd.lr"]
    assert lowered("b/sgd.lr", "a/b.adamw.weight_decay") == ["b.adamw.weight_decay", "own"]
    with pytest.raises(ValueError, match=r"finds no sgd\.lr to lower.*a/w\.sgd\.lr, .*b/sgd\.lr"):
        lowered("sgd.lr")


def test_without_an_update_there_is_nothing_to_lower():
    step = fl.stage(lambda state, x: (state.replace(step=state.step + 1), {}), "step")
    with pytest.raises(ValueError, match=r"finds no learning rate to lower.*there are: none"):
        fl.reduce_on_plateau("loss").init(step.init(nn.Linear(1, 1)), {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": 1.0},
        {"factor": 0},
        {"threshold_mode": "absolute"},
        {"mode": "lowest"},
        {"patience": -1},
        {"cooldown": 0.5},
        {"min_scale": -1.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        fl.reduce_on_plateau("loss", **wrong)


def test_a_run_goes_on_with_its_counts():
    x = torch.linspace(-1, 1, 24).reshape(24, 1)
    testing.check_resumes(
        step_of(fl.optim.sgd(0.9)),
        step_of(fl.optim.sgd(0.9)).init(nn.Linear(1, 1)),
        fl.Batches(x, 4, shuffle=False),
        steps=9,
        callbacks=lambda: [fl.reduce_on_plateau("loss", patience=1, cooldown=1)],
    )


@pytest.mark.parametrize("monitor", ["loss", "val/loss"])
def test_several_steps_in_one_call_are_the_steps_one_by_one(monitor):
    data = fl.Batches(torch.linspace(-1, 1, 24).reshape(24, 1), 4, shuffle=False)

    def run(k):
        step = fl.compile(step_of(fl.optim.sgd(0.9)), backend="aot_eager", steps=k)
        return fl.fit(
            step,
            step.init(lambda: nn.Linear(1, 1)),
            data,
            steps=12,
            callbacks=[
                fl.every(2, fl.validate(loss, data)),
                fl.reduce_on_plateau(monitor, patience=0, threshold=0.5),
            ],
        )[0]

    assert run(1) == run(4)
    assert float(run(1)["update"]["scale"]["sgd.lr"]) < 1
