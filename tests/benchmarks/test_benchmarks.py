"""The benchmarks run; and (slow) fnloop is as fast as it says."""

from __future__ import annotations

import itertools
import math

import pytest

from . import extras, steps
from .__main__ import main
from .problems import PROBLEMS
from .timing import interleave, summary, table


def test_paired_figures():
    times = {"a": iter([0.0, 2e-6, 4e-6, 6e-6]), "b": iter([0.0, 3e-6, 5e-6, 12e-6])}
    blocks = {name: lambda n, each=each: next(each) * n for name, each in times.items()}
    samples = interleave(blocks, rounds=3, steps=10, warmup=1)
    assert samples["b"] == pytest.approx([3, 5, 12])
    a, b = summary(samples, baseline="a")
    assert (a.name, a.ratio, a.extra) == ("a *", 1.0, 0.0)
    assert (b.median, b.least) == pytest.approx((5, 3))
    assert b.ratio == pytest.approx(1.5)  # of 3/2, 5/4, 12/6
    assert b.extra == pytest.approx(1)  # of 1, 1, 6
    assert table("title", [a, b]).splitlines()[2].split()[:2] == ["a", "*"]


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_all_contenders_train_the_same_model(name):
    problem = PROBLEMS[name]()
    rows = steps.compare(problem, rounds=1, seconds=1e-4)
    assert len(rows) == len(steps.contenders(problem))
    assert all(math.isfinite(row.median) and row.median > 0 for row in rows)
    assert [row.name.startswith("by hand") for row in rows if row.name.endswith("*")] == [True]


@pytest.mark.parametrize("name", ["run", "fit", "fit, all with JSONL"])
def test_extras_are_timed_from_batch_to_batch(name, tmp_path):
    looks = itertools.count()
    block = extras.contenders(PROBLEMS["mlp"](), lambda: next(looks), tmp_path)[name]
    assert block(3) == 3  # a look at the clock for each step, and none for opening and closing


def test_the_command_prints_tables(capsys):
    main(["step", "--problem", "mlp", "--rounds", "1"])
    assert "fnloop, run" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_step_costs_no_more_than_one_written_by_hand(name):
    ratios = {row.name: row.ratio for row in steps.compare(PROBLEMS[name](), rounds=100)}
    assert ratios["fnloop, run"] <= 1.05


@pytest.mark.slow
def test_fit_with_everything_costs_less_than_25_us_a_step():
    rows = {row.name: row for row in extras.compare(PROBLEMS["mlp"](), rounds=30)}
    assert rows["fit, all with Aim"].extra < 25
    assert rows["fit, all with JSONL"].extra < 25
