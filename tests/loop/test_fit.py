"""fit: run to the end."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch
from torch import nn

import fnloop as fl


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))


def data():
    return fl.Batches(torch.arange(20.0).reshape(10, 2), batch_size=4, seed=1)


def state():
    torch.manual_seed(0)
    return STEP.init(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)))


@pytest.mark.lightning("T9")
def test_a_limit_is_needed():
    with pytest.raises(ValueError, match="epochs=, steps=, seconds= or budget="):
        fl.fit(STEP, state(), data())


@pytest.mark.lightning("M1")
def test_the_state_is_that_of_run():
    fitted, history = fl.fit(STEP, state(), data(), epochs=2)
    for ran, _ in fl.run(STEP, state(), data(), epochs=2):  # noqa: B007
        pass
    # fit listens for Ctrl-C by a callback without memory, so the states are the same
    assert fitted == ran and history.status == "completed"


def test_a_bundle_is_trained_on_its_training_part():
    fitted, _ = fl.fit(STEP, state(), fl.Data(train=data()), steps=2)
    assert fitted.cursor[2] == 2


def test_early_stopping_gives_status_and_reason():
    callbacks = [
        fl.every(1, fl.validate(loss, data()), unit="epoch"),
        fl.early_stopping("val/loss", patience=1, min_delta=1e9),
    ]
    fitted, history = fl.fit(STEP, state(), data(), epochs=50, callbacks=callbacks)
    assert history.status == "stopped" and "val/loss has not improved" in history.reason
    assert fitted.cursor[0] == 2


@pytest.mark.lightning("G3")
def test_the_first_interrupt_finishes_the_step_and_returns_the_state(caplog):
    def press(s, metrics):
        if s.cursor[2] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    fitted, history = fl.fit(STEP, state(), data(), steps=50, callbacks=[fl.effect(press)])
    assert history.status == "interrupted"
    assert fitted.cursor[2] in (3, 4)  # the stop is asked for at the next step
    assert signal.getsignal(signal.SIGINT) is before
    assert "Press it again" in caplog.text


def test_the_second_interrupt_raises():
    def press(s, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fl.fit(STEP, state(), data(), steps=50, callbacks=[fl.effect(press)])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.lightning("C4", "G4")
def test_a_failing_step_does_not_cost_the_state():
    calls = []

    def breaking(s, batch):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("boom")
        return STEP(s, batch)

    with pytest.raises(RuntimeError, match="boom") as caught:
        fl.fit(breaking, state(), data(), steps=9)
    for expected, _ in fl.run(STEP, state(), data(), steps=3):  # noqa: B007
        pass
    assert caught.value.state == expected
    assert caught.value.history.status == "failed"
    assert "after 3 batches" in caught.value.__notes__[-1]


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    number: int = 1


class ReadOnly(Exception):
    @property
    def state(self):
        return "of the error"


class Failing(Exception):
    @property
    def state(self):
        raise RuntimeError("there is none")


@pytest.mark.parametrize("kind", [Frozen, ReadOnly, Failing])
@pytest.mark.parametrize("place", ["loss", "data", "callback", "effect"])
def test_an_error_without_room_for_the_state_comes_through(kind, place):
    calls, closed = [], []

    def breaking(where):
        calls.append(where)
        if calls.count(where) == 2 and where == place:
            raise kind

    def breaking_loss(model, batch):
        breaking("loss")
        return loss(model, batch)

    def callback(s, metrics):
        breaking("callback")
        return s, metrics

    def batches():
        try:
            for batch in data():
                breaking("data")
                yield batch
        finally:
            closed.append("data")

    class Closing(fl.base.Effect):
        def __call__(self, s, metrics):
            breaking("effect")

        def close(self, status):
            closed.append(status)

    step = fl.pipe(breaking_loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(kind):
        fl.fit(step, state(), batches(), steps=5, callbacks=[callback, Closing()])
    assert sorted(closed) == ["data", "failed"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.lightning("M1")
def test_resume_finishes_what_was_left(tmp_path):
    def callbacks(folder):
        return [
            fl.every(2, fl.validate(loss, data(), params="ema")),
            fl.early_stopping("val/loss", patience=100),
            fl.checkpoint(folder, every=1, unit="step"),
        ]

    whole, whole_history = fl.fit(
        STEP, state(), data(), epochs=4, callbacks=callbacks(tmp_path / "a")
    )
    fl.fit(STEP, state(), data(), steps=5, callbacks=callbacks(tmp_path / "b"))
    resumed, history = fl.fit(
        STEP, state(), data(), epochs=4, callbacks=callbacks(tmp_path / "b"), resume=tmp_path / "b"
    )
    assert resumed == whole
    assert history["val/loss"] == whole_history["val/loss"]
    again, _ = fl.fit(
        STEP, state(), data(), epochs=4, callbacks=callbacks(tmp_path / "b"), resume=tmp_path / "b"
    )
    assert again == whole  # nothing was left


def test_resume_of_an_empty_folder_starts_anew(tmp_path):
    fitted, _ = fl.fit(STEP, state(), data(), steps=2, resume=tmp_path)
    assert fitted.cursor[2] == 2


def test_a_checkpoints_metric_is_looked_for_at_the_start(tmp_path):
    validate = fl.every(1, fl.validate(loss, data()), unit="epoch")
    with pytest.raises(ValueError, match='Did you mean "val/loss"'):
        fl.fit(
            STEP,
            state(),
            data(),
            epochs=1,
            callbacks=[validate, fl.checkpoint(tmp_path, monitor="val/los")],
        )


def test_one_value_of_a_metric_of_many_can_be_watched(tmp_path):
    def report(model, x):
        logits = torch.cat([model(x), -model(x)], 1)
        return {"classes": fl.metrics.confusion(logits, (x[:, 0] > 5).long(), classes=2)}

    callbacks = [
        fl.every(1, fl.validate(report, data()), unit="epoch"),
        fl.early_stopping("val/classes/accuracy", mode="max", patience=1),
        fl.checkpoint(tmp_path, monitor="val/classes/accuracy", mode="max"),
    ]
    _, history = fl.fit(STEP, state(), data(), epochs=3, callbacks=callbacks)
    assert "val/classes/accuracy" in history.names
    assert fl.store.read_manifest(fl.best(tmp_path))["monitor"]["name"] == "val/classes/accuracy"


def test_two_effects_of_one_name_keep_their_own_memo(tmp_path):
    def callbacks():
        return [
            fl.track(fl.trackers.JSONL(tmp_path / "a.jsonl"), every=1),
            fl.track(fl.trackers.JSONL(tmp_path / "b.jsonl"), every=1),
            fl.checkpoint(tmp_path / "c", every=1, unit="step"),
        ]

    fl.fit(STEP, state(), data(), steps=3, callbacks=callbacks())
    fl.fit(STEP, state(), data(), steps=5, callbacks=callbacks(), resume=tmp_path / "c")
    assert (tmp_path / "a.jsonl").read_text().count('"loss"') == 5
    assert (tmp_path / "b.jsonl").read_text().count('"loss"') == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl", "c"]


def test_validation_points_do_not_move_after_a_resume(tmp_path):
    def callbacks(folder):
        return [
            fl.every(4, fl.validate(loss, data(), params="ema")),
            fl.checkpoint(folder, every=1, unit="step"),
        ]

    _, whole = fl.fit(STEP, state(), data(), steps=12, callbacks=callbacks(tmp_path / "a"))
    fl.fit(STEP, state(), data(), steps=3, callbacks=callbacks(tmp_path / "b"))
    _, resumed = fl.fit(
        STEP, state(), data(), steps=12, callbacks=callbacks(tmp_path / "b"), resume=tmp_path / "b"
    )
    assert whole.steps("val/loss") == resumed.steps("val/loss") == [4, 8, 12]
    assert whole["val/loss"] == resumed["val/loss"]


def test_an_iterator_that_ends_too_early_is_told():
    with pytest.warns(UserWarning, match="ended after 3 batches"):
        _, history = fl.fit(STEP, state(), iter([torch.ones(2, 2)] * 3), steps=5)
    assert history.status == "stopped"


def test_whole_numbers_are_asked_for():
    with pytest.raises(TypeError, match="a whole number"):
        fl.fit(STEP, state(), data(), epochs=1.5)
    with pytest.raises(TypeError, match=r"callbacks=\[\.\.\.\]"):
        fl.fit(STEP, state(), data(), epochs=1, callbacks=fl.early_stopping("loss"))
    with pytest.raises(TypeError, match=r"write progress\(\.\.\.\)"):
        fl.fit(STEP, state(), data(), epochs=1, callbacks=[fl.progress])


@pytest.mark.parametrize("setting", ["device", "dtype"])
def test_a_run_under_other_defaults_of_torch_is_the_same_to_the_bit(setting, tmp_path):
    def loss(model, batch):
        return model(batch[0]).square().mean(), {"size": 2.5, "worst": fl.Max(1)}

    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    start, x = step.init(torch.nn.Linear(2, 1)), torch.randn(12, 2)

    def run(folder):
        data = fl.Batches((x, x), 4)
        callbacks = [
            fl.every(1, fl.validate(loss, data, params="ema"), unit="epoch"),
            fl.every(2, fl.early_stopping("loss", patience=99)),
            fl.checkpoint(folder, keep=2, monitor="val/loss"),
        ]
        state, history = fl.fit(step, start, data, epochs=2, callbacks=callbacks)
        loaded = fl.load(fl.latest(folder), like=state)
        state, history = fl.fit(step, start, data, epochs=3, callbacks=callbacks, resume=folder)
        predicted = torch.cat(list(fl.predict(lambda m, b: m(b[0]), state, [(x, x)])))
        return state, loaded, history.rows, fl.evaluate(loss, state, data), predicted

    expected = run(tmp_path / "a")
    dtype = torch.get_default_dtype()
    torch.set_default_device("meta" if setting == "device" else None)
    torch.set_default_dtype(torch.float64 if setting == "dtype" else dtype)
    try:
        got = run(tmp_path / "b")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(dtype)
    assert fl.tree_diff(expected, got) == ""


def test_a_state_left_in_mid_epoch_begins_other_data_anew_with_a_cursor_of_zeros():
    def loss(model, x):
        return model(x).square().mean()

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    first, other = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (80, 64))
    state = step.init(nn.Linear(3, 1), seed=0)
    state, _ = fl.fit(step, state, fl.Batches(first, 16), steps=7, progress=False)
    assert state.cursor.tolist() == [1, 32, 7]

    anew = step.init(state).replace(cursor=fl.data.Cursor().tensor())
    data = fl.Batches(other, 16, shuffle=False)
    tuned, history = fl.fit(step, anew, data, epochs=1, progress=False)

    model = nn.Linear(3, 1)
    model.load_state_dict({**state.params})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in other.split(16):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(tuned.params[name], value.detach())
    assert tuned.cursor.tolist() == [1, 0, 4] and int(tuned.step) == 11
    assert history.steps("loss") == [4]

    for short in (fl.Batches(other[:32], 16), [other[:16]]):
        with pytest.raises(ValueError, match=r"other data.*replace\(cursor=fl\.data\.Cursor\(\)"):
            fl.fit(step, step.init(state), short, epochs=1, progress=False)
