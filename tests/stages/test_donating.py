"""A step that is not compiled writes in place where nobody looks: the same bits, less memory."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import fnloop as fl
from fnloop.stages import donating
from fnloop.values.donated import DonatedError
from fnloop.values.holders import own
from tests.transforms.test_donation import TAKEN, address, batch, look, mse, net


@pytest.fixture(autouse=True)
def small_models_too(monkeypatch):
    monkeypatch.setattr(donating, "WORTH", 0)


def step_of(optimizer=None, *stages, loss=mse):
    return fl.pipe(loss, fl.grad, *stages, fl.update(optimizer or fl.optim.adamw(0.1)))


STEP = step_of()
DONATING = STEP.donating()


def after(n=2, step=DONATING):
    state = step.init(net())
    for i in range(n):
        state, _ = step(state, batch(seed=i))
    return state


def averages(state):
    return [slot["0.weight"] for name, slot in state.slots.items() if name in ("ema", "fast")]


PIPELINES = {
    "adamw": step_of(),
    "amsgrad": step_of(fl.optim.adam(0.1, amsgrad=True, weight_decay=0.1)),
    "sgd": step_of(fl.optim.sgd(0.1)),
    "momentum": step_of(fl.optim.sgd(0.1, momentum=0.9, nesterov=True)),
    "adagrad": step_of(fl.optim.adagrad(0.1)),
    "a schedule": step_of(fl.optim.adamw(fl.schedules.cosine(0.1, steps=9))),
    "a chain": step_of(fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.adamw(0.1))),
    "accumulation": step_of(None, fl.accumulate(2)),
    "mixed precision": step_of(None, fl.amp("fp16")),
    "an average": fl.pipe(step_of(), fl.ema(0.9)),
    "two averages": fl.pipe(step_of(), fl.ema(0.9), fl.ema(0.5, name="fast")),
    "an average with a schedule": fl.pipe(
        step_of(), fl.ema(fl.schedules.linear(0.5, 0.9, steps=5))
    ),
}
ON_COPIES = {
    "no fused kernel": step_of(fl.optim.lamb(0.1)),
    "by label": step_of(
        fl.optim.by_label({"a": fl.optim.sgd(0.1), "b": fl.optim.adam(0.1)}, {"0": "a", "*": "b"})
    ),
    "masked": step_of(fl.optim.masked(fl.optim.adam(0.1), ["0"])),
}


def test_an_average_in_another_dtype_or_of_some_parameters_is_made_anew():
    half, frozen = net().bfloat16(), net()
    frozen[0].bias.requires_grad_(False)
    step = PIPELINES["an average"]
    for model, to in ((half, torch.bfloat16), (frozen, torch.float32)):
        expected = step.init(model)
        state = expected.replace()
        for i in range(4):
            x, y = batch(seed=i)
            expected, _ = step(expected, (x.to(to), y.to(to)))
            state, _ = step.donating()(state, (x.to(to), y.to(to)))
        assert fl.tree_equal(expected, state)


@pytest.mark.parametrize("name", [*PIPELINES, *ON_COPIES])
def test_the_bits_are_those_of_the_step_that_copies(name):
    step = PIPELINES.get(name) or ON_COPIES[name]
    expected, places = step.init(net()), set()
    state = expected.replace()
    for i in range(8):
        x, y = batch(6, seed=i)
        if i in (3, 4):
            x = x / 0  # skipped
        expected, metrics = step(expected, (x, y))
        state, same = step.donating()(state, (x, y))
        assert fl.tree_equal(expected, state) and fl.tree_equal(metrics, same)
        places.add((address(state), *map(Tensor.data_ptr, averages(state))))
    assert int(state.step) == 6
    if name in PIPELINES:
        assert len(places) == 1
    else:
        assert len(places) > 1


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_out_stays_as_it_was(name):
    step = PIPELINES["an average"].donating()
    state = after(step=step)
    taken = TAKEN[name](state)
    before = look(taken)
    for i in range(2):
        state, _ = step(state, batch(seed=7 + i))
    assert fl.tree_equal(before, look(taken))
    del taken
    state, _ = step(state, batch())
    seen = []
    for i in range(3):
        state, _ = step(state, batch(seed=i))
        seen.append((address(state), *map(Tensor.data_ptr, averages(state))))
    assert len(set(seen)) == 1, "nothing is kept any more, so the memory is used again"


def test_what_the_loss_keeps_or_reports_stays_as_it_was():
    kept = []

    def loss(model, batch):
        kept.append(model[0].weight.detach())
        return mse(model, batch), {"bias": fl.Last(model[0].bias[0])}

    step = step_of(loss=loss)
    expected, donating = step.init(net()), step.donating()
    state = expected.replace()
    values, reported = [], []
    for i in range(4):
        values.append(expected.params["0.weight"].clone())
        expected, metrics = step(expected, batch(seed=i))
        state, same = donating(state, batch(seed=i))
        reported.append((metrics["bias"], same["bias"]))
        kept[-2:] = kept[-1:]  # of the donating step
    assert all(map(torch.equal, values, kept))
    assert all(float(a) == float(b) for a, b in reported)
    assert fl.tree_equal(expected, state)


def test_a_rate_of_zero_leaves_the_memory_alone():
    state = fl.scale(after(), "adamw.lr", 0.0)
    expected, _ = STEP(state, batch(seed=5))
    state, _ = DONATING(state, batch(seed=5))
    assert fl.tree_equal(expected, state)


def test_frozen_and_unreached_parameters_stay():
    def loss(model, batch):
        return (model[0](batch[0]) - batch[1].sum()).square().mean()

    model = net()
    model[0].bias.requires_grad_(False)
    for step in (step_of(loss=loss), step_of()):
        expected = step.init(model)
        state = expected.replace()
        for i in range(4):
            expected, _ = step(expected, batch(seed=i))
            state, _ = step.donating()(state, batch(seed=i))
        assert fl.tree_equal(expected, state)


def test_a_donated_state_says_so():
    state = after()
    DONATING(state, batch())
    with pytest.raises(DonatedError, match=r"donated to a step(.|\n)*fl\.run"):
        _ = state.params


def test_an_optimizer_that_changes_what_another_makes_is_asked_itself():
    @fl.tree
    class Bounded(fl.optim.adamw):
        def apply(self, grads, memory, params, step, finite):
            new, memory = super().apply(grads, memory, params, step, finite)
            return new.clamp(-0.1, 0.1), memory

    step = step_of(Bounded(0.1)).donating()
    state = after(4, step)
    assert max(float(p.abs().max()) for p in state.params.values()) <= 0.1001


def test_fit_writes_in_place_and_what_an_effect_keeps_stays():
    places, states, values = [], [], []

    @fl.effect
    def see(state, metrics):
        places.append(address(state))
        if int(state.step) in (2, 5):
            states.append(state)
            values.append(fl.tree_map(torch.clone, state))

    data = fl.Batches(batch(12), 4)
    last, _ = fl.fit(STEP, STEP.init(net()), data, steps=9, callbacks=[see])
    expected = [state for state, _ in fl.run(STEP, STEP.init(net()), data, steps=9)]
    assert fl.tree_equal(expected[-1], last)
    assert len(set(places)) < 6, "it moves at the first step, and after each that is kept"
    for state, value, step in zip(states, values, (2, 5), strict=True):
        assert fl.tree_equal(state, value) and fl.tree_equal(state, expected[step - 1])


@pytest.mark.parametrize("compiled", [False, True])
def test_fit_writes_over_a_state_that_nobody_else_has(compiled):
    step = fl.compile(STEP, backend="aot_eager") if compiled else STEP
    places = []

    def noted(state):
        places.append(state.params.peek_storages()[0].data_ptr())
        return state

    see = fl.effect(lambda state, metrics: noted(state))
    data = fl.Batches(batch(12), 4)
    last, _ = fl.fit(step, noted(step.init(net())), data, steps=6, callbacks=[see])
    assert len(set(places)) == 1
    expected, _ = fl.fit(step, step.init(net()), data, steps=6)
    assert fl.tree_equal(expected, last)


class Broken(Exception):
    pass


def broken(state, metrics):
    raise Broken


@pytest.mark.parametrize("epoch", [True, False])
def test_a_step_keeps_its_state_where_a_callback_is_due_and_may_fail(epoch):
    data = fl.Batches(batch(12), 4, seed=1)
    states = [s for s, _ in fl.run(STEP, STEP.init(net()), data, steps=3)]
    failing = fl.every(1, broken, unit="epoch") if epoch else fl.every(3, broken)
    with pytest.raises(Broken) as caught:
        fl.fit(STEP, STEP.init(net()), data, steps=9, callbacks=[failing])
    kept = caught.value.state
    assert fl.tree_equal(kept.params, states[1].params) and int(kept.cursor[2]) == 2
    last, _ = fl.fit(STEP, kept, data, steps=1)
    assert fl.tree_equal(last.params, states[2].params)


def test_a_state_that_an_effect_has_kept_from_a_step_that_copies_stays():
    states, values = [], []

    @fl.effect
    def see(state, metrics):
        states.append(state)
        values.append(fl.tree_map(torch.clone, state))

    data = fl.Batches(batch(12), 4, seed=1)
    same = fl.every(2, lambda state, metrics: (state, metrics), name="same")
    fl.fit(STEP, STEP.init(net()), data, steps=7, callbacks=[same, see])
    assert all(map(fl.tree_equal, states, values))


def test_fit_leaves_the_state_that_it_is_given_alone():
    state = after(3, STEP)
    before = fl.tree_map(torch.clone, state)
    fl.fit(STEP, state, fl.Batches(batch(12), 4), steps=4)
    assert fl.tree_equal(before, state)


@fl.tree
class Best(fl.base.Callback):
    """Keeps the parameters, not copies, of the lowest loss."""

    label = "best"
    name: str = "best"

    def init_state(self, state, metrics):
        return {"params": state.params, "loss": torch.tensor(torch.inf, dtype=torch.float64)}

    def __call__(self, state, metrics):
        loss = torch.tensor(float(metrics["loss"]), dtype=torch.float64)
        if loss >= state["best"]["loss"]:
            return state, metrics
        return state.put("best", {"params": state.params, "loss": loss}), metrics


def test_a_callback_that_keeps_the_best_parameters_has_them():
    data = fl.Batches(batch(12), 4, seed=3)
    start = STEP.init(net())
    expected = [s for s, _ in fl.run(STEP, start, data, steps=9, callbacks=[Best()])]
    last, _ = fl.fit(STEP, start, data, steps=9, callbacks=[Best()])
    assert fl.tree_equal(expected[-1], last)
    assert len({float(s["best"]["loss"]) for s in expected}) > 2


class Subclass(Tensor):
    """Its functions are Python's, so a kernel on it may be interrupted."""


