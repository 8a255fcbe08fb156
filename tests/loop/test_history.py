from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.effects.effect import Run
from fnloop.trees.json_codec import from_text, to_text
from fnloop.trees.nodes import tree
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Last, Mean, Metric, stop
from fnloop.values.start import start
from fnloop.values.state import State

History = fl.History


@pytest.fixture(scope="module")
def state() -> State:
    return start(torch.nn.Linear(2, 1))


def fill(
    history: History, state: State, counts: range, batches: int = 10, status: str = "completed"
) -> History:
    history.open(Run(step=None, state=state))
    for count in counts:
        epoch, index = divmod(count, batches)
        metrics: dict[str, Any] = {
            "loss": Mean(torch.tensor(float(count)), torch.tensor(1)),
            "lr": Last(0.1),
        }
        if count % 15 == 0:
            metrics["val/loss"] = Mean(torch.tensor(200.0), torch.tensor(10))
        history(state.replace(cursor=Cursor(epoch, index, count).tensor()), metrics)
    history.close(status)
    return history


@pytest.mark.lightning("M6")
def test_rows_series_and_steps(state: State) -> None:
    history = fill(History(every=4), state, range(1, 18))
    assert history.rows == [
        {"epoch": 1, "step": 4, "loss": 2.5, "lr": 0.1},
        {"epoch": 1, "step": 8, "loss": 6.5, "lr": 0.1},
        {"epoch": 1, "step": 10, "loss": 9.5, "lr": 0.1},
        {"epoch": 2, "step": 12, "loss": 11.5, "lr": 0.1},
        {"epoch": 2, "step": 15, "loss": 14.0, "lr": 0.1, "val/loss": 20.0},
        {"epoch": 2, "step": 16, "loss": 16.0, "lr": 0.1},
        {"epoch": 2, "step": 17, "loss": 17.0, "lr": 0.1},
    ]
    assert list(history) == history.rows
    assert len(history) == 7
    assert history["loss"] == [2.5, 6.5, 9.5, 11.5, 14.0, 16.0, 17.0]
    assert history.steps("loss") == [4, 8, 10, 12, 15, 16, 17]
    assert (history["val/loss"], history.steps("val/loss")) == ([20.0], [15])
    assert history[-1] == history.rows[-1]
    assert history[1:3] == history.rows[1:3]
    assert history.names == ["loss", "lr", "val/loss"]
    assert "val/loss" in history
    assert "loss2" not in history
    assert history.status == "completed"


def test_an_unknown_name_names_the_known_ones(state: State) -> None:
    history = fill(History(), state, range(1, 3))
    with pytest.raises(KeyError, match=r"there are: loss, lr. Did you mean 'loss'"):
        history["los"]
    with pytest.raises(KeyError, match="there are: none"):
        History()["loss"]


@pytest.mark.lightning("M7")
def test_status_and_reason(state: State) -> None:
    history = History()
    history.open(Run(step=None, state=state))
    assert history.status == "running"
    moved = state.replace(cursor=Cursor(0, 1, 1).tensor())
    history(moved, {"loss": Mean(1.0, 1), "stop": stop(True, "no improvement")})
    history.close("stopped")
    assert (history.status, history.reason) == ("stopped", "no improvement")
    assert history.rows == [{"epoch": 1, "step": 1, "loss": 1.0}]
    assert "stopped (no improvement)" in repr(history)


def test_metrics_are_not_looked_at_before_somebody_asks(state: State) -> None:
    looked: list[int] = []

    @tree
    class Watched(Metric):
        x: Any

        def merge(self, other: Watched) -> Watched:
            return other

        def value(self) -> Any:
            looked.append(1)
            return self.x

    history = History(every=1)
    for n in range(1, 11):
        history(
            state.replace(cursor=Cursor(0, n, n).tensor()), {"loss": Watched(torch.tensor(1.0))}
        )
    history.close("completed")
    assert not looked
    assert history["loss"] == [1.0] * 10
    assert len(looked) == 10
    assert len(history) == 10
    assert len(looked) == 10  # and only once


