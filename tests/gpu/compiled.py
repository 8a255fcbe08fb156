"""Compiled steps on the device; on a GPU, with CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import fnloop as fl
from fnloop import testing

from .problems import (
    CASES,
    Net,
    backend,
    bad,
    batches,
    dropping,
    everything,
    loss,
    simple,
    smooth,
    started,
)

STEPS = 7


def _agrees(name: str) -> Callable[[str], None]:
    case = CASES[name]

    def check(device: str) -> None:
        step = simple(fl.optim.adamw(1e-2, eps=1e-3))
        given = [*batches(4, device, case.shape), bad(device, case.shape)]
        testing.check_compiles(
            step, started(step, case.build, device), given, backend(device), 1e-3, 1e-4
        )

    check.__doc__ = f"Law 7: compiled, donating or not, it is the eager step: {name}."
    return check


AGREES = {f"agrees: {name}": _agrees(name) for name in CASES}


def everything_agrees(device: str) -> None:
    """Law 7 for a step with most stages; in half precision, on a smooth model."""
    step = everything()
    testing.check_compiles(
        step,
        started(step, smooth, device),
        [*batches(3, device), bad(device)],
        backend(device),
        rtol=2e-2,
        atol=5e-3,
    )


def masks(device: str) -> None:
    """A compiled step draws the random numbers of the eager step, bit for bit."""

    def drawing(model: Any, batch: Any) -> Any:
        x, _ = batch
        found = {}
        for dtype in (torch.float32, torch.float16):
            for shape in ((5,), (33, 7), (4, 64, 16)):
                ones = torch.ones(shape, dtype=dtype, device=x.device)
                found[f"drawn {dtype} {shape}"] = fl.Sum(F.dropout(ones, 0.5) != 0)
                turned = ones.transpose(0, -1)
                found[f"drawn {dtype} {shape} turned"] = fl.Sum(F.dropout(turned, 0.1) != 0)
        found["drawn rand"] = fl.Sum(torch.rand(9, device=x.device))
        found["drawn bernoulli"] = fl.Sum(torch.empty(9, device=x.device).bernoulli_(0.3))
        return loss(model, batch)[0], found

    step = fl.pipe(drawing, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    fast = fl.compile(step, backend=backend(device))
    state, (batch,) = started(step, smooth, device), batches(1, device)
    for _ in range(3):
        expected, got = step(state, batch)[1], fast(state, batch)[1]
        for name, drawn in expected.items():
            if name.startswith("drawn"):
                assert torch.equal(drawn.total, got[name].total), f"{name}: other numbers"
        state = step(state, batch)[0]


def states_are_kept(device: str) -> None:
    """No state and no metrics lie in memory that a later step writes to."""
    step = fl.compile(everything(), backend=backend(device))
    state, kept = started(step, Net, device), []
    for batch in _cycled(batches(3, device), STEPS):
        state, metrics = step(state, batch)
        kept.append(((state, metrics), fl.tree_map(torch.clone, (state, metrics))))
    for i, (held, copy) in enumerate(kept):
        assert fl.tree_equal(held, copy), f"step {i + 1}:\n{fl.tree_diff(copy, held)}"
    _outside_of_graphs([held for held, _ in kept], device)


def donated_states_are_kept(device: str) -> None:
    """Nor do the states of a step that donates, and it has the values of one that does not."""
    step = simple(None, fl.amp("fp16", init_scale=2.0**8))
    plain = fl.compile(step, backend=backend(device))
    fast = fl.compile(step, backend=backend(device), donate=True)
    expected, state, kept = started(step, smooth, device), started(step, smooth, device), []
    for batch in _cycled(batches(3, device), STEPS):
        expected, _ = plain(expected, batch)
        state, metrics = fast(state, batch)
        kept.append((metrics, fl.tree_map(torch.clone, metrics)))
        _outside_of_graphs([state, metrics], device)
    assert all(fl.tree_equal(held, copy) for held, copy in kept), "metrics were written over"
    rows = testing.comparison.apart(expected, state, 1e-3, 1e-4)
    assert not rows, f"donating gives other values: {rows}"


def several_steps(device: str) -> None:
    """Several steps in one call have the bits of a call for each, and metrics of their own."""
    pipe, given = simple(), batches(4, device)
    for donate in (False, True):
        single = fl.compile(pipe, donate=donate, backend=backend(device))
        many = fl.compile(pipe, donate=donate, steps=4, backend=backend(device))
        expected, state = (started(pipe, dropping, device) for _ in range(2))
        for _ in range(STEPS):
            reported = []
            for batch in given:
                expected, metrics = single(expected, batch)
                reported.append(metrics)
            state, found = many(state, given)
            assert fl.tree_equal(expected, state), fl.tree_diff(expected, state)
            assert fl.tree_equal(reported, found), fl.tree_diff(reported, found)
            _outside_of_graphs([state, found], device)


def few_graphs(device: str) -> None:
    """A GPU records one CUDA graph for a step, replays it, and leaves out none."""
    step = fl.compile(simple(), backend=backend(device))
    state = started(step, Net, device)
    skips, recorded = _skips(), []
    for batch in _cycled(batches(3, device), STEPS):
        state, _ = step(state, batch)
        recorded.append(_recorded(device))
    assert step.graphs == 1
    assert _skips() == skips, "Inductor has left CUDA graphs out; TORCH_LOGS=perf_hints says why"
    if device != "cpu":
        assert recorded[-1] > 0, "no CUDA graph was recorded"
        assert recorded[-1] == recorded[4], f"CUDA graphs after each step: {recorded}"


def _cycled(given: list[Any], n: int) -> list[Any]:
    return [given[i % len(given)] for i in range(n)]


def _outside_of_graphs(values: Any, device: str) -> None:
    """Check that no tensor lies in the memory of a CUDA graph, which has a pool of its own."""
    if device == "cpu":
        return
    pools = [
        (segment["address"], segment["address"] + segment["total_size"])
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment["segment_pool_id"]) != (0, 0)
    ]
    for leaf in fl.tree_leaves(values):
        if leaf.is_cuda and leaf.numel():
            inside = any(start <= leaf.data_ptr() < stop for start, stop in pools)
            assert not inside, f"{leaf.dtype}{tuple(leaf.shape)} lies in the memory of a CUDA graph"


def _recorded(device: str) -> int:
    """How many CUDA graphs there are, in all of Inductor's trees."""
    if device == "cpu":
        return 0
    from torch._inductor.cudagraph_trees import get_manager

    manager = get_manager(torch.cuda.current_device(), create_if_none_exists=False)
    waiting, count = [*manager.get_roots()] if manager else [], 0
    while waiting:
        count += 1
        for children in waiting.pop().children.values():
            waiting.extend(children)
    return count


def _skips() -> int:
    from torch._dynamo.utils import counters

    return counters["inductor"]["cudagraph_skips"]
