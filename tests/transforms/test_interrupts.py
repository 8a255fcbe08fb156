"""A donating step that is interrupted, wherever that may be, leaves one whole state."""

from __future__ import annotations

import dis
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.stages import donating
from tests.instructions import instructions

ROOT = Path(fl.__file__).parent
WATCHED = frozenset(
    str(ROOT / name)
    for name in (
        "transforms/compile.py",
        "transforms/kept.py",
        "transforms/program.py",
        "transforms/series.py",
        "stages/donating.py",
        "stages/ema.py",
        "stages/update.py",
        "values/between.py",
        "values/donated.py",
        "values/fused_update.py",
        "values/holders.py",
        "values/state.py",
        "values/writes.py",
        "loop/newest.py",
        "loop/run.py",
        "loop/steps.py",
        "loop/together.py",
    )
)


NOP = dis.opmap["NOP"]


class Stop(BaseException):
    """What nobody catches."""


class Trouble(Exception):
    """What the loop keeps until callbacks have been told of the steps before."""


@fl.tree
class Pair:
    left: torch.Tensor
    right: torch.Tensor


@fl.tree
class Memory(fl.base.StepStage):
    """Has memory in every kind of container, and one of odd strides."""

    wraps = "step"
    label = "memory"
    inner: object
    name: str = "mine"

    def init_state(self, state):
        one = torch.ones(2)
        return {
            "list": [one, one],
            "pair": Pair(one, torch.ones(())),
            "odd": torch.arange(6.0)[::2],
            "empty": torch.zeros(0),
        }

    def __call__(self, state, x):
        after, metrics = self.inner(state, x)
        return after.put(self.name, fl.tree_map(lambda t: t * 2 + 1, after[self.name])), metrics


@fl.tree
class Copied(fl.base.Callback):
    """Makes another state."""

    label = "copied"

    def is_due(self, cursor):
        return False  # so that steps before it donate

    def __call__(self, state, metrics):
        return state.replace(slots={**state.slots}), metrics


class Shown(fl.base.Effect):
    """Notes that it is called."""

    def __init__(self, seen, in_between):
        self.seen, self.in_between = seen, in_between

    def needs_state(self, cursor, reported):
        return not self.in_between

    def __call__(self, state, metrics):
        self.seen.append(int(state.cursor[2]))


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def step_of(backend, donate=True, steps=1):
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.adamw(0.1)))
    if backend is None:
        return fl.pipe(step, fl.ema(0.9)).donating()
    pipe = fl.pipe(step, fl.ema(0.9), Memory)
    return fl.compile(pipe, donate=donate, backend=backend, steps=steps)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def data():
    generator = torch.Generator().manual_seed(0)
    return fl.Batches((torch.randn(12, 3, generator=generator), torch.randn(12, 1)), 4, seed=1)


class Interrupted:
    """The run without an interrupt, and what is checked of one that has been interrupted."""

    def __init__(self, backend, donate=True, steps=1):
        torch.manual_seed(0)
        self.step, self.data, self.seen = step_of(backend, donate, steps), data(), []
        self.steps = steps
        self.span = (1, 4) if steps == 1 else (2, 7)  # in which the second call has three steps
        self.states = [self.step.init(net())]
        first = fl.tree_map(torch.clone, self.states[0])
        single = self.step if steps == 1 else step_of(backend)
        for state, _ in fl.run(single, first, self.data, steps=8):
            self.states.append(fl.tree_map(torch.clone, state))
        for _ in self.turns(self.step, *self.span):  # so that it is compiled
            pass

    def callbacks(self):
        return [Copied(), Shown(self.seen, in_between=self.steps > 1)]

    def turns(self, step, first, last):
        state = fl.tree_map(torch.clone, self.states[first])
        return fl.run(step, state, self.data, steps=last - first, callbacks=self.callbacks())

    def check(self, error, known=None):
        """The state in the error is one of the run, and goes on as it does."""
        state = error.state
        count = int(state.cursor[2])
        first, last = self.span
        assert count in (known or range(first + 1, last + 1)) and int(state.calls) == count
        assert fl.tree_diff(self.states[count], state) == ""
        [(after, _)] = fl.run(self.step, state, self.data, steps=1)
        assert fl.tree_diff(self.states[count + 1], after) == ""
        return count


@pytest.fixture(scope="module")
def eager():
    return Interrupted("aot_eager")


@pytest.fixture(scope="module")
def together():
    return Interrupted("aot_eager", steps=4)


@pytest.fixture(scope="module")
def keeping():
    return Interrupted("aot_eager", donate=False, steps=4)


@pytest.fixture(scope="module")
def uncompiled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(donating, "WORTH", 0)  # few parameters are copied otherwise
        yield Interrupted(None)


@pytest.fixture(scope="module")
def inductor():
    return Interrupted("inductor")


class Places:
    """Raises an error at the n-th opcode of the watched files; None: notes where they are."""

    def __init__(self, n=None, error=None):
        self.n, self.error, self.places = n, error, []

    def __call__(self, code, at):
        if code.co_code[at] != NOP:  # at which nothing can be raised
            self.places.append((code, at))
            if len(self.places) - 1 == self.n:
                raise self.error


