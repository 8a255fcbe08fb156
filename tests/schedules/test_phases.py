from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules

from fnloop.schedules.decay import constant, cosine, exponential, linear
from fnloop.schedules.phases import join, one_cycle, warmup_stable_decay
from fnloop.trees.nodes import tree


def torch_values(make, lr, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    values = []
    for step in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return values


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.45])
@pytest.mark.parametrize("steps", [100, 333])
def test_one_cycle_is_that_of_torch(three_phase, anneal, pct_start, steps):
    schedule = one_cycle(0.3, steps, pct_start, 20.0, 500.0, anneal=anneal, three_phase=three_phase)
    theirs = torch_values(
        lambda o: torch_schedules.OneCycleLR(
            o,
            0.3,
            total_steps=steps,
            pct_start=pct_start,
            anneal_strategy=anneal,
            cycle_momentum=False,
            div_factor=20.0,
            final_div_factor=500.0,
            three_phase=three_phase,
        ),
        0.1,
        steps,
    )
    assert [schedule(s) for s in range(steps)] == pytest.approx(theirs, rel=1e-9, abs=1e-13)
    assert schedule(10 * steps) == pytest.approx(theirs[-1], rel=1e-9)


def test_join_is_sequential_lr():
    schedule = join(
        (linear(0.01, 0.1, steps=20), constant(0.1), exponential(0.1, 0.9)), boundaries=(20, 50)
    )
    theirs = torch_values(
        lambda o: torch_schedules.SequentialLR(
            o,
            [
                torch_schedules.LinearLR(o, 0.1, 1.0, total_iters=20),
                torch_schedules.ConstantLR(o, 1.0),
                torch_schedules.ExponentialLR(o, 0.9),
            ],
            milestones=[20, 50],
        ),
        0.1,
        200,
    )
    assert [schedule(s) for s in range(200)] == pytest.approx(theirs, rel=1e-9)


def test_join_does_not_leave_a_part_s_own_steps():
    schedule = join((exponential(1.0, 2.0), exponential(1.0, 0.5)), boundaries=(4,))
    assert [schedule(step) for step in (0, 3, 4, 5)] == [1.0, 8.0, 1.0, 0.5]
    assert schedule(100_000) == 0.0  # 2 ** 100_000 would not be a float
    assert float(schedule(torch.tensor(100_000))) == 0.0


def test_join_takes_any_tree_that_is_callable():
    @tree
    class double:
        factor: float

        def __call__(self, step):
            return self.factor * step

    schedule = join([constant(1.0), double(2.0)], [10])
    assert schedule(9) == 1.0 and schedule(13) == 6.0
    assert schedule(torch.tensor(13)) == torch.tensor(6.0)


def test_warmup_stable_decay_by_hand():
    schedule = warmup_stable_decay(4.0, steps=20, warmup=4, decay=8, end=2.0)
    points = {0: 0.0, 1: 1.0, 4: 4.0, 12: 4.0, 14: 3.5, 16: 3.0, 20: 2.0, 1000: 2.0}
    assert {step: schedule(step) for step in points} == pytest.approx(points)
    assert warmup_stable_decay(4.0, steps=20, warmup=0, decay=0)(0) == 4.0


SCHEDULES = [
    constant(0.3),
    linear(0.1, 0.2, steps=50, warmup=7),
    cosine(3e-4, steps=200, warmup=10, end=1e-6),
    exponential(0.1, 0.99, steps=3),
    one_cycle(0.1, 150),
    one_cycle(0.1, 150, three_phase=True, anneal="linear"),
    warmup_stable_decay(0.1, 150, warmup=10, decay=50),
    join((linear(0.0, 1.0, steps=20), cosine(1.0, 100)), (20,)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_tensor_gives_the_same_as_an_int(schedule):
    ours = torch.stack([schedule(torch.tensor(step)) for step in range(200)])
    expected = torch.tensor([schedule(step) for step in range(200)], dtype=torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-14, atol=1e-17)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_under_vmap(schedule):
    steps = torch.arange(0, 200, 7)
    expected = torch.tensor([schedule(int(step)) for step in steps], dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(schedule)(steps), expected, rtol=1e-14, atol=1e-17)


def test_compiled_in_one_graph_that_serves_every_step():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(
        lambda step: [schedule(step) for schedule in SCHEDULES], backend=backend, fullgraph=True
    )
    for step in (0, 15, 120):
        expected = [torch.tensor(schedule(step), dtype=torch.float64) for schedule in SCHEDULES]
        torch.testing.assert_close(compiled(torch.tensor(step)), expected, rtol=1e-14, atol=1e-17)
    assert len(graphs) == 1


def test_values_can_be_swept_and_differentiated():
    peaks = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    make = lambda peak: cosine(peak, steps=100, warmup=10)  # noqa: E731
    swept = torch.func.vmap(lambda peak, step: make(peak)(step), (0, None))
    expected = torch.tensor([make(float(peak))(30) for peak in peaks], dtype=torch.float64)
    torch.testing.assert_close(swept(peaks, torch.tensor(30)), expected)
    torch.testing.assert_close(swept(peaks, 30), expected)
    slope = torch.func.grad(lambda peak: make(peak)(torch.tensor(30)))(peaks[1])
    torch.testing.assert_close(slope, torch.tensor(make(1.0)(30), dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: one_cycle(1.0, steps=1), ValueError, "at least 2, got 1"),
        (lambda: one_cycle(1.0, 100, anneal="cosine"), ValueError, '"cos" or "linear"'),
        (lambda: one_cycle(1.0, 100, pct_start=1.5), ValueError, "each phase has a step"),
        (lambda: one_cycle(1.0, 100, pct_start=0.6, three_phase=True), ValueError, "0.5"),
        (lambda: one_cycle(1.0, 10, pct_start=0.1), ValueError, "0.1"),
        (lambda: warmup_stable_decay(1.0, 10, 6, 6), ValueError, "6 \\+ 6 steps"),
        (lambda: warmup_stable_decay(1.0, 10, -1, 6), ValueError, "warmup"),
        (lambda: join((constant(1.0), constant(2.0)), ()), ValueError, "1 for 2 schedules; got 0"),
        (lambda: join((constant(1.0), constant(2.0)), (0,)), ValueError, "increase"),
        (lambda: join((constant(1.0),) * 3, (9, 5)), ValueError, "increase"),
        (lambda: join((1.0, constant(2.0)), (5,)), TypeError, "constant\\(1.0\\)"),
    ],
)
def test_nonsense_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
