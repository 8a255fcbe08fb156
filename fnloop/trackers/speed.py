"""``throughput``: how fast a run is, in batches, examples, items and operations a second."""

from __future__ import annotations

import math
import operator
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.effects.activity import Activity, unwatch, watch
from fnloop.effects.effect import Effect, Run
from fnloop.stages.functions import check_function
from fnloop.trackers.device_peaks import Products, peak_flops
from fnloop.trees.show import short
from fnloop.values.counts import as_count, as_number
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Metrics
from fnloop.values.micro import Micro
from fnloop.values.rows import UnclearRows, rows
from fnloop.values.state import State

Count = Callable[[Any], int]


class _Moment(NamedTuple):
    """Seconds, and what has been done by then; nan for what cannot be counted."""

    seconds: float
    batches: int
    samples: float
    items: float


class throughput(Effect):
    """Measure how fast a run is; trackers and history write it with their points.

    They get, over the last `window` batches, ``batches_per_sec``; ``samples_per_sec``, if the
    examples of a batch can be counted; with `items`, ``items_per_sec``; with `flops`,
    ``flops_per_sec``; and where the peak of the device is known, ``mfu``, the share of it that is
    used. (`fl.progress` shows those that its `names` name.) They are measured beside the metrics
    and are none: no callback sees them, and nothing in the state depends on them.

    Nothing waits for a device: what is counted are the shapes of batches, and the clock is that of
    the host. It runs ahead of a GPU by what is in the GPU's queue, which a window of some seconds
    evens out. The first step, in which a step is compiled, is left out, and so is the time in
    which a step is compiled later, or validated. Many processes count the whole batch, and `mfu`
    is the share of all their peaks.

    Args:
        window: Over how many batches.
        items: ``items(batch)``, how many items, such as tokens, are in a batch, from its shapes.
        samples: ``samples(batch)``, how many examples are in it; default the common leading
            dimension of its tensors.
        flops: Operations of a step on a batch: ``fl.summary(step, state, batch).flops.step``.
        dtype: In what matrices are multiplied, which the peak depends on: ``"bf16"``, ``"fp16"``,
            ``"tf32"`` or ``"fp32"``. It is known for some of NVIDIA's GPUs.
        peak: Operations a second of one device, in place of what is known.

    Raises:
        TypeError: In the run, `items` or `samples` returns no whole number, or one on a device.

    >>> import torch, fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(4, 1))
    >>> flops = fl.summary(step, state, torch.ones(8, 4)).flops.step
    >>> speed = throughput(items=lambda batch: batch.numel(), flops=flops, peak=1e12)
    >>> state, history = fl.fit(step, state, fl.Batches(torch.ones(64, 4), 8), epochs=2,
    ...                         callbacks=[speed])
    >>> last = history[-1]
    >>> [round(last[name] / last["batches_per_sec"]) for name in ("samples_per_sec",
    ...     "items_per_sec", "flops_per_sec")] == [8, 32, flops]
    True
    """

    name = "throughput"
    sees_batches = True

    def __init__(
        self,
        window: int = 100,
        items: Count | None = None,
        samples: Count | None = None,
        flops: float | None = None,
        dtype: Products | None = None,
        peak: float | None = None,
    ) -> None:
        self.window = as_count(window, "throughput(window=...)", 1)
        for name, function in (("items", items), ("samples", samples)):
            if function is not None:
                check_function(function, f"throughput({name}=...)", "batch -> count")
        self.items, self.samples = items, samples
        self.dtype: Products | None = dtype
        self.flops = None if flops is None else as_number(flops, "throughput(flops=...)")
        self.peak = None if peak is None else as_number(peak, "throughput(peak=...)", above=True)
        self._peak: float | None = None

    def open(self, run: Run) -> None:
        device = run.state.step.device
        known = peak_flops(device, self.dtype) if self.peak is None else self.peak
        self._peak = None if known is None else known * run.mesh.everyone.data
        self._waiting: deque[tuple[int, float, float]] = deque()  # drawn, and not yet told of
        self._moments: deque[_Moment] = deque()
        self._done = _Moment(0.0, 0, 0.0, 0.0)
        self._paused, self._since = 0.0, None
        run.gauges.append(self.measured)
        watch(self, keeps=False)

    def drawn(self, cursor: Cursor, batch: Any) -> None:
        samples = _examples(batch) if self.samples is None else _counted(self.samples, batch)
        items = math.nan if self.items is None else _counted(self.items, batch)
        self._waiting.append((cursor.count, samples, items))

    def __call__(self, state: State, metrics: Metrics) -> None:
        count, waiting, done = state.cursor.tolist()[2], self._waiting, self._done
        seconds = time.perf_counter() - self._paused
        batches, samples, items = done[1:]
        while waiting and waiting[0][0] <= count:
            _, more, others = waiting.popleft()
            batches, samples, items = batches + 1, samples + more, items + others
        self._done = _Moment(seconds, batches, samples, items)
        if waiting:  # of a call that did several steps, the time is known at its end
            return
        moments = self._moments
        moments.append(self._done)
        while len(moments) > 2 and batches - moments[1].batches >= self.window:
            moments.popleft()

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        return False

    def measured(self) -> Mapping[str, float]:
        """What has been measured over the last batches; nothing until there were two calls."""
        if len(self._moments) < 2:
            return {}
        first, last = self._moments[0], self._moments[-1]
        spent, *done = [b - a for a, b in zip(first, last, strict=True)]
        if spent <= 0:
            return {}
        names = ("batches_per_sec", "samples_per_sec", "items_per_sec")
        found = {n: d / spent for n, d in zip(names, done, strict=True) if not math.isnan(d)}
        if self.flops is not None:
            found["flops_per_sec"] = self.flops * found["batches_per_sec"]
            if self._peak is not None:
                found["mfu"] = found["flops_per_sec"] / self._peak
        return found

    def close(self, status: str) -> None:
        unwatch(self)

    def release(self) -> None:
        unwatch(self)

    def shows(self, activity: Activity | None) -> None:
        """The time of what is no step is not counted: compiling, validating."""
        now = time.perf_counter()
        if activity is None and self._since is not None:
            self._paused, self._since = self._paused + now - self._since, None
        elif activity is not None and self._since is None:
            self._since = now

    def says(self, line: str) -> None:
        """It keeps no lines."""


def _examples(batch: Any) -> float:
    if isinstance(batch, Micro):
        return sum(map(_examples, batch.parts))
    try:
        found = rows(batch)
    except UnclearRows:
        return math.nan
    return math.nan if found is None else found


def _counted(count: Count, batch: Any) -> int:
    found: Any = count(batch)
    if isinstance(found, Tensor) and not found.is_cpu:
        raise TypeError(
            f"throughput: {short(count)}(batch) returned {short(found)} on {found.device}, and to "
            "read it would wait for the device. Count by shapes: batch.numel(), len(batch)."
        )
    try:
        return operator.index(found)
    except TypeError:
        raise TypeError(
            f"throughput: {short(count)}(batch) must return a whole number, got {short(found)}."
        ) from None
