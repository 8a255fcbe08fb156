"""The clock of stages: it changes no bit, and its times add up."""

from __future__ import annotations

import time

import pytest
import torch

import fnloop as fl
from fnloop.profiling.stage_clock import IN_PLACE, StageClock, clocked

from .planted import X, Y, loss, made, network

CPU = torch.device("cpu")


def pipelines():
    adam, both = (
        fl.update(fl.optim.adam(1e-3)),
        fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(1e-3)),
    )
    yield fl.pipe(loss, fl.grad, fl.accumulate(2), fl.amp("fp16"), fl.update(both), fl.ema(0.9))
    yield fl.sequence(
        a=fl.pipe(loss, fl.grad(only="0"), adam), b=fl.pipe(loss, fl.grad(only="2"), adam)
    )
    yield fl.ensemble(fl.pipe(loss, fl.grad, adam), 2)
    yield fl.pipe(loss, fl.grad, fl.update(both), fl.guard(fl.rules.spike("loss")))


@pytest.mark.parametrize("number", range(4))
def test_a_clocked_step_has_the_same_bits(number):
    step = list(pipelines())[number]
    state = step.init(network, seed=0)
    clock = StageClock(CPU)
    with clock.running():
        timed, metrics = clocked(step)(state, (X, Y))
        clock.end_step()
    plain, reported = step(state, (X, Y))
    assert fl.tree_equal(timed, plain) and fl.tree_equal(metrics, reported)
    outside, _ = clocked(step)(state, (X, Y))  # without a clock
    assert fl.tree_equal(outside, plain)
    assert clock.times()[0].role == "loss" and all(t.seconds >= 0 for t in clock.times())


def test_times_add_up_to_the_whole():
    step, state = made()
    step, clock = clocked(step), StageClock(CPU)
    with clock.running():
        step(state, (X, Y))
        clock.end_step()
        start = time.perf_counter()
        step(state, (X, Y))
        whole = time.perf_counter() - start
        clock.end_step()
    own = sum(stage.seconds for stage in clock.times())
    assert 0 < own <= whole


def test_the_shortest_of_the_last_steps_counts():
    clock = StageClock(CPU)
    for seconds in (0.0, 0.03, 0.01, 0.03):
        with clock.within("a", "step"):
            time.sleep(seconds)
        clock.end_step()
    (found,) = clock.times(last=3)
    assert found.seconds >= 0.01 and found.calls == 1


def test_the_time_of_what_is_inside_is_not_ones_own():
    clock, start = StageClock(CPU), time.perf_counter()
    with clock.within("outer", "step"), clock.within("inner", "grad"):
        assert (clock.stage, clock.role) == ("inner", "grad")
        time.sleep(0.02)
    whole = time.perf_counter() - start
    clock.end_step()
    inner, outer = clock.times()
    assert inner.seconds >= 0.02 and [inner.name, outer.name] == ["inner", "outer"]
    assert outer.seconds <= whole - 0.02


def test_what_is_written_in_place_has_a_row():
    step, _ = made()
    wide = torch.nn.Linear(16, 4096)
    state = step.init(torch.nn.Sequential(wide, torch.nn.Linear(4096, 1)))
    run, clock = clocked(step.donating()), StageClock(CPU)
    state = state.replace()
    with clock.running():
        for _ in range(3):
            state, _ = run(state, (X, Y))
            clock.end_step()
    assert [stage.name for stage in clock.times()][-1] == IN_PLACE


def test_an_error_leaves_the_clock():
    clock = StageClock(CPU)
    with pytest.raises(KeyError), clock.within("a", "step"):
        raise KeyError
    assert clock.role is None and clock.stage == ""
