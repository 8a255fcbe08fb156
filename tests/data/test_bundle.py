from __future__ import annotations

import pytest
import torch

import fnloop as fl
from fnloop.data.bundle import Data, sets_of


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


def state():
    return STEP.init(lambda: torch.nn.Linear(2, 1), seed=0)


@pytest.mark.lightning("H14")
def test_splits_are_optional_but_for_train() -> None:
    data = Data([1], test=[2])
    assert (data.train, data.validate, data.test, data.predict) == ([1], None, [2], None)
    with pytest.raises(TypeError, match="neither train= nor setup="):
        Data()
    with pytest.raises(TypeError, match="train= and setup="):
        Data([1], setup=lambda: Data([1]))
    with pytest.raises(TypeError, match="give no other"):
        Data(test=[1], setup=lambda: Data([1]))
    with pytest.raises(TypeError, match="Use validate="):
        Data([1], val=[2])  # pyright: ignore[reportCallIssue]


def test_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Data([1]).train = [2]  # pyright: ignore[reportAttributeAccessIssue]


def lazy(calls):
    x = torch.ones(8, 2)

    def setup():
        calls.append("setup")
        return Data(fl.Batches(x, 4), fl.Batches(x, 4), predict=[x])

    return Data(prepare=lambda: calls.append("prepare"), setup=setup)


@pytest.mark.lightning("H3")
def test_it_is_prepared_and_opened_once_and_when_it_is_read() -> None:
    calls: list[str] = []
    data = lazy(calls)
    validate = fl.every(1, fl.validate(loss, data, statistics=data), unit="epoch")
    assert "prepare" in repr(data) and not data.is_open and calls == []
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    after, history = fl.fit(STEP, STEP.init(norm), data, epochs=2, callbacks=[validate])
    assert calls == ["prepare", "setup"]
    assert after.cursor.tolist() == [2, 0, 4] and history.steps("val/loss") == [2, 4]
    assert fl.evaluate(loss, after, data).keys() == {"loss"}
    assert len(list(fl.predict(lambda m, x: m(x), after, data))) == 1
    assert calls == ["prepare", "setup"]


def test_parts_that_are_given_are_prepared_before_they_are_read() -> None:
    calls: list[str] = []
    data = Data([1], prepare=lambda: calls.append("prepare"))
    assert calls == [] and data.train == [1] and data.train == [1] and calls == ["prepare"]


def test_a_preparation_that_fails_is_tried_again() -> None:
    calls: list[str] = []

    def prepare():
        calls.append("prepare")
        if len(calls) == 1:
            raise OSError("no network")

    data = Data([1], prepare=prepare)
    with pytest.raises(OSError, match="no network"):
        fl.fit(STEP, state(), data, epochs=1)
    assert data.train == [1] and len(calls) == 2


def test_a_setup_that_returns_something_else_is_told() -> None:
    with pytest.raises(TypeError, match=r"f returned list, and must return the parts as fl\.Data"):
        _ = Data(setup=lambda: [1]).train  # type: ignore[arg-type,return-value]  # pyright: ignore


@pytest.mark.lightning("H4")
def test_it_goes_wherever_data_goes() -> None:
    calls: list[str] = []
    few = fl.data.limit(lazy(calls), 1)
    assert calls == []
    after, _ = fl.fit(STEP, state(), fl.data.prefetch(few), epochs=3)
    assert after.cursor.tolist() == [3, 0, 3]


def test_sets_by_name_have_their_metrics_by_name() -> None:
    day, night = fl.Batches(torch.ones(6, 2), 4), [torch.zeros(3, 2)]
    start = state()
    found = fl.evaluate(loss, start, {"day": day, "night": night})
    assert found == {
        "day/loss": fl.evaluate(loss, start, day)["loss"],
        "night/loss": fl.evaluate(loss, start, night)["loss"],
    }
    data = Data(day, validate={"day": day, "night": night})
    callbacks = [
        fl.every(1, fl.validate(loss, data), unit="epoch"),
        fl.early_stopping("val/night/loss", patience=1, min_delta=1e9),
    ]
    _, history = fl.fit(STEP, start, data, epochs=5, callbacks=callbacks)
    assert history.steps("val/day/loss") == history.steps("val/night/loss") == [2, 4]
    assert history.status == "stopped"


def test_a_dict_of_tensors_is_one_set() -> None:
    x = torch.ones(4, 2)
    assert sets_of({"x": x}) is None and sets_of({"x": (x, x)}) is None and sets_of({}) is None
    found = fl.evaluate(lambda m, b: m(b["x"]).mean(), state(), {"x": x, "y": x})
    assert found.keys() == {"loss"}


def test_several_sets_are_no_training_data() -> None:
    sets = {"day": [torch.ones(2, 2)], "night": [torch.ones(2, 2)]}
    with pytest.raises(TypeError, match=r"several sets by name .'day', 'night'.*one is read"):
        fl.fit(STEP, state(), sets, epochs=1)
    with pytest.raises(TypeError, match="read repeatedly"):
        fl.validate(loss, {"day": iter([1])})
