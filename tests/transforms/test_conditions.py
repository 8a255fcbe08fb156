"""Conditions that only decide whether a step raises: recorded, and looked at after it has run.

PYTEST_DONT_REWRITE: the losses here have the bytecode that Python makes of an assert.
"""

from __future__ import annotations

import contextlib
import linecache
import re

import pytest
import torch
from torch import nn

import fnloop as fl


def compiled(loss, **options):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return fl.compile(step, backend="aot_eager", **options), step.init(nn.Linear(4, 2))


def asserts(model, x):
    assert torch.isfinite(x).all(), f"{x} is not finite"
    return model(x).square().mean()


def asserts_not(model, x):
    assert not (x.isnan().any())
    return model(x).square().mean()


def asserts_several(model, x):
    assert x.min() > -9 and not x.isnan().any() and x.max() < 9
    return model(x).square().mean()


def asserts_a_chain(model, x):
    assert -9 < x.min() <= x.max() < 9
    return model(x).square().mean()


def asserts_an_item(model, x):
    assert x.isfinite().all().item()
    return model(x).square().mean()


def asserts_not_an_item(model, x):
    assert not x.isnan().any().item()
    return model(x).square().mean()


def asserts_items(model, x):
    assert not x.isnan().any().item() and x.isfinite().all().item(), x
    return model(x).square().mean()


def asserts_neither(model, x):
    assert not (x.isnan().any() or x.isinf().any())
    return model(x).square().mean()


def raises(model, x):
    if not x.isfinite().all():
        message = "not finite"
        raise ValueError(message)
    return model(x).square().mean()


def raises_otherwise(model, x):
    if x.isfinite().all():
        return model(x).square().mean()
    raise ValueError("not finite")


def raises_one_of_two(model, x):
    if x.isnan().any():
        if len(x) > 2:
            raise ValueError("nan")
        raise KeyError("nan")
    return model(x).square().mean()


def asserts_by_torch(model, x):
    torch._assert(x.isfinite().all(), "not finite")
    return model(x).square().mean()


# `torch.compile`, once it has run, turns this validation off for the whole process.
def asserts_by_a_distribution(model, x):
    return -torch.distributions.Normal(model(x), 1.0, validate_args=True).log_prob(x[:, :2]).mean()


def asserts_and_writes_over(model, x):
    fine = x.isfinite().all()
    assert fine
    fine.fill_(False)
    return model(x).square().mean()


ASSERTING = (
    asserts, asserts_not, asserts_several, asserts_a_chain, asserts_an_item, asserts_not_an_item,
    asserts_items, asserts_neither, raises, raises_otherwise, raises_one_of_two, asserts_by_torch,
    asserts_by_a_distribution, asserts_and_writes_over,
)  # fmt: skip


@pytest.mark.parametrize("loss", ASSERTING, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("donate", [False, True])
def test_what_only_raises_is_recorded_and_raises_after_the_step(loss, donate):
    step, state = compiled(loss, donate=donate)
    good, bad = torch.linspace(-1, 1, 12).reshape(3, 4), torch.full((3, 4), torch.nan)
    expected, _ = step.inner(state, good)
    kept = fl.tree_map(torch.clone, state)
    with pytest.raises((AssertionError, ValueError)):
        step.inner(state, bad)
    with pytest.raises(
        AssertionError, match=rf"test_conditions\.py, line \d+, in {loss.__name__}: "
    ):
        step(state, bad)
    assert fl.tree_equal(kept, state)  # nothing was written, also if it was given away
    got, _ = step(state, good)
    assert step.graphs == 1
    for name, value in expected.params.items():
        torch.testing.assert_close(got.params[name], value)


def test_the_librarys_line_is_named_with_the_users():
    step, state = compiled(asserts_by_a_distribution)
    with pytest.raises(AssertionError) as caught:
        step(state, torch.full((3, 4), torch.nan))
    assert re.search(r"distribution\.py, line \d+, in .*\n  test_conditions\.py", str(caught.value))


def one_is_enough(model, x):
    assert x.min() > -9 or x.max() > 9
    return model(x).square().mean()


def any_is_enough(model, x):
    assert any([x.min() > 0, x.max() < 9])
    return model(x).square().mean()


def counts(model, x):
    assert [x.min() < 9].count(True)
    return model(x).square().mean()


def compares_items(model, x):
    assert x.isnan().any().item() == x.isinf().any().item()
    return model(x).square().mean()


def finds(model, x):
    assert (x.sum() * 0) in [x.sum(), x.sum() * 0]
    return model(x).square().mean()


def chooses(model, x):
    return model(x).square().mean() * (1 if x.min() < 9 else 2)


def does_more(model, x):
    if x.min() > 9:
        x = x / 9
    return model(x).square().mean()


def tries(model, x):
    try:
        assert x.min() < -9
    except AssertionError:
        return 2 * model(x).square().mean()
    return model(x).square().mean()


def tries_further_out(model, x):
    try:
        asserts(model, x / 0)
    except AssertionError:
        x = 2 * x
    return model(x).square().mean()


def suppresses(model, x):
    with contextlib.suppress(AssertionError):
        assert x.min() < -9
        x = x / 2
    return model(x).square().mean()


def suppresses_a_call(model, x):
    with contextlib.suppress(AssertionError):
        return asserts(model, x)
    return model(x).square().mean()


CHOOSING = (
    one_is_enough, any_is_enough, counts, compares_items, finds, chooses, does_more, tries,
    tries_further_out, suppresses, suppresses_a_call,
)  # fmt: skip


@pytest.mark.parametrize("loss", CHOOSING, ids=lambda loss: loss.__name__)
def test_what_makes_a_choice_is_refused(loss):
    step, state = compiled(loss)
    with pytest.raises(fl.errors.CompileError, match="a value of a tensor is asked for"):
        step(state, torch.ones(3, 4))


def typed(body):
    """A loss whose text cannot be looked up, as in a shell."""
    names = {"torch": torch}
    exec(f"def loss(model, x):\n    {body}\n    return model(x).mean()", names)
    return names["loss"]


def test_code_without_a_text_is_recorded_unless_it_may_catch(monkeypatch):
    command = "import torch\n"  # as Python 3.13 notes the text of python -c
    monkeypatch.setitem(linecache.cache, "<string>", (len(command), None, [command], "<string>"))
    step, state = compiled(typed("assert x.min() < 9"))
    step(state, torch.ones(3, 4))
    with pytest.raises(AssertionError, match="does not hold"):
        step(state, torch.full((3, 4), 9.0))
    step, state = compiled(typed("with torch.no_grad(): assert x.min() < 9"))
    with pytest.raises(fl.errors.CompileError, match="a value of a tensor is asked for"):
        step(state, torch.ones(3, 4))


def test_a_stage_that_catches_makes_a_choice():
    @fl.tree
    class Patient(fl.base.GradStage):
        wraps = "grad"
        label = "patient"
        inner: object

        def __call__(self, state, x):
            try:
                return self.inner(state, x)
            except AssertionError:
                return self.inner(state, x.nan_to_num())

    step = fl.pipe(asserts, fl.grad, Patient, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(4, 2))
    with pytest.raises(fl.errors.CompileError, match="a value of a tensor is asked for"):
        fl.compile(step, backend="aot_eager")(state, torch.ones(3, 4))
    step(state, torch.full((3, 4), torch.nan))