def test_a_resumed_history_is_one_that_never_stopped(state: State) -> None:
    whole = fill(History(every=4), state, range(1, 33))
    first = fill(History(every=4), state, range(1, 17))
    memo = json.loads(json.dumps(first.memo(), allow_nan=False))
    second = History(every=4)
    second.recall(memo)
    fill(second, state, range(17, 33))
    assert second.rows == whole.rows


def test_a_memo_in_the_middle_of_a_row_loses_nothing(state: State) -> None:
    history = History(every=4)
    for n in range(1, 7):
        history(state.replace(cursor=Cursor(0, n, n).tensor()), {"loss": Mean(float(n), 1)})
    memo = history.memo()
    assert memo["rows"] == {"epoch": [1], "step": [4], "loss": [2.5]}
    assert memo["cut"] == {"epoch": [1], "step": [6], "loss": [5.5]}
    assert history.rows == [{"epoch": 1, "step": 4, "loss": 2.5}]  # asking changed nothing


def test_of_a_long_history_all_rows_but_the_last_are_in_pages_that_do_not_change(
    state: State,
) -> None:
    history = History(every=1)
    seen: list[list[bytes]] = []
    for count in range(1, 5001):
        cursor = Cursor(0, count, count).tensor()
        history(state.replace(cursor=cursor), {"loss": Mean(1.0 / count, 1)})
        if not count % 1000:
            memo = history.memo()
            assert 3 * len(memo["rows"]["step"]) < 4096 + 3
            seen.append(memo["pages"])
    assert [len(pages) for pages in seen] == [0, 1, 2, 2, 3]
    assert all(later[: len(pages)] == pages for pages, later in itertools.pairwise(seen))
    again = History()
    again.recall(history.memo())
    assert again.rows == history.rows and again.memo() == history.memo()


def test_pages_that_are_missing_cost_their_rows_only(state: State) -> None:
    history = fill(History(every=1), state, range(1, 3001))
    memo = history.memo()
    memo["pages"][0] = None
    again = History()
    again.recall(memo)
    assert 0 < len(again) < len(history) and again.rows == history.rows[-len(again) :]


def test_a_memo_keeps_missing_and_non_finite_values(state: State) -> None:
    history = History(every=1)
    for n, value in enumerate((math.nan, math.inf, 1.0), start=1):
        metrics = {"loss": Mean(value, 1)} if n != 3 else {"other": Last(-math.inf)}
        history(state.replace(cursor=Cursor(0, n, n).tensor()), metrics)
    memo = from_text(to_text(history.memo()))
    assert str(memo["rows"]["loss"]) == "[nan, inf, None]"
    back = History()
    back.recall(memo)
    assert math.isnan(back["loss"][0])
    assert back["loss"][1] == math.inf
    assert back.rows[2] == {"epoch": 1, "step": 3, "other": -math.inf}


def test_the_table_shows_the_last_rows(state: State) -> None:
    history = fill(History(every=4), state, range(1, 18))
    assert history.table(last=3).splitlines() == [
        "epoch  step  loss   lr  val/loss",
        "    2    15    14  0.1        20",
        "    2    16    16  0.1          ",
        "    2    17    17  0.1          ",
    ]
    assert len(history.table(last=None).splitlines()) == 8
    assert History().table() == "epoch  step"


def test_html_is_escaped(state: State) -> None:
    history = History(every=1)
    history(state.replace(cursor=Cursor(0, 1, 1).tensor()), {"a<b>": Mean(1.0, 1)})
    page = history._repr_html_()
    assert "a&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<td>1</td>" in page


def test_pandas(state: State) -> None:
    pytest.importorskip("pandas")
    history = fill(History(every=4), state, range(1, 18))
    frame = history.to_pandas()
    assert list(frame.columns) == ["epoch", "step", "loss", "lr", "val/loss"]
    assert frame["loss"].tolist() == history["loss"]
    assert frame["val/loss"].dropna().tolist() == [20.0]


def test_pandas_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        History().to_pandas()


