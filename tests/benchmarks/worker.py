"""Trains with the fnloop that is on the path, when it is asked: see ``compare_checkouts.py``.

It is started as a file, with one checkout's fnloop or another's: nothing that it imports from its
own folder imports fnloop, and what fnloop has under other names in other versions is looked for.
"""

from __future__ import annotations

import functools
import gc
import itertools
import operator
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import fnloop as fl

if __package__:
    from . import memory, piped, problems, timing
else:
    import memory
    import piped
    import problems
    import timing

CHECKOUT = Path(fl.__file__).parents[1]

PROBLEMS: Mapping[str, Callable[[], Any]] = {
    **{name: problems.PROBLEMS[name] for name in ("mlp", "narrow", "many", "cnn")},
    "gpt": lambda: problems.gpt(CHECKOUT / "examples" / "char_gpt.py"),
    "wide": functools.partial(problems.wide, 1024),
}

CHECKED = 12  # steps after which the loss is told


def named(*names: str) -> Any:
    """The first of these that fnloop has.

    >>> named("optim.no_such_optimizer", "update") is fl.update
    True
    """
    for name in names:
        try:
            return operator.attrgetter(name)(fl)
        except AttributeError:
            continue
    raise AttributeError(f"fnloop has none of {', '.join(names)}")


def pipeline(problem: Any, full: bool) -> Any:
    """The step of ``with_fnloop.py``; if it is full, with clipping and averaged parameters."""
    adamw = named("optim.adamw", "adamw")(problems.LR, weight_decay=problems.WEIGHT_DECAY)
    if not full:
        return fl.pipe(problem.loss, fl.grad, fl.update(adamw))
    chain, clip = named("optim.chain", "chain"), named("optim.clip_by_norm", "clip_by_norm")
    return fl.pipe(problem.loss, fl.grad, fl.update(chain(clip(1.0), adamw)), fl.ema())


class Case(NamedTuple):
    """How to train.

    Attributes:
        mode: ``"eager"``, or ``"compiled"`` for ``fl.compile(step, donate=True)``.
        full: As for `pipeline`.
    """

    mode: str
    full: bool

    def build(self, problem: Any, clock: Callable[[], float]) -> Training:
        """Ready to train a problem."""
        step = pipeline(problem, self.full)
        if self.mode == "compiled":
            step = fl.compile(step, donate=True)
        return Training(step, step.init(problem.model()), problem.batches, clock)


class Training:
    """A loop around a step, which owns the state.

    Args:
        step: ``(state, batch) -> (state, metrics)``.
        state: Nobody else may hold it.
        batches: Given in turn, without end.
        clock: What to time with.
    """

    def __init__(self, step: Any, state: Any, batches: Any, clock: Callable[[], float]) -> None:
        self._step, self._state, self._clock = step, state, clock
        self._batches = itertools.cycle(batches)

    def block(self, n: int) -> float:
        """Make so many steps; the seconds that they took."""
        gc.collect()
        gc.disable()
        try:
            step, state = self._step, self._state
            self._state = None
            start = self._clock()
            for batch in itertools.islice(self._batches, n):
                state, metrics = step(state, batch)
                self._loss = metrics["loss"]
            seconds = self._clock() - start
            self._state = state
            return seconds
        finally:
            gc.enable()

    def loss(self) -> float:
        """Of the last step."""
        return float(self._loss)


class Answers:
    """Answers the questions of ``compare_checkouts.py``."""

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, question.pop("do"))(**question)

    def where(self) -> dict[str, Any]:
        """The ``checkout`` whose fnloop trains."""
        return {"checkout": str(CHECKOUT)}

    def prepare(self, problem: str, mode: str, full: bool) -> dict[str, Any]:
        """Build, and make the first steps.

        Returns:
            ``loss`` after some steps; ``megabytes`` of the parameters; and of the first call, less
            a later one, the seconds as a clock has them, ``wall``, and those of the processor,
            compilers included, ``cpu``.
        """
        what = PROBLEMS[problem]()
        self._training = Case(mode, full).build(what, time.process_time)
        wall, cpu = time.perf_counter(), timing.used()
        self._training.block(1)
        self._training.loss()
        wall, cpu = time.perf_counter() - wall, timing.used() - cpu
        later = self._training.block(CHECKED - 1) / (CHECKED - 1)
        gc.collect()
        gc.freeze()
        size = sum(p.numel() * p.element_size() for p in what.model().parameters())
        return {
            "loss": self._training.loss(),
            "megabytes": size / 1e6,
            "wall": wall - later,
            "cpu": cpu - later,
        }

    def run(self, steps: int) -> dict[str, Any]:
        """Make steps; the ``seconds`` of the processor that they took."""
        return {"seconds": self._training.block(steps)}

    def peak(self, problem: str, mode: str, full: bool) -> dict[str, Any]:
        """`memory.peak`, in a process that has done nothing else."""
        return memory.peak(PROBLEMS[problem](), problems.little(), Case(mode, full))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.setrecursionlimit(100_000)  # as in measure.py
    warnings.filterwarnings("ignore", message=".*pytree.*", category=UserWarning)
    piped.serve(Answers())
