"""Who looks at values on the device, and how often: each look waits for it."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fnloop as fl
from fnloop._torch import random

aten: Any = torch.ops.aten
STEPS = 200


class Clock:
    """The batch that is being worked on; a list of looks, each with the batch it came at.

    Looks at what lies on the CPU, whatever the device, are not counted: cursor, calls and key.
    """

    def __init__(self):
        self.batch = 0
        self.looks = []
        self.near = set()

    def note(self):
        self.looks.append(self.batch)

    def note_at(self, tensor):
        if tensor.untyped_storage().data_ptr() not in self.near:
            self.note()

    def stay_near(self, *states):
        tensors = [t for s in states for t in (s.cursor, s.calls, s.key)]
        self.near = {t.untyped_storage().data_ptr() for t in tensors}

    def batches(self):
        for _ in range(STEPS):
            self.batch += 1
            yield torch.ones(4, 3), torch.tensor([0, 1, 0, 1])


class Looks(TorchFunctionMode):
    """Notes each call that turns a tensor into Python's numbers."""

    WAYS = frozenset(
        getattr(Tensor, name)
        for name in (
            "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__",
            "__array__", "nonzero",
        )
    )  # fmt: skip

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.WAYS and tuple(args[0].shape) != (3,):  # the loop makes cursors, too
            self.clock.note_at(args[0])
        return func(*args, **(kwargs or {}))