def test_the_plot_has_one_panel_a_metric_with_its_subsets(state: State, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = fill(History(every=4), state, range(1, 38))
    figure = history.plot(tmp_path / "new" / "curves.png")
    (loss,) = figure.axes  # the rate is constant
    assert loss.get_title("left") == "loss"
    curves = {line.get_label(): line for line in loss.get_lines()}
    assert list(curves) == ["train", "val"]
    assert list(curves["train"].get_xdata()) == history.steps("loss")
    assert list(curves["train"].get_ydata()) == history["loss"]
    assert list(curves["val"].get_xdata()) == [15, 30]
    assert loss.get_xlabel()
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (lr,) = history.plot(names=["lr"]).axes
    assert lr.get_title("left") == "lr" and len(lr.get_lines()) == 1
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_an_empty_plot_is_an_error() -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="nothing to draw"):
        History().plot()


def loss(model: Any, x: Any) -> Any:
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.125, momentum=0.5)), fl.ema(0.5))
COMPILED = fl.compile(STEP, backend="aot_eager")


def begin(step: Any = STEP) -> State:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    return step.init(model, seed=0)


def batches() -> Any:
    return fl.Batches(torch.arange(48.0).reshape(16, 3).sin(), batch_size=4, seed=1)


def test_it_keeps_the_last_states_for_nothing() -> None:
    history, seen = History(states=3), []
    for shown, _ in fl.run(STEP, begin(), batches(), steps=7, callbacks=[history]):
        seen.append(shown)
        assert all(a is b for a, b in zip(history.states, seen[-3:], strict=True))
    assert [int(kept.cursor[2]) for kept in history.states] == [5, 6, 7]
    assert History().states == ()


def test_they_are_the_states_after_the_callbacks() -> None:
    def halve(state: State, metrics: Any) -> Any:
        return fl.scale(state, "sgd.lr", 0.5), metrics

    history = History(states=2)
    for _ in fl.run(STEP, begin(), batches(), steps=3, callbacks=[history, halve]):
        pass
    assert [float(s["update"]["scale"]["sgd.lr"]) for s in history.states] == [0.25, 0.125]


def eager_states(steps: int, callbacks: tuple[Any, ...] = ()) -> list[State]:
    run = fl.run(STEP, begin(), batches(), steps=steps, callbacks=callbacks)
    return [shown for shown, _ in run]


@pytest.mark.parametrize("n", [1, 4, 100])
def test_states_of_a_donating_step_stay_readable_and_right(n: int) -> None:
    expected, history = eager_states(9), History(states=n)
    donating = COMPILED.donating()
    for last, _ in fl.run(donating, begin(donating), batches(), steps=9, callbacks=[history]):
        for state, kept in zip(expected[: int(last.step)][-n:], history.states, strict=True):
            assert fl.tree_diff(state, kept) == ""
    assert len(history.states) == min(n, 9)
    again, _ = donating(history.states[0].replace(), torch.ones(4, 3))
    assert fl.tree_equal(history.states[-1], expected[-1]), "a fork has written into another state"
    assert int(again.step) == int(history.states[0].step) + 1


def test_states_that_are_let_go_are_written_over_again() -> None:
    history, places = History(states=2), []
    donating = COMPILED.donating()
    run = fl.run(donating, begin(donating), batches(), steps=6, callbacks=[history])
    for n, (shown, _) in enumerate(run):
        places.append(shown.params["0.weight"].data_ptr())
        del shown
        if n == 2:
            history._states.clear()
    assert len(set(places[:3])) == 3, "kept states share no memory with the next ones"
    assert places[3] == places[2], "nobody looked any more"


def test_going_back_by_hand_is_a_run_from_that_state() -> None:
    history = History(states=5)
    loop = fl.run(STEP, begin(), batches(), steps=20, callbacks=[history])
    for _ in range(6):
        next(loop)
    back = history.states[-3]
    sent, _ = loop.send(back)
    assert sent is back
    after, _ = next(loop)
    *_, (expected, _) = fl.run(STEP, begin(), batches(), steps=5)
    assert fl.tree_diff(after, expected) == ""


def test_a_negative_number_of_states_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        History(states=-1)