def traced(case, step, places):
    """Two calls of a step, and what the loop does after each; the error if there is one."""
    turns = case.turns(step, *case.span)
    next(turns)
    try:
        with instructions(WATCHED, places):
            next(turns)
            next(turns)
        next(turns, None)  # raises what the loop has kept after the last step of a call
    except (Stop, KeyboardInterrupt, Trouble) as error:
        return error
    finally:
        turns.close()
    return None


def opcodes(case, step, again=2):
    """The numbers of all opcodes in two steps, each place in the code so many times at most."""
    found, seen = Places(), Counter()
    assert traced(case, step, found) is None
    for n, place in enumerate(found.places):
        seen[place] += 1
        if seen[place] <= again:
            yield n


def interrupt(case, step, n, error):
    found = Places(n, error)
    caught = traced(case, step, found)
    assert caught is error
    try:
        return case.check(caught)
    except Exception as wrong:
        code, at = found.places[-1]
        lines = [line for start, line in dis.findlinestarts(code) if start <= at]
        wrong.add_note(f"at opcode {n}, in {code.co_filename}, line {lines[-1]}")
        raise


@pytest.mark.slow
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_exception_at_any_bytecode_leaves_one_whole_state(eager, error):
    found = {interrupt(eager, eager.step, n, error()) for n in opcodes(eager, eager.step)}
    assert found == {2, 3, 4}


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_exception_at_many_a_bytecode_leaves_one_whole_state(eager, error):
    numbers = list(opcodes(eager, eager.step))
    first = [Stop, KeyboardInterrupt].index(error)
    found = {interrupt(eager, eager.step, n, error()) for n in numbers[first::17]}
    assert found == {2, 3, 4}


@pytest.mark.slow
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_exception_at_any_bytecode_of_a_step_that_is_not_compiled(uncompiled, error):
    numbers = opcodes(uncompiled, uncompiled.step)
    found = {interrupt(uncompiled, uncompiled.step, n, error()) for n in numbers}
    assert found == {2, 3, 4}


def test_an_exception_at_many_a_bytecode_of_a_step_that_is_not_compiled(uncompiled):
    places = set()
    for state, _ in uncompiled.turns(uncompiled.step, 1, 4):
        places.add(state.params["0.weight"].data_ptr())
    assert len(places) == 1  # it writes in place
    numbers = list(opcodes(uncompiled, uncompiled.step))
    found = {interrupt(uncompiled, uncompiled.step, n, Stop()) for n in numbers[::7]}
    assert found == {2, 3, 4}


@pytest.mark.parametrize("error", [Stop, Trouble])
@pytest.mark.parametrize("name", ["together", "keeping"])
def test_an_exception_at_many_a_bytecode_within_a_call_of_several_steps(name, error, request):
    case = request.getfixturevalue(name)
    turns = case.turns(case.step, *case.span)
    assert [int(state.cursor[2]) for state, _ in turns] == [3, 6, 7]
    numbers = list(opcodes(case, case.step))
    found = {interrupt(case, case.step, n, error()) for n in numbers[::19]}
    assert found == {3, 4, 5, 6, 7}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["together", "keeping"])
@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, Trouble])
def test_an_exception_at_any_bytecode_within_a_call_of_several_steps(name, error, request):
    case = request.getfixturevalue(name)
    found = {interrupt(case, case.step, n, error()) for n in opcodes(case, case.step)}
    assert found == {3, 4, 5, 6, 7}


def test_machine_code_writes_all_or_nothing(inductor):
    numbers = list(opcodes(inductor, inductor.step))
    found = {interrupt(inductor, inductor.step, n, Stop()) for n in numbers[::29]}
    assert found == {2, 3, 4}


def test_a_wrapper_around_the_step_changes_nothing_about_that(eager):
    wrapped = lambda state, batch: eager.step(state, batch)  # noqa: E731
    numbers = list(opcodes(eager, wrapped))
    found = {interrupt(eager, wrapped, n, Stop()) for n in numbers[5::37]}
    assert found == {2, 3, 4}


@pytest.mark.parametrize("name", ["uncompiled", "eager", "inductor", "together", "keeping"])
def test_a_signal_at_any_instant_leaves_one_whole_state(name, request):
    case, generator = request.getfixturevalue(name), random.Random(0)

    def handler(number, frame):
        raise Stop

    before = signal.signal(signal.SIGALRM, handler)
    try:
        start = time.perf_counter()
        for _ in case.turns(case.step, 1, 6):
            pass
        whole = time.perf_counter() - start
        found = set()
        for _ in range(200):
            turns = case.turns(case.step, 1, 6)
            next(turns)  # its tensors are its own from here on
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, whole))
                for _ in turns:
                    pass
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop as error:
                if hasattr(error, "state"):  # it may come outside of the loop, too
                    found.add(case.check(error, known=range(1, 7)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(found) >= 3