class Scalars(TorchDispatchMode):
    """The same one level lower: kernels that hand a value to the host."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default):
            self.clock.note_at(args[0])
        return func(*args, **(kwargs or {}))


class Far(Tensor):
    """A tensor that says it is on an accelerator; what brings its values to the host is noted.

    Of torch's devices, "lazy" is one that every build lets a tensor claim.
    """

    clock: Clock

    @staticmethod
    def __new__(cls, near):
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, dtype=near.dtype, strides=near.stride(), device="lazy:0"
        )
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        here = torch.device(kwargs["device"]).type == "cpu" if kwargs.get("device") else False
        looks = func is aten._local_scalar_dense.default or (here and func is aten._to_copy.default)
        if looks:
            cls.clock.note()
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = fl.tree_map(lambda x: x.near if isinstance(x, Far) else x, (args, kwargs))
        result = func(*args, **kwargs)
        return result if looks else fl.tree_map(_far, result)

    def tolist(self):  # torch refuses it for subclasses
        return self.cpu().tolist()


def _far(value):
    return Far(value) if isinstance(value, Tensor) else value


def loss(model, batch):
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]), {
        "accuracy": (logits.argmax(1) == batch[1]).float().mean(),
        "largest": fl.Max(logits.abs().max()),
    }


def network():
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))


class Near:
    """A step; what it takes and gives on the CPU may be looked at."""

    def __init__(self, step, clock):
        self.step, self.clock = step, clock

    def __call__(self, state, batch):
        self.clock.stay_near(state)
        after, metrics = self.step(state, batch)
        self.clock.stay_near(after)
        return after, metrics

    def donating(self):
        return Near(self.step.donating(), self.clock)


def pipeline(*around):
    optimizer = fl.optim.chain(
        fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(1e-2, steps=STEPS))
    )
    return fl.pipe(loss, fl.grad, *around, fl.update(optimizer), fl.ema(0.9))


@pytest.fixture
def clock():
    Far.clock = Clock()
    return Far.clock


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(
    "around", [(), (fl.accumulate(2), fl.amp("bf16")), (fl.amp("fp16"),)], ids=str
)
def test_a_compiled_step_does_not_look(clock, around, donate):
    step = fl.compile(pipeline(*around), donate=donate, backend="aot_eager")
    state, (batch, *_) = step.init(network), clock.batches()
    for _ in range(2):
        state, metrics = step(state, batch)
    near = Near(step, clock)
    with Scalars(clock), Looks(clock):
        for _ in range(3):
            state, metrics = near(state, batch)
    assert clock.looks == []
    assert step.graphs == 1 and int(state.step) == 5 and float(metrics["skipped"]) == 0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("around", [(), (fl.accumulate(2),)], ids=str)
def test_no_step_reads_from_a_device(monkeypatch, around, compiled):
    """The device "meta" keeps no values: whatever reads one, raises."""
    generator = torch.Generator()  # it has none, and draws nothing
    monkeypatch.setattr(random, "_of", lambda device: generator)
    step = pipeline(*around)
    if compiled:
        step = fl.compile(step, backend="aot_eager")
    state = step.init(network).to("meta")
    batch = torch.ones(4, 3, device="meta"), torch.ones(4, dtype=torch.int64, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        float(batch[0].sum())
    for _ in range(3):
        state, metrics = step(state, batch)
    assert int(state.calls) == 3 and {t.device.type for t in state.params.values()} == {"meta"}
    assert state.step.is_meta and metrics["loss"].total.is_meta and metrics["skipped"].total.is_meta


def test_looks_are_seen(clock):
    x = torch.tensor([2.0])
    for look in (float, bool, int, Tensor.item, Tensor.tolist, Tensor.numpy):
        with Looks(clock):
            look(x)
    assert len(clock.looks) == 6
    with Scalars(clock):
        x.item()
    assert len(clock.looks) == 7
    far = Far(x)
    assert far.device.type != "cpu" and float(torch.stack([far, far + 1])[1]) == 3.0
    far.tolist(), far.cpu(), far.to(torch.float64)  # the last one stays there
    assert len(clock.looks) == 10
    eager, state = pipeline(), pipeline().init(network)
    with Scalars(clock):
        eager(state, next(clock.batches()))
    assert len(clock.looks) > 10  # on the CPU, where it costs nothing


def far_step():
    """A compiled step whose metrics lie on an accelerator."""
    compiled = fl.compile(pipeline(), backend="aot_eager")

    def step(state, batch):
        state, metrics = compiled(state, batch)
        return state, fl.tree_map(_far, metrics)

    return step, compiled.init(network)


def read(state, metrics):
    assert float(metrics["loss"]) > 0
    return state, metrics


@pytest.mark.lightning("T33")
def test_a_bare_run_does_not_look(clock):
    step, state = far_step()
    for _, metrics in fl.run(step, state, clock.batches(), steps=STEPS):
        assert isinstance(metrics["loss"].total, Far)
    assert clock.batch == STEPS and clock.looks == []


@pytest.mark.parametrize(
    ("callback", "cadence"),
    [
        (lambda: fl.every(50, read, name="w"), 50),
        (lambda: fl.every(50, fl.effect(lambda state, metrics: read(state, metrics))), 50),
        (lambda: fl.every(20, fl.early_stopping("loss", patience=99)), 20),
        (lambda: fl.every(40, fl.validate(lambda m, b: m(b[0]).mean(), [(torch.ones(2, 3),)])), 0),
    ],
    ids=["callback", "effect", "early stopping", "validation"],
)
def test_callbacks_look_once_when_they_are_due(clock, callback, cadence):
    step, state = far_step()
    state, history = fl.fit(step, state, clock.batches(), steps=STEPS, callbacks=[callback()])
    due = [*range(cadence, STEPS + 1, cadence)] if cadence else []
    assert clock.looks == due
    # The history has four points or more, and is looked at all at once, where somebody asks.
    assert history["loss"][0] > history["loss"][-1] and len(history) >= 4
    assert len(clock.looks) == len(due) + 1


def test_early_stopping_with_its_memory_on_the_device_looks_once(clock):
    callback = fl.early_stopping("loss", patience=1, stopping_threshold=0.1)
    state = callback.init(far_step()[1], {"loss": fl.Last(1.0)})
    state = state.put(callback.name, fl.tree_map(_far, state[callback.name]))
    for value, asked in ((1.0, False), (2.0, True), (0.05, True)):
        clock.looks.clear()
        state, metrics = callback(state, {"loss": fl.Last(_far(torch.tensor(value)))})
        assert bool(metrics[callback.name]) == asked
        assert len(clock.looks) == 1
    assert isinstance(state[callback.name]["best"], Far)


@pytest.mark.lightning("T20")
def test_a_tracker_looks_once_a_point_and_not_on_the_thread_that_trains(clock, tmp_path):
    step, state = far_step()
    here = threading.current_thread()
    threads = []
    note, clock.note = clock.note, lambda: (threads.append(threading.current_thread()), note())
    tracker = fl.track(fl.trackers.JSONL(tmp_path / "run.jsonl"), every=25)
    fl.fit(step, state, clock.batches(), steps=STEPS, callbacks=[tracker])
    assert len(threads) == STEPS // 25 and here not in threads
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1 + STEPS // 25


@pytest.mark.lightning("C16", "C17")
def test_who_measures_does_not_look(clock):
    step, state = far_step()
    items = lambda batch: batch[0].numel()  # noqa: E731
    speed, load = fl.trackers.throughput(items=items), fl.trackers.device_stats(every_seconds=0)
    for _ in fl.run(step, state, clock.batches(), steps=STEPS, callbacks=[speed, load]):
        found = {**speed.measured(), **load.measured()}
    assert found["items_per_sec"] == pytest.approx(3 * found["samples_per_sec"])
    assert clock.batch == STEPS and clock.looks == []


def test_a_bar_looks_once_when_it_is_drawn(clock, monkeypatch):
    step, state = far_step()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.batch * 0.01)  # 100 batches a second
    bar = fl.progress(file=type("Screen", (io.StringIO,), {"isatty": lambda self: True})())
    fl.fit(step, state, clock.batches(), steps=STEPS, callbacks=[bar])
    assert clock.looks.pop() == STEPS  # at the end of the run
    assert max(Counter(clock.looks).values()) == 1
    assert STEPS // 10 - 2 <= len(clock.looks) <= STEPS // 10 + 2


def test_a_checkpoint_looks_when_it_is_written(clock, tmp_path):
    step, state = far_step()
    callbacks = [fl.checkpoint(tmp_path, every=100, unit="step")]
    fl.fit(step, state, clock.batches(), steps=STEPS, callbacks=callbacks)
    assert set(clock.looks) == {100, 200}


def test_nobody_looks_between_occasions_with_everything_on(clock, tmp_path, monkeypatch):
    step = fl.compile(pipeline(), backend="aot_eager")  # tensors on the CPU; donated by `fit`
    monkeypatch.setattr(time, "perf_counter", lambda: clock.batch * 0.002)
    callbacks = [
        fl.every(50, fl.validate(loss, [next(clock.batches())])),
        fl.early_stopping("val/loss", patience=99),
        fl.progress(file=io.StringIO(), every_seconds=0.0999),
        fl.track(fl.trackers.JSONL(tmp_path / "run.jsonl")),
        fl.trackers.throughput(),
        fl.checkpoint(tmp_path / "checkpoints", monitor="val/loss", every=100, unit="step"),
    ]
    clock.batch = 0
    state = step.init(network)
    step(state, next(Clock().batches()))  # compiles
    with Looks(clock):
        _, history = fl.fit(
            Near(step, clock), state, clock.batches(), steps=STEPS, callbacks=callbacks
        )
    # 0: the run reads its key; 1: callbacks are checked with the first metrics.
    assert set(clock.looks) <= {0, 1, 50, 100, 150, 200}
    assert {50, 100, 150, 200} <= set(clock.looks)
    assert history.steps("val/loss") == [50, 100, 150, 200]
