from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch

from fnloop.effects.points import Points, reason_in, subset_of
from fnloop.values.cursor import Cursor
from fnloop.values.merging import merge, merge_all, numbers, numbers_of
from fnloop.values.metrics import Last, Max, Mean, Min, Sum, stop
from fnloop.values.start import start


def parts(n: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    result: list[dict[str, Any]] = []
    for i in range(n):
        value = torch.rand((), generator=generator)
        part: dict[str, Any] = {
            "loss": Mean(value * 3, torch.tensor(3)),
            "plain": Mean(float(i), 2),
            "half": Mean(value.bfloat16(), torch.tensor(1.5, dtype=torch.float64)),
            "many": Mean(torch.rand(4, generator=generator), torch.tensor(3)),
            "count": Sum(torch.tensor(i)),
            "low": Min(value),
            "high": Max(value),
            "lr": Last(value),
            "mixed": Sum(value if i % 2 else 1.0),
        }
        if i % 3 == 0:
            part["rare"] = Sum(1)
        result.append(part)
    return result


@pytest.mark.parametrize("n", [1, 2, 7])
def test_fold_is_merge(n: int) -> None:
    folded, merged = merge_all(parts(n)), merge(parts(n))
    assert list(folded) == list(merged)
    assert numbers(folded) == pytest.approx(numbers(merged), rel=1e-12)
    assert torch.allclose(folded["many"].value().double(), merged["many"].value().double())


def test_ten_thousand_small_losses_are_not_rounded_away() -> None:
    part = {"loss": Sum(torch.tensor(0.1))}
    exact = 100_000 * float(torch.tensor(0.1))
    assert float(merge_all([part] * 100_000)["loss"]) == pytest.approx(exact, rel=1e-10)
    many = {"loss": Sum(torch.full((2,), 0.1))}
    assert merge_all([many] * 10_000)["loss"].value().tolist() == pytest.approx(
        [exact / 10] * 2, rel=1e-10
    )


def test_numbers_of_is_numbers_of_each() -> None:
    scalars = [{k: m for k, m in part.items() if k != "many"} for part in parts(3)]
    assert numbers_of(scalars) == [numbers(part) for part in scalars]
    assert [list(row) for row in numbers_of(scalars)] == [list(part) for part in scalars]
    assert numbers_of([]) == []


def test_windows_beyond_the_memory_bound_lose_nothing() -> None:
    state, points = start(torch.nn.Linear(2, 1)), Points(every=1000, fold_after=4)
    for n in range(1, 31):
        moved = state.replace(cursor=Cursor(0, n, n).tensor())
        assert points.add(moved, {"loss": Mean(torch.tensor(float(n)), torch.tensor(1))}) is None
    peeked, rest = points.peek(), points.rest()
    assert peeked is not None
    assert rest is not None
    assert (rest.epoch, rest.step, float(rest.metrics["loss"])) == (1, 30, 15.5)
    assert float(peeked.metrics["loss"]) == 15.5
    assert points.rest() is None


def test_adding_costs_microseconds() -> None:
    state, points = start(torch.nn.Linear(2, 1)), Points(every=50)
    states = [state.replace(cursor=Cursor(0, n, n).tensor()) for n in range(1, 51)]
    metrics = [{"loss": Mean(torch.tensor(1.0), torch.tensor(32)), "lr": Last(0.1)} for _ in states]
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for moved, part in zip(states, metrics, strict=True):
            points.add(moved, part)
        best = min(best, time.perf_counter() - began)
    assert best / len(states) < 15e-6  # merging pair by pair takes more


def test_the_reason_of_a_stop() -> None:
    metrics = {"a": stop(False, "no"), "b": stop(torch.tensor(True), "val/loss did not improve")}
    assert reason_in(metrics, "stopped") == "val/loss did not improve"
    assert reason_in(metrics, "completed") == ""
    assert reason_in({}, "stopped") == ""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val/loss", ("loss", "val")),
        ("val_2/top/5", ("top/5", "val_2")),
        ("test/loss", ("loss", "test")),
        ("value/mean", ("value/mean", "train")),
        ("testing/x", ("testing/x", "train")),
        ("val/", ("val/", "train")),
    ],
)
def test_subsets(name: str, expected: tuple[str, str]) -> None:
    assert subset_of(name) == expected


def test_short_epochs_make_one_point_each_unless_a_rhythm_is_given():
    whole = 1 << 62
    for every, batches, expected in (
        (None, 99, whole),
        (None, 100, 50),
        (None, None, 50),
        (7, 9, 7),
    ):
        points = Points(every)
        points.open(batches)
        assert points.every == expected


def steps_of(points: Points, reports: dict[int, str]) -> list[int]:
    """At which of these steps, each with the names that it reports, a point ends."""
    state, ended = start(torch.nn.Linear(2, 1)), []
    for count, names in reports.items():
        moved = state.replace(cursor=Cursor(0, count, count).tensor())
        if points.add(moved, {name: Mean(1.0, 1) for name in names.split()}):
            ended.append(count)
    return ended


@pytest.mark.parametrize("cut", range(7))
def test_a_resumed_run_has_its_points_at_the_same_steps(cut: int) -> None:
    every = ["loss a/loss"] * 6
    for rare in ("b/loss", "val/loss"):
        for n in (2, 3):  # of which the first may be the first step after the resume
            reports = {
                i: f"{names} {rare}" if i % n == 0 else names for i, names in enumerate(every, 1)
            }
            before, after = Points(100), Points(100)
            first = steps_of(before, {i: reports[i] for i in reports if i <= cut})
            after.recall(before.memo(), before.always)
            rest = steps_of(after, {i: reports[i] for i in reports if i > cut})
            assert first + rest == [i for i in reports if i % n == 0]


def test_what_the_step_itself_reports_now_and_then_ends_no_point() -> None:
    points = Points(4)
    points.open(None, reported={"loss", "b/loss"})
    reports = {i: "loss b/loss" if i % 2 == 0 else "loss" for i in range(1, 9)}
    assert steps_of(points, {**reports, 7: "loss val/loss"}) == [4, 7, 8]


def test_a_name_that_is_new_in_a_resumed_run_does_not_end_a_point_at_each_step() -> None:
    points = Points(100)
    steps_of(points, {1: "loss a/loss", 2: "loss a/loss"})
    memo, always = points.memo(), points.always
    points.recall(memo, always)
    assert steps_of(points, {i: "loss c/loss" for i in range(3, 9)}) == [3]


@pytest.mark.lightning("D1", "K2")
@pytest.mark.parametrize("cut", range(7))
def test_a_resumed_run_loses_no_metric_that_came_before_it(cut: int) -> None:
    state = start(torch.nn.Linear(2, 1))
    reports: list[dict[str, Any]] = [{"loss": Mean(float(i), 2)} for i in range(6)]
    for i, more in (
        (1, {"rare": Sum(3.0), "least": Min(torch.tensor(2.0))}),
        (4, {"rare": Sum(4.0)}),
    ):
        reports[i] |= more
    before, after = Points(6), Points(6)

    def add(points: Points, i: int) -> Any:
        return points.add(state.replace(cursor=Cursor(0, i + 1, i + 1).tensor()), reports[i])

    found = [add(before, i) for i in range(cut)]
    after.recall(json.loads(json.dumps(before.memo())), before.always)
    assert json.dumps(after.memo()) == json.dumps(before.memo())
    found += [add(after, i) for i in range(cut, 6)]
    assert [point is not None for point in found] == [False] * 5 + [True]
    assert numbers(found[-1].metrics) == {"loss": 1.25, "rare": 7.0, "least": 2.0}
