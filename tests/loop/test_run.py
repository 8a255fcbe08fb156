"""The loop."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import fnloop as fl


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))


def data(n=10, size=4):
    return fl.Batches(torch.arange(2.0 * n).reshape(n, 2), batch_size=size, seed=1)


def state():
    torch.manual_seed(0)
    return STEP.init(nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)))


def last(loop, state=None):
    for state, _ in loop:  # noqa: B007
        pass
    return state


@pytest.mark.lightning("M10", "O1")
def test_seven_steps_and_then_thirteen_are_twenty():
    whole = last(fl.run(STEP, state(), data(), steps=20))
    part = last(fl.run(STEP, state(), data(), steps=7))
    assert last(fl.run(STEP, part, data(), steps=13)) == whole
    assert whole.cursor.tolist() == [6, 8, 20]


@pytest.mark.lightning("T9")
def test_epochs_count_from_where_the_state_stands():
    one = last(fl.run(STEP, state(), data(), epochs=1))
    assert one.cursor.tolist() == [1, 0, 3]
    assert last(fl.run(STEP, one, data(), epochs=2)).cursor.tolist() == [3, 0, 9]


@pytest.mark.lightning("T11")
def test_whichever_limit_comes_first():
    assert last(fl.run(STEP, state(), data(), steps=2, epochs=5)).cursor[2] == 2
    assert last(fl.run(STEP, state(), data(), steps=50, epochs=1)).cursor[2] == 3
    begun = time.monotonic()
    last(fl.run(STEP, state(), data(), seconds=0.2))
    assert 0.2 <= time.monotonic() - begun < 2
    assert list(fl.run(STEP, state(), data(), steps=0)) == []


@pytest.mark.lightning("H5")
def test_the_body_changes_the_state_only_by_send():
    loop = fl.run(STEP, state(), data(), steps=4)
    seen = []
    for s, _ in loop:
        seen.append(int(s.cursor[2]))
        if len(seen) == 2:
            zeros = {name: torch.zeros_like(p) for name, p in s.params.items()}
            loop.send(s.replace(params=zeros))
    assert seen == [1, 2, 3, 4]  # send skips no step
    assert s.params["0.weight"].abs().max() < 0.05  # two steps from zero


def test_send_may_move_the_cursor_back():
    first = next(fl.run(STEP, state(), data(), steps=1))[0]
    loop = fl.run(STEP, first, data(), steps=2)
    one, _ = next(loop)
    loop.send(first)
    again, _ = next(loop)
    assert one == again


@pytest.mark.lightning("H16")
def test_an_iterator_goes_on_from_where_it_stands_and_ends():
    batches = iter([torch.ones(2, 2)] * 3)
    s = last(fl.run(STEP, state(), batches, steps=2))
    s = last(fl.run(STEP, s, batches), s)
    assert s.cursor[2] == 3
    with pytest.raises(ValueError, match="exhausted"):
        last(fl.run(STEP, s, batches))


def test_a_loader_with_workers_is_used_as_it_is():
    dataset = torch.utils.data.TensorDataset(torch.arange(16.0).reshape(8, 2))
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True, num_workers=2)
    step = fl.pipe(lambda m, b: m(b[0]).square().mean(), fl.grad, fl.update(fl.optim.sgd(1e-3)))
    start = step.init(nn.Linear(2, 1))
    random = torch.get_rng_state()
    whole = last(fl.run(step, start, loader, steps=6))
    assert torch.equal(random, torch.get_rng_state())
    part = last(fl.run(step, start, loader, steps=3))
    assert last(fl.run(step, part, loader, steps=3)) == whole


@pytest.mark.lightning("T7", "C1", "C2", "C20", "C23")
def test_callbacks_run_in_order_and_effects_after_them():
    order = []

    def note(label):
        def callback(s, metrics):
            order.append(label)
            return s, {**metrics, label: fl.Sum(1.0)}

        return callback

    def look(s, metrics):
        order.append("effect")
        assert {"a", "b"} <= set(metrics)

    last(fl.run(STEP, state(), data(), steps=1, callbacks=[fl.effect(look), note("a"), note("b")]))
    assert order == ["a", "b", "effect"]


@pytest.mark.lightning("H5")
def test_a_callback_stops_the_run():
    def enough(s, metrics):
        return s, {**metrics, "enough": fl.stop(s.cursor[2] >= 3, "three are enough")}

    closed = []

    class Close(fl.base.Effect):
        def __call__(self, state, metrics):
            pass

        def close(self, status):
            closed.append(status)

    loop = fl.run(STEP, state(), data(), steps=9, callbacks=[enough, Close()])
    assert last(loop).cursor[2] == 3 and closed == ["stopped"]
    last(fl.run(STEP, state(), data(), steps=1, callbacks=[Close()]))
    for _ in fl.run(STEP, state(), data(), callbacks=[Close()]):
        break
    assert closed == ["stopped", "completed", "stopped"]


@pytest.mark.lightning("G4")
def test_effects_are_closed_when_the_step_fails():
    closed = []

    class Close(fl.base.Effect):
        def __call__(self, state, metrics):
            pass

        def close(self, status):
            closed.append(status)
            raise OSError("disk")

    def bad(s, batch):
        raise RuntimeError("boom")

    with (
        pytest.warns(UserWarning, match="Closing the effect effect failed"),
        pytest.raises(RuntimeError),
    ):
        last(fl.run(bad, state(), data(), steps=1, callbacks=[Close()]))
    assert closed == ["failed"]


def test_a_bare_function_is_a_step():
    def step(s, batch):
        return s.replace(step=s.step + 1), {"rows": fl.Sum(float(len(batch)))}

    rows = [float(m["rows"]) for _, m in fl.run(step, state(), data(), epochs=1)]
    assert sum(rows) == 10


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda s, b: s, "returned a State alone"),
        (lambda s, b: (s, None), "metrics of type NoneType"),
        (lambda s, b: (s, {"loss": torch.ones(())}), r"reports 'loss' as f32.*fl\.Mean"),
        (lambda s, b: ({}, {}), "in place of a State"),
        (lambda s, b: (s.replace(params={}), {}), r"params/0\.weight"),
        (lambda s, b: (s.replace(step=s.step.double()), {}), r"step +i64\[\] +f64\[\]"),
    ],
)
def test_a_step_that_returns_the_wrong_thing_says_so(bad, message):
    def step(s, b):
        return bad(s, b)

    with pytest.raises((TypeError, ValueError), match=message):
        last(fl.run(step, state(), data(), steps=1))


def test_a_state_without_the_steps_memory_says_what_to_call():
    plain = fl.pipe(loss, fl.grad).init(nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"step\.init\(state\)"):
        fl.run(STEP, plain, data(), steps=1)
    with pytest.raises(TypeError, match=r"Add fl\.update"):
        fl.run(fl.grad(loss), plain, data(), steps=1)
    with pytest.raises(TypeError, match=r"step\.init\(model\) makes one"):
        fl.run(STEP, nn.Linear(2, 1), data(), steps=1)


def test_callbacks_that_are_none():
    with pytest.raises(TypeError, match=r"put it into fl\.pipe"):
        fl.run(STEP, state(), data(), callbacks=[STEP])
    with pytest.raises(TypeError, match="A callback is a function"):
        fl.run(STEP, state(), data(), callbacks=[3])
    with pytest.raises(ValueError, match="under the same name, 'early_stopping'"):
        fl.run(
            STEP,
            state(),
            data(),
            callbacks=[fl.early_stopping("loss"), fl.early_stopping("val/loss")],
        )


def test_a_metric_that_nobody_makes_is_an_error_at_the_start():
    validate = fl.every(2, fl.validate(loss, data()))
    with pytest.raises(ValueError, match='Did you mean "val/loss"'):
        last(
            fl.run(
                STEP, state(), data(), steps=1, callbacks=[validate, fl.early_stopping("val/los")]
            )
        )
    with pytest.raises(ValueError, match=r"fl\.validate\(loss, data, name=\"val\"\)"):
        last(fl.run(STEP, state(), data(), steps=1, callbacks=[fl.early_stopping("val/loss")]))
    # The order counts: a callback sees what those before it added.
    with pytest.raises(ValueError, match="waits for the metric"):
        last(
            fl.run(
                STEP, state(), data(), steps=1, callbacks=[fl.early_stopping("val/loss"), validate]
            )
        )
    last(
        fl.run(STEP, state(), data(), steps=1, callbacks=[validate, fl.early_stopping("val/loss")])
    )


def test_negative_limits():
    with pytest.raises(ValueError, match="steps"):
        fl.run(STEP, state(), data(), steps=-1)


def test_a_callback_that_returns_the_wrong_thing_says_so():
    def number(s, metrics):
        return s, {**metrics, "gap": 0.5}

    with pytest.raises(TypeError, match=r"The callback number reports 'gap' as 0\.5"):
        last(fl.run(STEP, state(), data(), steps=1, callbacks=[number]))


def test_a_callback_may_not_take_a_slot_of_the_step():
    with pytest.raises(ValueError, match=r"ema\(0\.9\) and early_stopping.*same name, 'ema'"):
        fl.run(STEP, state(), data(), callbacks=[fl.early_stopping("loss", name="ema")])


def test_send_takes_a_state():
    loop = fl.run(STEP, state(), data(), steps=2)
    next(loop)
    with pytest.raises(TypeError, match="send takes a state"):
        loop.send((1, 2))


def test_data_that_fails_to_close_keeps_no_effect_open():
    class Fails:
        batches = None

        def iterate(self, cursor, key=0):
            return Broken()

    class Broken:
        def __iter__(self):
            return self

        def __next__(self):
            raise RuntimeError("no data")

        def close(self):
            raise OSError("stuck")

    closed = []

    class Close(fl.base.Effect):
        def close(self, status):
            closed.append(status)

    with (
        pytest.warns(UserWarning, match="Closing the data failed"),
        pytest.raises(RuntimeError, match="no data"),
    ):
        last(fl.run(STEP, state(), Fails(), steps=1, callbacks=[Close()]))
    assert closed == ["failed"]


def test_a_bundle_and_prefetch_in_mid_epoch():
    one = next(fl.run(STEP, state(), fl.Data(train=data()), steps=1))[0]
    totals = []

    class Look(fl.base.Effect):
        def open(self, run):
            totals.append(run.total)

        def __call__(self, state, metrics):
            pass

    for source in (data(), fl.data.prefetch(data())):
        last(fl.run(STEP, one, source, epochs=2, callbacks=[Look()]))
    assert totals == [5, 5]


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_a_metric_with_the_name_of_a_column_is_refused_by_whoever_adds_it(name):
    problem = torch.nn.Linear(2, 1), [torch.ones(3, 2)] * 4

    def fit(extra, callbacks=()):
        loss = lambda m, x: (m(x).square().mean(), extra)  # noqa: E731
        step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
        return fl.fit(step, step.init(problem[0]), problem[1], epochs=1, callbacks=callbacks)

    def adds(state, metrics):
        return state, {**metrics, name: fl.Last(7.0)}

    refused = rf"reports a metric called '{name}'.* Give it another name, such as 'model_{name}'"
    with pytest.raises(ValueError, match=refused):
        fit({name: 7.0})
    for callback in (adds, fl.every(3, fl.stage(adds, "callback"))):
        with pytest.raises(ValueError, match=refused):
            fit({}, [callback])
    _, history = fit({f"model_{name}": 7.0, "time": 1.0})
    assert history[-1]["step"] == 4 and history[-1][f"model_{name}"] == 7.0


def test_two_validations_of_one_name_are_refused():
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    data = [torch.ones(3, 2)] * 2
    callbacks = [fl.validate(loss, data), fl.every(2, fl.validate(loss, data))]
    with pytest.raises(ValueError, match=r"'val/loss', which is there already.*name="):
        fl.fit(step, step.init(torch.nn.Linear(2, 1)), data, epochs=2, callbacks=callbacks)