@pytest.mark.parametrize("mode", ["default device", "dispatch", "subclass"])
def test_where_python_runs_inside_of_a_kernel_the_step_copies(mode):
    with contextlib.ExitStack() as stack:
        if mode == "default device":
            stack.enter_context(torch.device("cpu"))
        elif mode == "dispatch":
            stack.enter_context(FlopCounterMode(display=False))
        state, expected = after(), after(step=STEP)
        if mode == "subclass":
            params = fl.tree_map(lambda t: t.clone().as_subclass(Subclass), state.params)
            state = state.replace(params=params)
            own(state)
        before = address(state)
        state, _ = DONATING(state, batch())
        expected, _ = STEP(expected, batch())
    assert address(state) != before
    assert fl.tree_equal(look(expected), look(state))


def test_few_parameters_are_copied_and_many_are_not(monkeypatch):
    state = after()
    # 23 values in 4 tensors
    for per_tensor, worth, places in ((0, 24, 2), (0, 23, 1), (10, 64, 2), (10, 63, 1)):
        monkeypatch.setattr(donating, "PER_TENSOR", per_tensor)
        monkeypatch.setattr(donating, "WORTH", worth)
        before = address(state)
        state, _ = DONATING(state, batch())
        assert len({before, address(state)}) == places


def test_states_that_were_written_over_are_freed():
    state = after()
    params = weakref.ref(state.params)
    state, _ = DONATING(state, batch())
    gc.collect()
    assert params() is None


def test_gradients_flow_through_a_donating_step():
    state = STEP.init(net())
    start = state.params["0.weight"].clone().requires_grad_()
    state = state.replace(params={**state.params, "0.weight": start})
    for i in range(2):
        state, _ = DONATING(state, batch(seed=i))
    (grad,) = torch.autograd.grad(state.params["2.weight"].sum(), start)
    assert bool(grad.any())


def test_it_prints_as_the_step_that_it_wraps():
    step = fl.ema(0.9)(STEP)
    assert repr(step.donating()) == repr(step)
