"""The batch-size search: only sizes that ran, on the state as it was."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.tuning.batch_size_search import largest
from fnloop.tuning.out_of_memory import is_out_of_memory

X = torch.ones(100, 4)
ERRORS = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA error: out of memory"),
)


def step_for(limit, error=ERRORS[0], seen=None):
    """A step that runs out of memory where a batch has more than `limit` examples."""

    def loss(model, x):
        if seen is not None:
            seen.append(len(x))
        if len(x) > limit:
            raise error
        return model(x).square().mean()

    return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))


def find(limit, data=X, **settings):
    step = step_for(limit)
    return fl.tuning.find_batch_size(step, step.init(nn.Linear(4, 1)), data, **settings)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}")
def test_each_kind_of_error_that_says_so_is_known(error):
    step = step_for(10, error)
    found = fl.tuning.find_batch_size(step, step.init(nn.Linear(4, 1)), X)
    assert found.suggestion == 8
    assert [(t.size, t.fits) for t in found.trials] == [(2, 1), (4, 1), (8, 1), (16, 0)]
    assert "8; 16 does not fit" in repr(found)


def test_an_error_made_of_one_is_known_too_and_others_are_raised():
    try:
        raise ValueError("it could not be compiled") from ERRORS[2]
    except ValueError as error:
        assert is_out_of_memory(error)
    step = step_for(10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fl.tuning.find_batch_size(step, step.init(nn.Linear(4, 1)), X)


@pytest.mark.parametrize("search", ["power", "binary"])
@pytest.mark.lightning("V4", "D4")
def test_never_above_the_limit_nor_the_number_of_examples(search):
    makes = {"a function": lambda size: torch.ones(size, 4), "examples": X, "batches": None}
    makes["batches"] = fl.Batches(X, 32, drop_last=True)
    for data in makes.values():
        found = find(10**9, data, search=search, max_size=100)
        assert max(trial.size for trial in found.trials) == found.suggestion
        assert found.suggestion == (64 if search == "power" else 100)
        assert "100 is the most allowed" in repr(found)
    # examples bound it by themselves
    assert find(10**9, search=search).suggestion == (64 if search == "power" else 100)


@pytest.mark.parametrize("search", ["power", "binary"])
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 17, 63, 64, 65, 99, 100])
@pytest.mark.parametrize("start", [1, 2, 16, 500])
@pytest.mark.lightning("U2", "C7", "D4")
def test_only_a_size_that_ran(search, limit, start):
    ran = dict[int, bool]()

    def fits(size):
        assert size not in ran and 1 <= size <= 100
        ran[size] = size <= limit
        return ran[size]

    largest(fits, start, 100, search)
    best = max((size for size, fit in ran.items() if fit), default=None)
    assert best == (min(limit, 100) or None) if search == "binary" else best in (None, *ran)
    if search == "power" and limit:
        assert 2 * best > limit or 2 * best > 100


def test_where_the_first_size_fails_smaller_ones_are_tried():
    assert find(1).suggestion == 1
    assert find(3, start=64).suggestion == 2 and find(3, start=64, search="binary").suggestion == 3
    found = find(0, search="binary")
    assert found.suggestion is None and [trial.size for trial in found.trials] == [2, 1]
    assert "not even a batch of 1 fits" in repr(found)


def test_whole_steps_run_and_the_state_stays():
    seen = list[int]()
    step = step_for(20, seen=seen)
    state = step.init(lambda: nn.Linear(4, 1), seed=0)
    state, _ = fl.fit(step, state, fl.Batches(X, 3), steps=4)
    copy = fl.tree_map(torch.clone, state)
    seen.clear()
    generator = torch.get_rng_state()
    fl.tuning.find_batch_size(step, state, X, steps=2)
    assert seen == [2, 2, 4, 4, 8, 8, 16, 16, 32]
    assert fl.tree_equal(copy, state) and torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize("options", [{}, {"donate": True}, {"steps": 4}], ids=str)
def test_a_step_that_donates_is_tried_as_it_trains(options):
    step = fl.compile(step_for(4), backend="aot_eager", **options)
    state = step.init(lambda: nn.Linear(4, 1), seed=0)
    copy = fl.tree_map(torch.clone, state)
    found = fl.tuning.find_batch_size(step, state, X, start=4)
    assert found.suggestion == 4 and fl.tree_equal(copy, state)


def test_an_eager_step_writes_over_its_own_states_only():
    model = nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 300), nn.Linear(300, 1))
    step = step_for(10)
    state = step.init(model)  # large enough that `fit` writes in place
    state, _ = fl.fit(step, state, fl.Batches(X, 5), steps=2)
    copy = fl.tree_map(torch.clone, state)
    assert fl.tuning.find_batch_size(step, state, X).suggestion == 8
    assert fl.tree_equal(copy, state)


def test_what_a_trial_has_allocated_is_freed_before_the_next():
    alive = list[weakref.ref[torch.Tensor]]()

    def loss(model, x):
        assert not [ref for ref in alive if ref() is not None and len(ref()) != len(x)]
        alive.append(weakref.ref(x))
        if len(x) > 10:
            raise MemoryError
        return model(x).square().mean()

    gc.disable()  # cycles of frames and errors, too
    try:
        step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
        found = fl.tuning.find_batch_size(step, step.init(nn.Linear(4, 1)), X, search="binary")
    finally:
        gc.enable()
    assert found.suggestion == 10 and not [ref for ref in alive if ref() is not None]


def test_the_table():
    lines = find(10).table().splitlines()
    assert lines[0].split() == ["size", "s", "a", "step", "a", "second"]
    assert lines[-2].startswith("        8  ") and lines[-2].endswith("<- suggestion")
    assert lines[-1] == "       16  not enough memory"


REAL = """
import resource, torch, fnloop as fl
torch.set_num_threads(1)
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
state = step.init(lambda: torch.nn.Linear(1, 1 << 16), seed=0)
step(state, torch.ones(2, 1))
copy = fl.tree_map(torch.clone, state)
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (400 << 20), resource.RLIM_INFINITY))
found = fl.tuning.find_batch_size(step, state, lambda size: torch.ones(size, 1), start=64)
print(found.table())
size = found.suggestion
assert 64 <= size < 1600, found  # at least its activations and one gradient of their size
assert not all(trial.fits for trial in found.trials)
assert fl.tree_equal(copy, state)
for _ in range(3):
    state, metrics = step(state, torch.ones(size, 1))  # what is suggested fits
print(float(metrics["skipped"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of memory as Linux has it")
@pytest.mark.lightning("U2")
def test_real_memory_runs_out():
    result = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    assert "not enough memory" in result.stdout


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"start": 0}, ValueError, "at least 1"),
        ({"max_size": 0}, ValueError, "at least 1"),
        ({"steps": 0}, ValueError, "at least 1"),
        ({"search": "linear"}, ValueError, '"power" or "binary"'),
        ({"data": [X, X, 3].__iter__()}, TypeError, "or a function size -> batch"),
        ({"data": torch.utils.data.DataLoader(X)}, TypeError, "Of a DataLoader, its dataset"),
    ],
)
def test_what_is_wrong_is_said(settings, error, message):
    with pytest.raises(error, match=message):
        find(10, **settings)
