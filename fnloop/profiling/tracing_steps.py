"""Run a few steps under PyTorch's profiler."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from fnloop._torch.profiler_log import quiet_profiler
from fnloop.profiling.following import Ranges, following
from fnloop.profiling.names_in_trace import STEP
from fnloop.profiling.stage_clock import StageClock, wait_for
from fnloop.values.donated import may_be_overwritten
from fnloop.values.state import State
from fnloop.values.tensors import Tensors

WARM = 3
"""Steps before the profiler begins: the second is the first that writes over a state."""


def trace_of(run: Any, state: State, batches: list[Any]) -> bytes:
    """A trace of a step on each of these batches, one after the other, as compressed JSON.

    Args:
        run: A step; if its stages are clocked, they are ranges.
        state: Where it begins.
        batches: The batches.
    """
    device = state.step.device
    clock, ranges = StageClock(device, traced=True), Ranges()
    # The profiler warns of memory that is freed and that it has not seen allocated: of the given
    # state, and of what a step that donates does not overwrite. (The rest is not to be held.)
    kept: list[Any] = [state]
    with following(state.skeleton, ranges.enter, ranges.leave), clock.running():
        for _ in range(WARM):
            state, metrics = run(state, batches[0])
            kept += [metrics, *_let_go(state)]
        if not may_be_overwritten(state):
            kept.append(state)
        activities = _activities(device.type)
        with quiet_profiler(), profile(activities=activities, profile_memory=True) as recorded:
            state, _ = run(state, batches[0])  # the first one takes longer
            for batch in batches:
                with record_function(STEP):
                    state, _ = run(state, batch)
            wait_for(device)
    with tempfile.TemporaryDirectory(prefix="fnloop-profile-") as folder:
        file = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(file))
        return gzip.compress(file.read_bytes(), compresslevel=4)


def _let_go(state: State) -> Iterator[Any]:
    """What a step that donates does not overwrite: all but `Tensors` that are no buffers."""
    yield from (state.step, state.calls, state.cursor, state.key, *state.buffers.peek_storages())
    waiting: list[Any] = [state.slots]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping) and not isinstance(node, Tensors):
            waiting += node.values()
        elif isinstance(node, Tensor):
            yield node


def _activities(device: str) -> list[ProfilerActivity]:
    own = {"cuda": ProfilerActivity.CUDA, "xpu": ProfilerActivity.XPU}
    return [ProfilerActivity.CPU, *([own[device]] if device in own else [])]
