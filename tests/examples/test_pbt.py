"""Population-based training against grids of the same compute."""

from __future__ import annotations

import math

import pytest

import fnloop as fl

pytest.importorskip("matplotlib")


@pytest.fixture
def pbt(example):
    return example("pbt")


def test_each_method_trains_the_same_members_for_as_long(pbt, tmp_path, monkeypatch):
    monkeypatch.setitem(pbt.TASKS, "digits", lambda: pbt.digits_task(steps=34, check=17))
    found = pbt.compare(pbt.TASKS["digits"](), seeds=1)
    assert [*found] == ["grid", "grid, cosine", "population"]
    rates = {}
    for method, (result,) in found.items():
        assert 0 < result.loss < 2.0 and len(result.history.steps("val/loss[0]")) == 2
        rates[method] = [result.history[f"adamw.lr[{i}]"][-1] for i in range(8)]
    given = pytest.approx(pbt.RATES.tolist(), rel=1e-5)
    assert rates["grid"] == given
    assert rates["grid, cosine"] == pytest.approx([0.0022 * r for r in pbt.RATES.tolist()], rel=0.1)
    lineage = fl.tuning.lineage(found["population"][0].history)
    assert lineage.checks == (17, 34) and len({*lineage.founders}) < 8
    assert pbt.table(found).splitlines()[3].startswith("population")
    lineage.plot(["val/loss", "adamw.lr"], found["population"][0].member, tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_gpt_has_a_population(pbt):
    task = pbt.gpt_task(steps=2, check=1, compiled=False)
    result = pbt.train(task, pbt.step_of(task, falls=False), True, seed=0)
    assert math.isfinite(result.loss) and 3 < result.loss < 5.5
