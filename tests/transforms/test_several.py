"""Several steps in one call of a compiled step: the bits of one call for each."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop.values.donated import DonatedError


def loss(model, batch):
    x, y = batch
    scores = model(x)
    about = {"accuracy": fl.metrics.accuracy(scores, y), "parts": fl.Mean(x.detach().sum(0), 1)}
    return F.cross_entropy(scores, y), about


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(F.dropout(torch.relu(self.norm(self.first(x))), 0.3, self.training))


def net():
    torch.manual_seed(0)
    return Net()


def batches(n=11, size=6):
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randn(n, 4, generator=generator)  # noqa: E731
    return [(draw(size), torch.randint(3, (size,), generator=generator)) for _ in range(n)]


@fl.tree
class Counted(fl.base.StepStage):
    """Has memory in a list, and of no size; reports the cursor that it sees."""

    wraps = "step"
    label = "counted"
    inner: object
    name: str = "counted"

    def init_state(self, state):
        return {"list": [torch.zeros(2), torch.zeros(2)], "empty": torch.zeros(0)}

    def __call__(self, state, x):
        seen = state.cursor.sum()
        state, metrics = self.inner(state, x)
        memory = fl.tree_map(lambda t: t + 1, state[self.name])
        return state.put(self.name, memory), {**metrics, "seen": fl.Last(seen)}


def pipeline(*before, optimizer=None, after=()):
    return fl.pipe(loss, fl.grad, *before, fl.update(optimizer or fl.optim.adamw(0.05)), *after)


CLIPPED = fl.optim.chain(fl.optim.clip_by_norm(0.1), fl.optim.adamw(fl.schedules.linear(0.1, 0, 9)))
PIPELINES = {
    "plain": pipeline(),
    "ema": pipeline(after=[fl.ema(0.9)]),
    "accumulate": pipeline(fl.accumulate(2)),
    "clip": pipeline(optimizer=CLIPPED),
    "guard": pipeline(after=[fl.guard(fl.rules.spike("loss", sigmas=0.1, warmup=2))]),
    "scale": pipeline(fl.amp("fp16")),
    "memory": pipeline(after=[Counted]),
}


def one_by_one(step, state, given):
    """The states and metrics of a call for each batch."""
    found = []
    for batch in given:
        state, metrics = step(state, batch)
        found.append((fl.tree_map(torch.clone, state), metrics))
    return found


def several(step, state, given, steps):
    """The last state of each call, and the metrics of all steps."""
    states, metrics = [], []
    for i in range(0, len(given), steps):
        state, reported = step(state, given[i : i + steps])
        states.append(fl.tree_map(torch.clone, state))
        metrics += reported
    return states, metrics


def check(pipe, donate, backend="aot_eager", given=None, steps=4):
    given = batches() if given is None else given
    single = fl.compile(pipe, donate=donate, backend=backend)
    many = fl.compile(pipe, donate=donate, backend=backend, steps=steps)
    expected = one_by_one(single, single.init(net(), seed=3), given)
    states, metrics = several(many, many.init(net(), seed=3), given, steps)
    last = [*range(steps - 1, len(given) - 1, steps), len(given) - 1]
    assert len(states) == len(last) and len(metrics) == len(given)
    for place, state in zip(last, states, strict=True):
        assert fl.tree_diff(expected[place][0], state) == ""
    assert fl.tree_equal([m for _, m in expected], metrics)
    assert single.graphs == many.graphs


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("name", PIPELINES)
def test_several_steps_have_the_bits_of_a_call_for_each(name, donate):
    check(PIPELINES[name], donate)


@pytest.mark.parametrize("donate", [False, True])
def test_so_do_those_in_machine_code(donate):
    check(pipeline(fl.accumulate(2), after=[fl.ema(0.9)]), donate, "inductor")


@pytest.mark.parametrize("donate", [False, True])
def test_batches_of_other_shapes_may_be_among_them(donate):
    sizes = [6, 6, 3, 6, 3, 3, 6]
    check(PIPELINES["ema"], donate, given=[batches(1, size)[0] for size in sizes])


def test_a_population_does_several_steps():
    member = pipeline()
    vmapped = torch.func.vmap(member, in_dims=(0, None), randomness="different")
    step = fl.stage(vmapped, "step")
    given, states = batches(5), [member.init(net(), seed=i) for i in (3, 4)]
    state = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    copy = fl.tree_map(torch.clone, state)
    found = one_by_one(fl.compile(step, donate=True, backend="aot_eager"), copy, given)
    many = fl.compile(step, donate=True, backend="aot_eager", steps=5)
    after, metrics = many(state, given)
    assert fl.tree_diff(found[-1][0], after) == ""
    assert fl.tree_equal([m for _, m in found], metrics)


def test_what_is_taken_out_of_the_first_state_stays_as_it_was():
    step = fl.compile(pipeline(), donate=True, backend="aot_eager", steps=4)
    state, _ = step(step.init(net()), batches(4))
    taken, params = state.params["first.weight"], state.params
    before = taken.clone()
    after, _ = step(state, batches(4))
    assert torch.equal(taken, before) and torch.equal(params["first.weight"], before)
    with pytest.raises(DonatedError):
        _ = state.params
    again, _ = step(after, batches(4))
    del params, taken
    place = again.params["first.weight"].data_ptr()
    for _ in range(3):
        again, _ = step(again, batches(4))
    assert again.params["first.weight"].data_ptr() == place


def test_the_given_state_stays_where_nothing_is_donated():
    step = fl.compile(pipeline(), backend="aot_eager", steps=4)
    state = step.init(net())
    before = fl.tree_map(torch.clone, state)
    step(state, batches(4))
    assert fl.tree_equal(before, state)


@pytest.mark.parametrize("donate", [False, True])
def test_an_error_has_the_state_before_the_step_that_failed(donate):
    single = fl.compile(PIPELINES["ema"], backend="aot_eager", donate=donate)
    step = fl.compile(PIPELINES["ema"], backend="aot_eager", donate=donate, steps=4)
    given = batches(4)
    expected = one_by_one(single, single.init(net()), given[:2])[-1][0]
    x, y = given[2]
    with pytest.raises(RuntimeError) as caught:
        step(step.init(net()), [*given[:2], (x[:, :2], y), given[3]])
    assert fl.tree_diff(expected, caught.value.state) == ""


def test_what_is_no_list_of_batches_is_refused_before_anything_runs():
    step = fl.compile(pipeline(), backend="aot_eager", steps=4)
    state, (batch, *_) = step.init(net()), batches()
    with pytest.raises(TypeError, match=r"steps=4.*list of 1 to 4 batches.*\[batch\]"):
        step(state, batch)
    with pytest.raises(ValueError, match=r"steps=4.*one of 5"):
        step(state, [batch] * 5)
    with pytest.raises(ValueError, match="one of 0"):
        step(state, [])
    with pytest.raises(Exception) as caught:
        step(state, [*batch])  # one batch, which is a list
    assert any("takes a list of batches" in note for note in caught.value.__notes__)
    assert step.graphs == 0


def test_the_number_of_steps_is_one_at_least():
    with pytest.raises(ValueError, match=r"compile\(steps=...\)"):
        fl.compile(pipeline(), steps=0)
    with pytest.raises(TypeError, match=r"compile\(steps=...\)"):
        fl.compile(pipeline(), steps=1.5)
    assert "steps=3" in repr(fl.compile(pipeline(), steps=3))


def test_several_steps_cannot_be_a_part_of_what_is_compiled():
    inner = fl.compile(pipeline(), backend="aot_eager", steps=2)
    outer = fl.compile(fl.stage(lambda state, x: inner(state, x), "step"), backend="aot_eager")
    with pytest.raises(fl.errors.CompileError, match=r"steps=2.*step.uncompiled"):
        outer(inner.init(net()), batches(2))