def test_fit_returns_the_history_among_its_callbacks() -> None:
    history = History(every=2, states=3)
    last, returned = fl.fit(STEP, begin(), batches(), steps=8, callbacks=[history])
    assert returned is history and history.status == "completed"
    assert history.steps("loss") == [2, 4, 6, 8]
    assert fl.tree_equal(history.states[-1], last)


@pytest.mark.parametrize("step", [STEP, COMPILED], ids=["eager", "compiled"])
def test_the_last_states_of_a_fit_are_those_of_the_eager_run(step: Any) -> None:
    history = History(states=4)
    last, _ = fl.fit(step, begin(step), batches(), steps=9, callbacks=[history])
    expected = eager_states(9)
    for state, kept in zip(expected[-4:], history.states, strict=True):
        assert fl.tree_diff(state, kept) == ""
    assert fl.tree_diff(expected[-1], last) == ""


def test_fit_takes_one_history() -> None:
    with pytest.raises(ValueError, match="history"):
        fl.fit(STEP, begin(), batches(), steps=1, callbacks=[History(), History(states=1)])


def test_a_metric_of_several_values_is_in_rows_trackers_and_a_resumed_run(tmp_path):
    def loss(model, x):
        out = model(x).square()
        return out.mean(), {"each": fl.Mean(out.detach().sum(0), len(x))}

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.05)))
    model, data = torch.nn.Linear(2, 3), fl.Batches(torch.randn(12, 2), 4)

    def fit(folder, **limits):
        callbacks = [
            fl.every(1, fl.validate(loss, data), unit="epoch"),
            fl.early_stopping("val/each[2]", patience=9),
            fl.checkpoint(folder / "run", monitor="val/each[1]"),
            fl.track(fl.trackers.CSV(folder / "a.csv"), fl.trackers.JSONL(folder / "a.jsonl")),
        ]
        return fl.fit(step, step.init(model), data, callbacks=callbacks, **limits)

    _, whole = fit(tmp_path / "a", epochs=3)
    fit(tmp_path / "b", steps=5)
    _, resumed = fit(tmp_path / "b", epochs=3, resume=tmp_path / "b" / "run")
    names = [f"{prefix}each[{i}]" for prefix in ("", "val/") for i in range(3)]
    for name in names:
        assert whole[name] == resumed[name] and len(whole[name]) == 3
    means = [sum(row[f"each[{i}]"] for i in range(3)) / 3 for row in whole]
    assert means == pytest.approx(whole["loss"])
    for kind in ("csv", "jsonl"):
        assert all(name in (tmp_path / "b" / f"a.{kind}").read_text() for name in names)
    assert fl.best(tmp_path / "a" / "run") is not None


@pytest.mark.parametrize("compiled", [False, True])
def test_parts_of_a_sequence_that_rest_do_not_change_the_length_of_a_row(compiled: bool) -> None:
    def part(name: str) -> Any:
        return fl.pipe(loss, fl.grad(only=name), fl.update(fl.optim.sgd(0.1)))

    step: Any = fl.sequence(d=part("*.weight"), g=part("*.bias"), every={"g": 5})
    step = fl.compile(step, steps=4, backend="eager") if compiled else step
    history = fl.History(every=10)
    state, losses = begin(step), list[Any]()
    validate = fl.every(16, fl.validate(lambda m, b: {"loss": loss(m, b)}, torch.ones(4, 3)))
    data = list(torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(1)))
    fl.fit(step, state, data, epochs=2, callbacks=[validate, history], progress=False)
    assert history.steps("d/loss") == [10, 16, 20, 30, 32, 40]
    assert history.steps("val/loss") == [16, 32]
    by_hand = fl.sequence(d=part("*.weight"), g=part("*.bias"), every={"g": 5})
    state = begin(by_hand)
    for batch in [*data, *data]:
        state, metrics = by_hand(state, batch)
        losses += [metrics["g/loss"].value()] if "g/loss" in metrics else []
    g = [float(each) for each in losses]
    means = [(g[0] + g[1]) / 2, g[2], g[3], (g[4] + g[5]) / 2, (g[6] + g[7]) / 2]
    assert history["g/loss"] == pytest.approx(means)
