"""The formulas of `fnloop.distributed.cost`, against sums that count each message."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import fnloop as fl
from fnloop.distributed.cost import Cost, Link, Machine
from tests.distributed import forecast

MACHINE = Machine(1e12, 0.5, 8e9, 1e11, 4, Link(1e9, 1e-6), Link(1e8, 1e-5))


def messages(ranks, own):
    """Of a gather around one ring: in each turn a message passes each link; the slow one counts."""
    machines = ranks // own
    return (ranks - machines) * 1e-6 + (machines - 1) * 1e-5


@pytest.mark.parametrize("ranks", [2, 4, 8, 64])
def test_a_ring(ranks):
    own = min(ranks, 4)
    sent = 1e6 * (ranks - 1) / ranks
    speed = 1e9 if ranks <= 4 else 4e8  # four ranks of a machine send out at once
    wait = messages(ranks, own) if ranks > 4 else (ranks - 1) * 1e-6
    assert MACHINE.ring(3 * sent, 3, ranks) == pytest.approx(3 * (wait + sent / speed))


@pytest.mark.parametrize(("ranks", "inner", "outer"), [(2, 1, 0), (4, 2, 0), (8, 2, 1), (64, 2, 4)])
def test_doubling(ranks, inner, outer):
    part = 1e6 / ranks
    far = (ranks // min(ranks, 4) - 1) * part  # from the ranks of its place in other machines
    near = 1e6 - part - far
    expected = inner * 1e-6 + outer * 1e-5 + far / 1e8 + near / 1e9
    assert MACHINE.levels(1e6 - part, 1, ranks) == pytest.approx(expected)


def test_ranks_that_share_a_model_are_neighbors_and_others_far_apart():
    assert MACHINE.ring(1e6, 1, 4) < MACHINE.ring(1e6, 1, 4, apart=4)
    assert MACHINE.ring(1e6, 1, 4, apart=4) == pytest.approx(3e-5 + 1e6 / 1e8)
    assert MACHINE.ring(0, 1, 8, apart=2) == pytest.approx(4 * 1e-6 + 3 * 1e-5)


def test_a_cost_says_what_it_is_made_of():
    cost = Cost(memory=9 * 10**9, room=8e9, compute=2.0, update=0.5, exchange=1.5)
    assert not cost.fits and dataclasses.replace(cost, memory=8 * 10**9).fits
    assert (cost.seconds, cost.overlapped, cost.efficiency) == (4.0, 2.5, 0.5)
    assert "9.0 GB of 8.0 GB: too much" in str(cost)


def test_a_utilization_is_a_share():
    with pytest.raises(ValueError, match=r"share of 1e\+12 operations .* got 40"):
        dataclasses.replace(MACHINE, utilization=40)


def test_activations_count_in_the_backward_pass_only():
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.adamw(1e-3)))
    step = fl.shard(step, fl.mesh())
    told = fl.summary(step, step.init(torch.nn.Linear(100, 100)), mesh=4).sharded
    backward, after = told.working
    assert told.on(MACHINE, 1e9).memory == told.held + after
    assert told.on(MACHINE, 1e9, activations=10**6).memory == told.held + backward + 10**6
    (row,) = told.exchanges
    assert told.on(MACHINE, 1e9).exchange == MACHINE.ring(row.bytes, 2, 4)


def test_the_operations_of_a_decoder_are_those_of_the_rule():
    """6 for each parameter and token, 2 more where blocks are computed again, and attention."""
    size = forecast.MODELS["GPT-2 small"]
    with torch.device("meta"):
        model = forecast.Decoder(size)
    products = sum(p.numel() for p in model.parameters()) - model.embed.weight.numel()
    scores = 2 * size.layers * size.length * size.width
    tokens = size.length * size.sequences
    assert forecast.operations(size) == pytest.approx(8 * (products + scores) * tokens, rel=0.02)


@pytest.mark.lightning("M5", "X5")
def test_the_forecast_is_that_of_the_page():
    size = forecast.MODELS["GPT-2 small"]
    step, state = forecast.described(size, "replicate")
    told = fl.summary(step, state, mesh=4096).sharded
    needed = forecast.operations(size), forecast.activations(size)
    shares = [told.on(forecast.H100, *needed, doubling=d).efficiency for d in (False, True)]
    row = next(
        line
        for line in (forecast.IMAGE.parents[1] / "how-to" / "scale.md").read_text().splitlines()
        if line.startswith("| GPT-2 small | replicate | 0.")
    )
    ring, doubled = (cell.split(" / ")[2] for cell in row.split("|")[3:5])
    assert [f"{share:.2f}" for share in shares] == [ring.strip(), doubled.strip()]
