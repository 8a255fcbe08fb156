"""``fl.tuning.halving``: the better half goes on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from fnloop.loop import fit as fitting
from fnloop.tuning import successive
from fnloop.tuning.halving_result import by_score, sizes

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
RATES = torch.logspace(-4, 1, 9).tolist()


def data():
    return fl.Batches((X[:64], Y[:64]), 16, seed=0)


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


VALIDATION = fl.validate(loss, fl.Batches((X[64:], Y[64:]), 32, shuffle=False))


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def swept():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1, momentum=0.9)))
    return fl.sweep(step, {"sgd.lr": RATES})


def halved(**options):
    many = swept()
    options = {"rungs": (4, 12, 36), **options}
    return fl.tuning.halving(many, many.init(network), data(), VALIDATION, **options)


@pytest.fixture(scope="module")
def whole():
    """The full sweep, and what it cost."""
    many = swept()
    states, _ = fl.fit(many, many.init(network), data(), steps=72, progress=False)
    return states, VALIDATION(states, {})[1]["val/loss"].value().tolist()


def test_it_finds_the_best_of_the_full_sweep_for_less(whole):
    states, scores = whole
    found = halved(rungs=(8, 24, 72))
    assert found.best == scores.index(min(scores))
    assert [len(rung.members) for rung in found.rungs] == [9, 3, 1]
    assert found.cost == 9 * 8 + 3 * 16 + 1 * 48 == 168
    assert found.whole_cost == 9 * 72 == 648
    assert found.rungs[-1].scores[0] == pytest.approx(scores[found.best], abs=1e-5)
    mine, other = found.state, fl.member(states, found.best)
    for name in mine.params:
        torch.testing.assert_close(mine.params[name], other.params[name], rtol=1e-4, atol=1e-5)
    assert fl.tree_equal(mine.cursor, other.cursor) and mine.slots.keys() == other.slots.keys()
    state, metrics = found.step(found.state, (X[:16], Y[:16]))
    assert int(state.step) == 73 and float(metrics["sgd.lr"]) == pytest.approx(RATES[found.best])


def test_those_who_go_on_are_the_best_of_each_rung():
    found = halved(monitor="val/accuracy", mode="max")
    for rung, following in itertools.pairwise(found.rungs):
        order = sorted(rung.members, key=lambda m: -rung.scores[rung.members.index(m)])
        assert set(following.members) <= set(rung.members)
        worst = min(rung.scores[rung.members.index(m)] for m in following.members)
        left = [m for m in order if m not in following.members]
        assert all(rung.scores[rung.members.index(m)] <= worst for m in left)
    assert found.ranking[0] == found.rungs[-1].members[0] and sorted(found.ranking) == [*range(9)]


@pytest.mark.parametrize("n", [2, 3, 8, 9, 27, 81])
@pytest.mark.parametrize("eta", [2, 3, 4])
def test_a_budget_is_divided_as_in_the_paper(n, eta):
    """Jamieson & Talwalkar (2016), figure 3, for any eta: r_k = B / (|S_k| ceil(log_eta n))."""
    rungs = math.ceil(round(math.log(n, eta), 9))
    counts, plan = successive._planned(n, eta, None, budget=1000)
    assert counts == sizes(n, eta) and len(counts) in (rungs, max(rungs - 1, 1))
    parts = [b - a for a, b in itertools.pairwise([0, *plan])]
    assert parts == [1000 // (size * len(counts)) for size in counts]
    assert sum(p * size for p, size in zip(parts, counts, strict=True)) <= 1000
    assert counts[0] == n and (counts[-1] < eta * 2 or len(counts) == 1)


def test_states_of_a_run_go_on_and_stay_as_they_are():
    many = swept()
    states, _ = fl.fit(many, many.init(network), data(), steps=5, progress=False)
    before = fl.tree_map(torch.clone, states)
    found = fl.tuning.halving(many, states, data(), VALIDATION, budget=9 * 2 * 10, progress=False)
    assert fl.tree_equal(states, before)
    assert [rung.batches for rung in found.rungs] == [10, 10 + 30]
    assert int(found.state.step) == 45 and found.state.cursor.tolist()[2] == 45


@pytest.mark.slow
def test_compiled():
    many = swept()
    step = fl.compile(many, donate=True, backend="aot_eager")
    found = fl.tuning.halving(step, many.init(network), data(), VALIDATION, rungs=(4, 12))
    plain = halved(rungs=(4, 12))
    assert [rung.members for rung in found.rungs] == [rung.members for rung in plain.rungs]
    assert found.rungs[-1].scores == pytest.approx(plain.rungs[-1].scores, abs=1e-4)


def test_it_is_resumed_to_the_bit(tmp_path, monkeypatch):
    whole = halved()
    trained: list[int] = []

    def counted(step, states, given, **options):
        if len(trained) == 1 and not (tmp_path / "again").exists():  # killed in the second rung
            (tmp_path / "again").touch()
            options["steps"] -= 5
            fitting.fit(step, states, given, **options)
            raise OSError("the machine is gone")
        before = int(states.cursor[2])
        state, history = fitting.fit(step, states, given, **options)
        resumed = history.resumed.cursor.count if history.resumed else before
        trained.append(int(state.cursor[2]) - resumed)
        return state, history

    monkeypatch.setattr(successive, "fit", counted)
    with pytest.raises(OSError, match="gone"):
        halved(folder=tmp_path)
    found = halved(folder=tmp_path)
    assert trained == [4, 5, 24]
    assert found.rungs == whole.rungs and fl.tree_equal(found.state, whole.state)
    again = halved(folder=tmp_path)
    assert trained == [4, 5, 24] and fl.tree_equal(again.state, whole.state)
    other = halved(folder=tmp_path, monitor="val/accuracy", mode="max")  # others may go on
    assert other.rungs[0].members == whole.rungs[0].members


def test_the_table_and_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = halved()
    lines = found.table().splitlines()
    assert lines[0].split() == ["member", "sgd.lr", "after", "4", "after", "12", "after", "36"]
    assert lines[1].split()[0] == str(found.best) and lines[1].endswith("<- best")
    assert len(lines) == 10 and len(found.table(rows=2).splitlines()) == 3
    assert repr(found).startswith(f"halving: member {found.best}, sgd.lr = ")
    assert "9 > 3 > 1 members; 84 batches, of 324" in repr(found)
    figure = found.plot(tmp_path / "halving.png")
    bar = figure.axes[1]
    assert bar.get_ylabel() == "sgd.lr" and bar.get_yscale() == "log"
    (best,) = figure.legends[0].get_texts()
    rate = found.values["sgd.lr"][found.best]
    assert best.get_text() == f"member {found.best}, the best, sgd.lr = {rate:.3g}"
    assert (tmp_path / "halving.png").stat().st_size > 5000


def test_nan_is_worst():
    assert by_score((math.nan, math.inf, 2.0), "min") == [2, 1, 0]
    assert by_score((math.nan, -math.inf, 2.0), "max") == [2, 1, 0]


def test_where_all_are_nan_there_is_no_best():
    many = swept()
    nan = fl.validate(lambda m, batch: loss(m, batch)[0] * math.nan, data())
    found = fl.tuning.halving(many, many.init(network), data(), nan, rungs=(2, 4, 6))
    assert "there is no best member: val/loss is nan for all" in repr(found)
    assert "best" not in found.table()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rungs": None}, TypeError, "either rungs="),
        ({"budget": 100}, TypeError, "either rungs="),
        ({"rungs": (10, 10)}, ValueError, "growing numbers"),
        ({"rungs": ()}, ValueError, "growing numbers"),
        ({"rungs": None, "budget": 17}, ValueError, "at least 18"),
        ({"eta": 1}, ValueError, "at least 2"),
        ({"monitor": "val/los"}, ValueError, "It adds: val/loss, val/accuracy"),
    ],
    ids=str,
)
def test_errors(options, error, words):
    with pytest.raises(error, match=words):
        halved(**options)


def test_it_takes_a_population():
    single = swept().member(0)
    with pytest.raises(TypeError, match="a step of many runs"):
        fl.tuning.halving(single, single.init(network), data(), VALIDATION, rungs=(1,))


def test_data_that_ends():
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="ended after 4 of 8"):
        many = swept()
        fl.tuning.halving(many, many.init(network), iter([*data()]), VALIDATION, rungs=(8,))
