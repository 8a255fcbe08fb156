"""``profile``: where the time and the memory of a step go."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from typing import Any

from fnloop._torch.graph_counts import graph_counts
from fnloop.data.rereading import as_rereadable
from fnloop.effects.screens import screen
from fnloop.loop.checks import check_slots
from fnloop.names.keywords import explained
from fnloop.profiling.allocations import Allocation, allocations_of
from fnloop.profiling.findings import findings_of
from fnloop.profiling.loop_times import as_in_fit, timed_loop
from fnloop.profiling.named_pieces import pieces_of
from fnloop.profiling.profile_report import Profile
from fnloop.profiling.stage_clock import StageClock, StageTime, clocked
from fnloop.profiling.trace_events import Traced, read_trace
from fnloop.profiling.tracing_steps import trace_of
from fnloop.stages.base import Stage, mesh_of
from fnloop.values.counts import as_count
from fnloop.values.state import State

WARM, FEW, MOST, LONG = 4, 3, 8, 0.2
"""Steps to warm up; the least and the most that are then measured, for so many seconds."""


@explained
def profile(
    step: Any, state: State, data: Any, steps: int = 10, progress: bool | None = None
) -> Profile:
    """Measure a step: time by stage, module and operator, waiting for data, and memory by tensor.

    It trains a copy: `state` is the same afterwards to the bit, also for a step that donates. First
    come steps as `fl.fit` does them, with nothing that measures but a clock around each batch. Then
    the same step runs on the last batches, with a clock around each stage; with every operation
    seen, for the memory; and under PyTorch's profiler, for modules and operators. A step that is
    not profiled has nothing of all this.

    Args:
        step: A training step, compiled or not.
        state: Where to start: from ``step.init(model)``, or of a run.
        data: Whatever `fl.run` takes, such as one batch, a tuple of tensors; but no iterator,
            which would not be the same afterwards.
        steps: How many steps to measure first.
        progress: Whether to show what is measured; default where somebody can see it.

    Returns:
        A `Profile`: a summary when it is printed, ``advice``, ``plot(path)``, ``save_trace(path)``.

    Raises:
        TypeError: `data` is an iterator, or keeps its own position.
        ValueError: `steps` is below 1.

    >>> import torch, fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3)))
    >>> state = step.init(torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1)))
    >>> found = profile(step, state, torch.ones(4, 2))
    >>> [stage.name for stage in found.stages][:2], sorted(module.path for module in found.modules)
    (['<lambda>', 'grad'], ['0', '1', 'model'])
    >>> found.state_bytes["params"], found.reads, int(state.step)
    (132, (), 0)
    """
    check_slots(step, state)
    steps = as_count(steps, "profile(steps=...)", 1)
    source = as_rereadable(data, "profile")
    shown, began = screen() if progress is None or progress else None, time.perf_counter()

    def say(what: str) -> None:
        if shown:
            shown.draw(f"profile: {what}")

    before = graph_counts()
    say(f"{steps} steps")
    made: int = getattr(step, "graphs", 0)
    loop = timed_loop(step, state, source, steps)
    made, now = getattr(step, "graphs", 0) - made, graph_counts()

    plain: Any = step.uncompiled if isinstance(step, Stage) else step
    compiled = plain is not step
    donating = clocked(as_in_fit(plain))
    keeping: Any = getattr(donating, "keeping", donating)
    count = FEW if _are_many(step) else min(MOST, max(FEW, round(LONG / loop.fastest)))
    turns = [loop.batches[i % len(loop.batches)] for i in range(count)]
    say("stage by stage")
    stages = _stages(donating, state, turns)
    say("tensor by tensor")
    allocated = allocations_of(keeping, state, loop.batches[-1])
    say("under PyTorch's profiler")
    trace, parts = _traced(donating, state, turns)
    whole, kept = parts, parts
    if compiled:
        trace, whole = _traced(_one_at_a_time(as_in_fit(step)), state, turns)
        kept = whole
    else:
        _, kept = _traced(keeping, state, turns)
    peak, tensors = allocated.peak, allocated.tensors
    if not compiled and (own := max([size for _, size in kept.memory], default=0) - peak) > 0:
        other = Allocation("other", "random state, within kernels", "", own, "", "")
        peak, tensors = peak + own, (*tensors, other)
    found = Profile(
        steps=loop.steps,
        seconds=loop.seconds,
        waiting=loop.waiting,
        fastest=loop.fastest,
        first=loop.first,
        compiled=compiled,
        graphs=made + now.graphs - before.graphs,
        breaks=now.breaks - before.breaks,
        stages=stages,
        modules=parts.modules,
        operators=whole.operators,
        kernels=min(1.0, sum(whole.kernels.values()) / whole.seconds),
        state_bytes=_sizes(state),
        peak=peak,
        peak_stage=allocated.stage,
        tensors=tensors,
        memory=kept.memory,
        reads=allocated.reads,
        slowdown=whole.seconds / loop.fastest,
        device=state.step.device.type,
        _trace=trace,
    )
    if shown:
        shown.keep(f"profile: done, in {time.perf_counter() - began:.1f} s")
    return dataclasses.replace(found, findings=findings_of(found))


def _are_many(step: Any) -> bool:
    """Whether several ranks do the step, and so must do equally many."""
    mesh = mesh_of(step)
    return mesh is not None and mesh.data * mesh.tensor > 1


def _stages(run: Any, state: State, batches: list[Any]) -> tuple[StageTime, ...]:
    clock = StageClock(state.step.device)
    state = state.replace()
    with clock.running():
        for batch in [*batches[:1] * WARM, *batches]:
            state, _ = run(state, batch)
            clock.end_step()
    return clock.times(len(batches))


def _traced(run: Any, state: State, batches: list[Any]) -> tuple[bytes, Traced]:
    trace = trace_of(run, state.replace(), batches)
    return trace, read_trace(json.loads(gzip.decompress(trace)), state.step.device.type == "cpu")


def _one_at_a_time(step: Any) -> Any:
    """A compiled step for one batch a call, also where it takes several."""
    if getattr(step, "steps", 1) == 1:
        return step

    def one(state: State, batch: Any) -> tuple[State, Any]:
        series = step.series(state)
        metrics = series(batch)
        return series.state, metrics

    return one


def _sizes(state: State) -> dict[str, int]:
    """Bytes of parameters and buffers, and of each slot."""
    sizes: dict[str, int] = {}
    for path, leaf in pieces_of(state):
        head, _, rest = path.partition("/")
        name = rest.partition("/")[0] if head == "slots" else head
        sizes[name] = sizes.get(name, 0) + leaf.nbytes
    return sizes
