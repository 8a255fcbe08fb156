"""Donation: in place where nobody looks, a copy where somebody does, an error where it is over."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import signal
import weakref

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.trees.paths import tree_items
from fnloop.values.donated import DonatedError


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def batch(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randn(n, 2, generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def step_of(optimizer=None, after=(), loss=mse):
    return fl.pipe(loss, fl.grad, fl.update(optimizer or fl.optim.adamw(0.1)), *after)


def donating(step):
    return fl.compile(step, donate=True, backend="aot_eager")


# One graph for all tests of what is kept.
STEP = donating(step_of(after=[fl.ema(0.9)]))


def after(n=2):
    state = STEP.init(net())
    for i in range(n):
        state, _ = STEP(state, batch(seed=i))
    return state


def address(state):
    return state.params["0.weight"].data_ptr()


# What somebody may take out of a state, and how to look at it later.
TAKEN = {
    "a tensor": lambda s: s.params["0.weight"],
    "a row": lambda s: s.params["0.weight"][0],
    "a transposed view": lambda s: s.params["2.weight"].t(),
    "an array": lambda s: s.params["0.weight"].numpy(),
    "a view of an array": lambda s: s.params["0.weight"].numpy()[0][:2],
    "a memoryview": lambda s: memoryview(s.params["0.weight"].numpy()),
    "another library's tensor": lambda s: torch.from_dlpack(s.params["0.weight"]),
    "a parameter": lambda s: nn.Parameter(s["ema"]["0.weight"]),
    "a detached tensor": lambda s: s["update"]["adamw"]["mu"]["0.bias"].detach(),
    "a moment": lambda s: s["update"]["adamw"]["nu"]["2.bias"],
    "the parameters": lambda s: s.params,
    "the storages": lambda s: s.params.storages,
    "a storage": lambda s: s["ema"].storages[0],
    "names and tensors": lambda s: s.params.items(),
    "some parameters": lambda s: s.params.select(["0.weight", "2.bias"]),
    "another layout": lambda s: fl.Tensors(dict.fromkeys(s.params, torch.ones(()))).like(s.params),
    "updated parameters": lambda s: s.params.updated(fl.Tensors({"0.bias": torch.ones(3)})),
    "one or the other": lambda s: s.params.where(True, s["ema"]),
    "the average": lambda s: s["ema"],
    "the moments": lambda s: s["update"]["adamw"]["mu"],
    "an optimizer's memory": lambda s: s["update"]["adamw"],
    "the update's memory": lambda s: s["update"],
    "the slots": lambda s: s.slots,
    "a copied dict": lambda s: dict(s.params),
    "a dict's values": lambda s: s.params.values(),
    "a list of leaves": fl.tree_leaves,
    "a mapped state": lambda s: fl.tree_map(lambda t: t, s),
    "a replaced state": lambda s: s.replace(cursor=s.cursor + 1),
    "a state with other parameters": lambda s: s.replace(params=fl.tree_map(torch.clone, s.params)),
    "a state with another slot": lambda s: s.put("mine", torch.ones(())),
    "a state with another rate": lambda s: fl.scale(s, "adamw.lr", 0.5),
    "a shallow copy": copy.copy,
    "a deep copy": copy.deepcopy,
    "a module": lambda s: list(fl.to_module(s).parameters()),
    "step and key": lambda s: (s.step, s.key, s.buffers),
}


def look(taken):
    """The values of what was taken, copied."""
    if isinstance(taken, memoryview):
        return [torch.tensor(taken.tolist())]
    leaves = [leaf for leaf in fl.tree_leaves(taken) if not isinstance(leaf, str)]
    return [torch.as_tensor(leaf).detach().clone() for leaf in leaves]


def close(expected, got):
    """Whether two states agree to rounding, by name."""
    expected, got = dict(tree_items(expected)), dict(tree_items(got))
    assert expected.keys() == got.keys()
    for path, leaf in expected.items():
        torch.testing.assert_close(leaf, got[path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_out_stays_as_it_was(name):
    state = after()
    taken = TAKEN[name](state)
    before = look(taken)
    for i in range(2):
        state, _ = STEP(state, batch(seed=7 + i))
    assert fl.tree_equal(before, look(taken))
    del taken
    state, _ = STEP(state, batch())  # where it was taken from a copy, this may be one, too
    seen = []
    for i in range(3):
        state, _ = STEP(state, batch(seed=i))
        seen.append(address(state))
    assert len(set(seen)) == 1, "nothing is kept any more, so the memory is used again"


def test_an_iterator_a_closure_and_a_generator_keep_what_they_look_at():
    state = after()
    expected = look(state.params.values())
    params = state.params

    def generator(params=params):
        yield
        yield from params.values()

    iterator, closure, generated = iter(params.values()), lambda params=params: params, generator()
    next(generated)
    del params
    STEP(state, batch())
    assert fl.tree_equal(expected, look(list(iterator)))
    assert fl.tree_equal(expected, look(closure().values()))
    assert fl.tree_equal(expected, look(list(generated)))


SINGLES = {
    "the step": lambda s: s.step,
    "a view of the step": lambda s: s.step.view(1),
    "an array of the step": lambda s: s.step.numpy(),
    "a count": lambda s: s["update"]["adamw"]["count"],
}


@pytest.mark.parametrize("name", SINGLES)
def test_a_number_that_is_kept_costs_a_copy_of_itself_alone(name):
    state = after()
    place, kept = address(state), []
    for i in range(3):
        kept.append((SINGLES[name](state), i + 2))
        state, _ = STEP(state, batch(seed=i))
    assert [int(number) for number, _ in kept] == [n for _, n in kept]
    assert address(state) == place


def test_numbers_are_written_in_place():
    state = after()
    step, count = state.step.data_ptr(), state["update"]["adamw"]["count"].data_ptr()
    state, _ = STEP(state, batch())
    assert state.step.data_ptr() == step
    assert state["update"]["adamw"]["count"].data_ptr() == count
    assert int(state.step) == int(state["update"]["adamw"]["count"]) == 3


def test_buffers_are_written_in_place_unless_they_are_kept():
    step = donating(step_of())
    state = step.init(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    state, _ = step(state, batch())
    place = state.buffers["1.running_mean"].data_ptr()
    state, _ = step(state, batch(seed=1))
    assert state.buffers["1.running_mean"].data_ptr() == place
    kept = [state.buffers["1.running_mean"], state.buffers]
    before = look(kept)
    for i in range(2):
        state, _ = step(state, batch(seed=i))
    assert fl.tree_equal(before, look(kept))


def test_what_two_slots_share_is_taken_apart():
    shared = torch.tensor(1.0)
    state = STEP.init(net())
    scale = dict.fromkeys(state["update"]["scale"], shared)
    state = state.put("update", {**state["update"], "scale": scale})
    adamw = {**state["update"]["adamw"], "count": torch.zeros(2)[0]}
    state = state.put("update", {**state["update"], "adamw": adamw})
    expected = state.replace()
    for i in range(3):
        expected, _ = STEP.inner(expected, batch(seed=i))
        state, _ = STEP(state, batch(seed=i))
    assert int(state["update"]["adamw"]["count"]) == 3
    assert float(shared) == 1.0
    torch.testing.assert_close(expected.params, state.params)


def test_a_number_in_the_batch_is_not_written_over():
    step = donating(step_of(loss=lambda model, batch: mse(model, batch) * batch[2]))
    state, _ = step(step.init(net()), (*batch(), torch.tensor(2)))
    for _ in range(2):
        here = state.step
        expected, _ = step.inner(state, (*batch(), here))
        state, _ = step(state, (*batch(), here))
        torch.testing.assert_close(expected.params, state.params)
        assert int(here) == int(state.step) - 1


def test_a_storage_that_is_kept_stays_as_it_was():
    for get in (lambda s: s.params["0.weight"], lambda s: s.step):
        state = after()
        kept = get(state).untyped_storage()
        before = list(kept)
        for i in range(2):
            state, _ = STEP(state, batch(seed=i))
        assert list(kept) == before


REPLACED = {
    "parameters": lambda s: s.replace(params=fl.tree_map(torch.clone, s.params)),
    "moments": lambda s: s.put("update", fl.tree_map(torch.clone, s["update"])),
    "an average": lambda s: s.put("ema", s.params),
    "a rate": lambda s: fl.scale(s, "adamw.lr", 0.5),
    "the step": lambda s: s.replace(step=s.step + 1),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_state_with_another_part_leaves_the_one_it_comes_from_alone(name):
    state = after()
    before = look(state)
    other = REPLACED[name](state)
    for i in range(2):
        other, _ = STEP(other, batch(seed=i))
    assert fl.tree_equal(before, look(state))
    twin, _ = STEP.inner(state, batch())
    state, _ = STEP(state, batch())
    torch.testing.assert_close(twin.params, state.params)


def test_a_pickle_is_a_copy():
    state = after()
    before, text = look(state), pickle.dumps(state)
    STEP(state, batch())
    assert fl.tree_equal(before, look(pickle.loads(text)))


@pytest.mark.parametrize(
    "get",
    [lambda s: s.params["0.weight"], lambda s: s.params["0.bias"], lambda s: s.params.storages[0]],
)
def test_what_autograd_saved_stays_as_it_was(get):
    state = after()
    x = torch.ones_like(get(state), requires_grad=True)
    product = (x * get(state)).sum()
    expected = get(state).clone()
    for i in range(2):
        state, _ = STEP(state, batch(seed=i))
    assert torch.equal(torch.autograd.grad(product, x)[0], expected)


ROTATING = {
    "adamw": (fl.optim.adamw(0.1), ()),
    "momentum": (fl.optim.sgd(0.1, momentum=0.9), ()),
    "two averages": (fl.optim.adamw(0.1), (fl.ema(0.9), fl.ema(0.5, name="fast"))),
    "by label": (
        fl.optim.by_label({"a": fl.optim.sgd(0.1), "b": fl.optim.adam(0.1)}, {"0": "a", "*": "b"}),
        (),
    ),
    "masked": (fl.optim.masked(fl.optim.adam(0.1), ["0"]), ()),
    "not joint": (fl.optim.lamb(0.1), ()),
}


@pytest.mark.parametrize("name", ROTATING)
def test_memory_is_used_again_at_every_step(name):
    optimizer, more = ROTATING[name]
    step = donating(step_of(optimizer, more))
    state = step.init(net())
    places = set()
    for i in range(5):
        state, _ = step(state, batch(seed=i))
        places.add(
            tuple(t.data_ptr() for t in fl.tree_leaves((state.params, state.slots)) if t.ndim)
        )
    assert len(places) == 1


def test_memory_moves_when_a_state_is_kept():
    state, seen = after(), set()
    kept = []
    for i in range(3):
        kept.append(state.replace())
        state, _ = STEP(state, batch(seed=i))
        seen.add(address(state))
    assert len(seen) == 3
    gc.collect()
    assert len({address(s) for s in kept}) == 3


def tensors_alive():
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def test_no_leak_over_many_steps():
    state, _ = STEP(after(), batch())
    before = tensors_alive()
    for i in range(30):
        state, _ = STEP(state, batch(seed=i))
    assert tensors_alive() <= before + 2


def test_the_first_state_and_its_parts_are_left_alone():
    state = STEP.init(net())
    params, before = state.params, look(state)
    kept = state.replace()
    STEP(state, batch())
    assert fl.tree_equal(before, look(kept))
    assert fl.tree_equal(look(params), look(kept.params))


def test_a_state_in_another_layout_and_its_parts_are_left_alone():
    theirs = STEP.inner.init(net())
    before = look(theirs)
    state = theirs.replace()
    for i in range(3):
        state, _ = STEP(state, batch(seed=i))
    assert fl.tree_equal(before, look(theirs))


def test_what_is_held_is_seen_beside_what_has_another_layout():
    state = after()
    moments, before = state["update"]["adamw"]["mu"], look(state["update"]["adamw"]["mu"])
    state = state.replace(params=dict(state.params))
    for i in range(2):
        state, _ = STEP(state, batch(seed=i))
    assert fl.tree_equal(before, look(moments))


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.replace(slots={}),
        lambda s: s.replace(params=fl.tree_map(torch.zeros_like, s.params)),
        lambda s: s.put("ema", None),
    ],
)
def test_what_is_replaced_is_freed(change):
    state = after()
    old = [weakref.ref(t.untyped_storage()) for t in fl.tree_leaves((state.params, state.slots))]
    state = change(state)
    new = {id(t.untyped_storage()) for t in fl.tree_leaves((state.params, state.slots))}
    gc.collect()
    assert all(ref() is None or id(ref()) in new for ref in old)
    assert sum(ref() is None for ref in old) >= 3


def test_a_state_is_freed_with_the_last_name_for_it():
    state = first = after()
    for i in range(3):
        state, _ = STEP(state, batch(seed=i))
    storage = weakref.ref(state.params["0.weight"].untyped_storage())
    del first
    assert storage() is not None
    del state
    gc.collect()
    assert storage() is None


READ = {
    "a field": lambda s: s.params,
    "a slot": lambda s: s["update"],
    "leaves": fl.tree_leaves,
    "torch's leaves": torch.utils._pytree.tree_leaves,
    "a copy by tree_map": lambda s: fl.tree_map(torch.clone, s),
    "replace": lambda s: s.replace(step=s.step),
    "put": lambda s: s.put("x", 1),
    "to": lambda s: s.to("cpu"),
    "an eager step": lambda s: STEP.inner(s, batch()),
    "a compiled step": lambda s: STEP(s, batch()),
    "init": STEP.init,
    "run": lambda s: next(fl.run(STEP.inner, s, [batch()])),
    "fit": lambda s: fl.fit(STEP, s, [batch()], steps=1),
    "evaluate": lambda s: fl.evaluate(mse, s, [batch()]),
    "to_module": fl.to_module,
    "save": lambda s: fl.save(s, "never"),
    "scale": lambda s: fl.scale(s, "adamw.lr", 0.5),
    "show": fl.tree_show,
    "diff": lambda s: fl.tree_diff(s, after()),
    "hash": hash,
}


@pytest.mark.parametrize("name", READ)
def test_a_donated_state_says_so_when_it_is_read(name):
    state = after(1)
    STEP(state, batch())
    with pytest.raises(DonatedError, match=r"donated to a step(.|\n)*tree_map"):
        READ[name](state)


def test_a_donated_state_can_be_printed_and_is_still_a_state():
    state = after(1)
    STEP(state, batch())
    assert repr(state) == "State(donated)"
    assert isinstance(state, fl.State)


def test_run_shows_states_that_its_next_step_takes_away():
    data = fl.Batches(batch(12), 4)
    shown = [state for state, _ in fl.run(STEP, STEP.init(net()), data, steps=3)]
    assert int(shown[-1].step) == 3
    with pytest.raises(DonatedError, match="after 1 batches"):
        shown[0].params  # noqa: B018


def test_without_donation_every_state_stays():
    step = fl.compile(STEP.inner, backend="aot_eager")
    state = step.init(net())
    shown = [(state, fl.tree_map(torch.clone, state))]
    for i in range(3):
        state, _ = step(state, batch(seed=i))
        shown.append((state, fl.tree_map(torch.clone, state)))
    assert all(fl.tree_equal(state, expected) for state, expected in shown)
    again, _ = step(shown[1][0], batch(seed=1))
    assert fl.tree_equal(again, shown[2][0])


def record(keep):
    seen = []
    return seen, fl.effect(lambda state, metrics: seen.append(keep(state)))


def test_fit_works_in_place():
    seen, effect = record(address)
    watch = [
        fl.every(2, fl.validate(mse, fl.Batches(batch(8), 4), params="ema")),
        fl.early_stopping("loss", patience=99),
        lambda state, metrics: (fl.scale(state, "adamw.lr", 0.9), metrics),
        fl.History(),
        effect,
    ]
    fl.fit(STEP, STEP.init(net()), fl.Batches(batch(12), 4), steps=8, callbacks=watch)
    assert len(seen) == 8
    assert len(set(seen[1:])) == 1


def storages(state):
    own = (state.params, state["update"], state["ema"])
    return [t.untyped_storage().data_ptr() for t in fl.tree_leaves(own)]


@pytest.mark.parametrize("name", ["step", "wrapped", "inductor"])
def test_fit_makes_no_copies_however_many_look_on(name, capsys):
    step = {
        "step": STEP,
        "wrapped": lambda state, batch: STEP(state, batch),
        "inductor": fl.compile(STEP.inner, donate=True),
    }[name]
    seen, effect = record(storages)
    watch = [
        lambda state, metrics: (state, {**metrics, "norm": fl.Last(state.params.norm())}),
        fl.every(3, fl.validate(mse, fl.Batches(batch(8), 4), params="ema")),
        fl.every(4, fl.effect(lambda state, metrics: float(state.params["0.bias"].sum()))),
        fl.early_stopping("loss", patience=99),
        fl.History(),
        fl.progress(),
        effect,
    ]
    state = fl.compile(STEP.inner).init(net()) if name == "inductor" else STEP.init(net())
    fl.fit(step, state, fl.Batches(batch(12), 4), steps=21, callbacks=watch)
    assert len(seen) == 21
    assert all(places == seen[1] for places in seen[1:])


@pytest.mark.parametrize("wrapped", [False, True])
def test_states_in_a_background_checkpoint_and_in_callbacks_are_whole(tmp_path, wrapped):
    step = (lambda state, batch: STEP(state, batch)) if wrapped else STEP
    kept, shown = [], []

    def keep(state, metrics):
        kept.append((state, look(state)))
        return state, metrics

    callbacks = [
        keep,
        fl.effect(lambda state, metrics: shown.append((state, look(state)))),
        fl.checkpoint(tmp_path, every=2, keep=None, unit="step", background=True),
    ]
    data = fl.Batches(batch(12), 4)
    expected = {}
    for state, _ in fl.run(STEP, STEP.init(net()), data, steps=6):
        expected[int(state.step)] = fl.tree_map(torch.clone, state)
    fl.fit(step, STEP.init(net()), data, steps=6, callbacks=callbacks)
    assert len(kept) == len(shown) == 6
    for state, before in [*kept, *shown]:
        assert fl.tree_equal(look(state), before)
    found = sorted(tmp_path.glob("step-*"))
    assert len(found) >= 3
    for path in found:
        saved = fl.load(path, like=state)
        assert fl.tree_diff(saved, expected[int(saved.step)]) == ""


def test_an_error_after_two_steps_on_one_batch_has_the_newest_state():
    def twice(state, batch):
        for _ in range(2):
            state, metrics = STEP(state, batch)
        if int(state.step) == 6:
            raise RuntimeError("stop")
        return state, metrics

    data = fl.Batches(batch(12), 4)
    expected = STEP.init(net())
    for state, _ in fl.run(twice, STEP.init(net()), data, steps=2):
        expected = state
    with pytest.raises(RuntimeError) as caught:
        for _ in fl.run(twice, STEP.init(net()), data, steps=9):
            pass
    assert int(expected.step) == 4
    assert int(caught.value.state.step) == int(caught.value.state.calls) == 6


def test_fit_copies_only_for_the_checkpoints_that_it_writes(tmp_path):
    seen, effect = record(address)
    callbacks = [fl.checkpoint(tmp_path, every=4), effect]
    fl.fit(STEP, STEP.init(net()), fl.Batches(batch(12), 4), steps=12, callbacks=callbacks)
    changes = sum(a != b for a, b in itertools.pairwise(seen))
    assert changes <= 2 * 3  # into a copy, and perhaps back


KEEPING = {
    "states": lambda state: state,
    "parameters": lambda state: state.params,
    "memory": lambda state: state["update"],
    "slots": lambda state: state.slots,
    "arrays": lambda state: state.params["0.bias"].numpy(),
}


@pytest.mark.parametrize("name", KEEPING)
def test_an_effect_may_keep_what_it_is_shown(name):
    keep = KEEPING[name]
    seen, effect = record(lambda state: (keep(state), look(keep(state))))
    data = fl.Batches(batch(12), 4)
    fl.fit(STEP, STEP.init(net()), data, steps=5, callbacks=[effect])
    assert len(seen) == 5
    assert all(fl.tree_equal(look(kept), expected) for kept, expected in seen)


def test_a_callback_may_keep_the_parameters_in_its_slot():
    def best(state, metrics):
        loss = torch.tensor(float(metrics["loss"]))
        if loss < state["best"]["loss"]:
            state = state.put("best", {"loss": loss, "params": state.params})
        return state, metrics

    def go(step):
        state = step.init(net())
        state = state.put("best", {"loss": torch.tensor(1e9), "params": state.params})
        return fl.fit(step, state, fl.Batches(batch(12), 4), steps=9, callbacks=[best])[0]

    close(go(STEP.inner), go(STEP))


def failing(at, error):
    def fail(state, metrics):
        if int(state.cursor[2]) == at:
            raise error

    return fl.effect(fail)


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_a_failing_effect_leaves_a_good_state_in_the_error(error):
    data = fl.Batches(batch(12), 4)
    with pytest.raises(type(error)) as caught:
        fl.fit(STEP, STEP.init(net()), data, steps=9, callbacks=[failing(4, error)])
    state = caught.value.state
    expected, _ = fl.fit(STEP, STEP.init(net()), data, steps=int(state.cursor[2]))
    assert int(state.cursor[2]) in (3, 4)
    assert fl.tree_diff(expected, state) == ""


def test_failing_data_and_a_failing_loss_leave_a_good_state():
    def broken():
        yield batch()
        yield batch(seed=1)
        raise OSError("disk")

    wrong = [batch(), batch(seed=1), (torch.ones(5, 3), torch.ones(5, 2))]
    expected, _ = fl.fit(STEP, STEP.init(net()), wrong[:2], steps=2)
    for data, kind in ((broken(), OSError), (wrong, RuntimeError)):
        with pytest.raises(kind) as caught:
            fl.fit(STEP, STEP.init(net()), data, steps=9)
        assert fl.tree_equal(expected.params, caught.value.state.params)


def test_a_step_that_cannot_be_recorded_leaves_its_state_alone():
    step = donating(step_of(loss=lambda model, batch: mse(model, batch) * float(batch[0].sum())))
    state = step.init(net())
    with pytest.raises(fl.errors.CompileError):
        step(state, batch())
    assert int(state.step) == 0


def test_an_interrupt_before_anything_is_written_leaves_the_state_as_it_is():
    def backend(graph, inputs):
        def run(*tensors):
            if interrupting:
                raise KeyboardInterrupt
            return graph.forward(*tensors)

        return run

    interrupting = []
    step = fl.compile(step_of(), donate=True, backend=backend)
    state, _ = step(step.init(net()), batch())
    before = look(state)
    interrupting.append(True)
    with pytest.raises(KeyboardInterrupt):
        step(state, batch())
    assert fl.tree_equal(before, look(state))
    interrupting.clear()
    expected, _ = step(fl.tree_map(torch.clone, state), batch())
    assert fl.tree_equal(expected, step(state, batch())[0])


def test_one_ctrl_c_finishes_the_step():
    press = fl.effect(
        lambda state, metrics: signal.raise_signal(signal.SIGINT) if state.step == 3 else None
    )
    data = fl.Batches(batch(12), 4)
    state, history = fl.fit(STEP, STEP.init(net()), data, steps=9, callbacks=[press])
    assert history.status == "interrupted"
    expected, _ = fl.fit(STEP, STEP.init(net()), data, steps=int(state.cursor[2]))
    assert fl.tree_diff(expected, state) == ""


@fl.tree
class Remember(fl.base.StepStage):
    """Keeps the parameters of the step before, and of the one before that."""

    wraps = "step"
    label = "remember"
    inner: object
    name: str = "before"

    def init_state(self, state):
        copied = fl.tree_map(torch.clone, state.params)
        return {"last": copied, "older": fl.tree_map(torch.clone, copied), "one": copied["0.bias"]}

    def __call__(self, state, x):
        after, metrics = self.inner(state, x)
        old = state[self.name]
        memory = {"last": state.params, "older": old["last"], "one": state.params["0.bias"]}
        return after.put(self.name, memory), {**metrics, "was": fl.Last(state.params["0.bias"])}


def test_old_values_that_move_to_another_place_are_read_before_they_are_overwritten():
    step = step_of(after=[Remember])
    fast = donating(step)
    expected = step.init(net())
    got = expected.replace()
    for i in range(4):
        expected, wanted = step(expected, batch(seed=i))
        got, metrics = fast(got, batch(seed=i))
        close(expected, got)
        torch.testing.assert_close(wanted["was"].value(), metrics["was"].value())


class Waves(nn.Module):
    def __init__(self):
        super().__init__()
        self.odd = nn.Parameter(torch.ones(3))
        self.wide = nn.Parameter(torch.randn(2, 3, dtype=torch.complex64))
        self.narrow = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x):
        rows = self.wide[None] * self.narrow * x[:, None, :3]
        return rows.real.square().sum(-1) + self.odd[:2]


@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex")
def test_complex_parameters_are_read_before_they_are_overwritten():
    torch.manual_seed(0)
    step = step_of(fl.optim.sgd(0.01))
    fast = fl.compile(step, donate=True)
    expected = got = step.init(Waves())
    for i in range(4):
        expected, _ = step(expected, batch(seed=i))
        got, _ = fast(got, batch(seed=i))
    for name, p in expected.params.items():
        torch.testing.assert_close(got.params[name], p)


def test_metrics_of_a_donated_step_stay_as_they_were():
    def loss(model, batch):
        return mse(model, batch), {"weight": fl.Last(model[0].weight)}

    step = donating(step_of(loss=loss))
    state, metrics = step(step.init(net()), batch())
    before = look(metrics)
    for i in range(2):
        state, _ = step(state, batch(seed=i))
    assert fl.tree_equal(before, look(metrics))


class Pooled(nn.Module):
    """Attention, dropout, and a mean over places: a row of it is computed twice by Inductor."""

    def __init__(self):
        super().__init__()
        self.embedding, self.places = nn.Embedding(30, 8), nn.Embedding(40, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.places(torch.arange(tokens.shape[1]))
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        x = x + self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        return self.head((self.drop(x) * ~mask[..., None]).sum(1) / 9)


def test_the_loss_is_that_of_the_parameters_before_they_are_overwritten():
    step = step_of(fl.optim.sgd(0.1), loss=lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
    fast = fl.compile(step, donate=True)
    torch.manual_seed(0)
    model = Pooled()
    row = torch.randint(30, (1, 9)), torch.tensor([2])
    _, expected = step(step.init(model), row)
    _, metrics = fast(fast.init(model), row)
    torch.testing.assert_close(metrics["loss"].value(), expected["loss"].value())


def test_donating_shares_its_graphs_with_the_plain_step():
    step = fl.compile(step_of(), backend="aot_eager")
    assert step.donating() is step.donating()
    assert step.donating().donate and not step.donate
    assert step.donating().donating() is step.donating()


def test_a_norm_is_that_of_the_values_now():
    state = STEP.init(net())
    for i in range(3):
        state, _ = STEP(state, batch(seed=i))
        for tensors in (state.params, state["ema"]):
            assert torch.equal(tensors.norm(), tensors.clone().norm())


def test_a_wrapper_around_a_donating_step_may_save_in_the_background(tmp_path):
    step = donating(step_of())
    saving = fl.checkpoint(tmp_path, keep=None, every=1, unit="step", background=True)
    wrapped = lambda state, batch: step(state, batch)  # noqa: E731
    data = fl.Batches(batch(12), 4)
    last, _ = fl.fit(wrapped, step.init(net()), data, steps=6, callbacks=[saving])
    for path in tmp_path.iterdir():
        expected, _ = fl.fit(step, step.init(net()), data, steps=int(path.name[5:]))
        assert fl.tree_diff(expected, fl.load(path, like=last)) == ""
    assert len([*tmp_path.iterdir()]) == 6


def test_replacing_the_slots_frees_their_memory():
    step = donating(step_of())
    state, _ = step(step.init(net()), batch())
    state, _ = step(state, batch())
    memory = [weakref.ref(leaf) for leaf in fl.tree_leaves(state.slots)]
    state = state.replace(slots={})
    gc.collect()
    assert memory and not any(ref() is not None for ref in memory)
