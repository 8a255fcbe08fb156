"""How long a step takes, beside loops written by hand: paired and interleaved."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from tests.benchmarks.timing import Row, Samples, interleave, summary

from .problems import Attention, arrays

LR, WEIGHT_DECAY = 1e-3, 0.01
BASELINE = "by hand"

Step = Callable[[Any], Any]
"""Takes a batch and returns the loss, a tensor or a metric."""


class Problem(NamedTuple):
    """A model without dropout, and batches on the device."""

    build: Callable[[], nn.Module]
    batches: list[Any]


def loss(model: Any, batch: Any) -> torch.Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])


def mlp(device: str) -> Problem:
    """64-128-128-10, batches of 64: what a step costs beyond arithmetic."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    return Problem(build, _batches(device, 64, (64,)))


def transformer(device: str) -> Problem:
    """Two blocks of causal attention, 64 wide, over 12 examples of 32 rows."""

    def build() -> nn.Module:
        blocks = [Attention(64), Attention(64)]
        for block in blocks:
            block.drop.p = 0.0
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 64, 10))

    return Problem(build, _batches(device, 12, (32, 64)))


PROBLEMS = {"mlp": mlp, "transformer": transformer}


def by_hand(problem: Problem, device: str) -> Step:
    """The loop of PyTorch's tutorials, with the fused optimizer."""
    model = _model(problem, device)
    return _classic(model, lambda batch: loss(model, batch))


def compiled_model(problem: Problem, device: str) -> Step:
    """The same around ``torch.compile`` of model and loss."""
    model = _model(problem, device)
    return _classic(model, torch.compile(lambda batch: loss(model, batch), fullgraph=True))


def reduce_overhead(problem: Problem, device: str) -> Step:
    """The same with CUDA graphs of forward and backward pass."""
    model = _model(problem, device)
    compute: Any = torch.compile(
        lambda batch: loss(model, batch), fullgraph=True, mode="reduce-overhead"
    )

    def marked(batch: Any) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return compute(batch)

    return _classic(model, marked)


def graphed(problem: Problem, device: str) -> Step:
    """The same with ``torch.cuda.make_graphed_callables`` around the model."""
    model = _model(problem, device)
    calls: Any = torch.cuda.make_graphed_callables(model, (problem.batches[0][0].clone(),))
    return _classic(model, lambda batch: F.cross_entropy(calls(batch[0]), batch[1]))


def eager(problem: Problem, device: str) -> Step:
    """fnloop's step, not compiled."""
    return _fnloop(problem, device, lambda step: step)


def compiled(problem: Problem, device: str) -> Step:
    """fnloop's compiled step; on a GPU it is replayed as one CUDA graph."""
    return _fnloop(problem, device, fl.compile)


def donating(problem: Problem, device: str) -> Step:
    """The same, donating, as `fl.fit` does."""
    return _fnloop(problem, device, lambda step: fl.compile(step, donate=True))


def ungraphed(problem: Problem, device: str) -> Step:
    """The same without a CUDA graph: Inductor's kernels, launched one by one."""
    return _fnloop(problem, device, lambda step: fl.compile(step, donate=True, backend=_plain))


CONTENDERS: dict[str, Callable[[Problem, str], Step]] = {
    BASELINE: by_hand,
    "by hand, torch.compile": compiled_model,
    "by hand, torch.compile reduce-overhead": reduce_overhead,
    "by hand, make_graphed_callables": graphed,
    "fnloop, eager": eager,
    "fnloop, compiled": compiled,
    "fnloop, compiled, donating": donating,
    "fnloop, compiled, donating, no CUDA graph": ungraphed,
}
QUICK = (BASELINE, "fnloop, eager")
"""Those that compile nothing, and run on every device."""


class Table(NamedTuple):
    """The figures of one problem.

    Attributes:
        rows: One for each contender that ran.
        failed: What the others raised, by name.
        losses: The loss after the same steps, by contender.
    """

    rows: list[Row]
    failed: dict[str, str]
    losses: dict[str, float]


def compare(
    name: str,
    device: str,
    contenders: tuple[str, ...] = tuple(CONTENDERS),
    seconds: float = 20.0,
    steps: int = 20,
    rounds: int = 50,
) -> Table:
    """Time the contenders of one problem, for about so many seconds.

    No more of them are built after half of that; those that are left out count as failed.
    """
    problem = PROBLEMS[name](device)
    blocks: dict[str, Callable[[int], float]] = {}
    failed: dict[str, str] = {}
    losses: dict[str, float] = {}
    begun = time.perf_counter()
    for contender in contenders:
        if time.perf_counter() - begun > seconds / 2:
            failed[contender] = "no time was left"
            continue
        try:
            step = CONTENDERS[contender](problem, device)
            losses[contender] = [float(step(batch)) for batch in problem.batches][-1]
            blocks[contender] = _block(step, problem, device)
        except Exception as error:
            failed[contender] = f"{type(error).__name__}: {error}".splitlines()[0]
    start = time.perf_counter()
    samples: Samples = interleave(blocks, 1, steps, steps)
    once = time.perf_counter() - start
    more = interleave(blocks, max(5, min(rounds, int(seconds / 2 / once))), steps, steps)
    samples = {contender: more[contender] for contender in samples}
    return Table(summary(samples, BASELINE), failed, losses)


def wrong(table: Table) -> list[str]:
    """What is wrong with a table: contenders that failed, or that compute something else."""
    found = [f"{name} failed: {why}" for name, why in table.failed.items()]
    expected = table.losses.get(BASELINE, float("nan"))
    return found + [
        f"{name} ends with the loss {got:.5f}, {BASELINE} with {expected:.5f}"
        for name, got in table.losses.items()
        if not abs(got - expected) <= 1e-2 * abs(expected)
    ]


def _block(step: Step, problem: Problem, device: str) -> Callable[[int], float]:
    """Make so many steps; the seconds that they take, on a GPU by its own clock."""
    source = itertools.cycle(problem.batches)

    def on_the_cpu(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            step(next(source))
        return time.perf_counter() - start

    def on_a_gpu(n: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(n):
            step(next(source))
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return on_the_cpu if device == "cpu" else on_a_gpu


def _classic(model: nn.Module, compute: Callable[[Any], torch.Tensor]) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY, fused=True)

    def step(batch: Any) -> torch.Tensor:
        optimizer.zero_grad()
        found = compute(batch)
        found.backward()
        optimizer.step()
        return found.detach()

    return step


def _fnloop(problem: Problem, device: str, transform: Callable[[Any], Any]) -> Step:
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(LR, weight_decay=WEIGHT_DECAY)))
    step = transform(step)
    state = step.init(_model(problem, "cpu")).to(device)

    def one(batch: Any) -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return one


def _plain(graph: Any, inputs: Any) -> Any:
    """A backend for `fl.compile`: Inductor, without CUDA graphs."""
    from torch._inductor.compile_fx import compile_fx

    return compile_fx(graph, inputs)


def _model(problem: Problem, device: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return problem.build().to(device)


def _batches(device: str, size: int, shape: tuple[int, ...]) -> list[Any]:
    given = [arrays(size, shape, seed) for seed in range(16)]
    return [(x.to(device), (y + 0).to(device)) for x, y in given]
