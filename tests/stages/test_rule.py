from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.rules.spikes import spike
from fnloop.stages.guard import guard
from fnloop.stages.rule import RulePart, as_rule

STEP = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
STATE = STEP.init(nn.Linear(1, 1))


def limit(state, metrics, most=1.0):
    return state, {**metrics, "bad": metrics["loss"].value() > most}


def test_a_callback_is_a_rule_and_a_function_becomes_one():
    rule = spike("loss")
    assert as_rule(rule) is rule
    metrics = {"loss": fl.Mean(2.0, 1.0)}
    assert as_rule(limit)(STATE, metrics)[1]["bad"] is True
    assert as_rule(functools.partial(limit, most=3.0))(STATE, metrics)[1]["bad"] is False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spike, r"it was given spike\. Write spike\(\.\.\.\)"),
        (STEP, r"it was given update\(sgd"),
        (fl.ema(0.9), "it was given functools.partial"),
        (6.0, r"it was given 6\.0"),
    ],
)
def test_anything_else_is_refused(given, message):
    with pytest.raises(
        TypeError, match=r"guard takes a rule, which is a callback(.|\n)*" + message
    ):
        as_rule(given)


def test_a_rule_has_its_memory_before_the_first_step():
    part = RulePart(spike("loss", name="other"))
    assert (part.slot, part.label, part.describe()) == (
        "other",
        "spike",
        "spike('loss', name='other')",
    )
    assert fl.tree_equal(part.init_state(STATE), spike("loss").init_state(STATE, {}))


@fl.tree
class Late(fl.base.Callback):
    label: ClassVar[str] = "late"
    monitor: str
    name: str = "late"

    def init_state(self, state: Any, metrics: Any) -> Any:
        return torch.as_tensor(metrics[self.monitor].value())


def test_memory_that_needs_a_metric_is_an_error_that_says_why():
    step = guard(Late("loss"))(STEP)
    with pytest.raises(KeyError, match="loss") as caught:
        step.init(nn.Linear(1, 1))
    assert "late('loss') is the rule of a guard" in caught.value.__notes__[0]
