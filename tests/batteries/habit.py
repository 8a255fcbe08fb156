"""One habit of the literature: a loss as people write it, and what compiling makes of it."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fnloop as fl

Loss = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Habit:
    """A loss of a few lines.

    Attributes:
        loss: As for `fl.grad`. Its name is the habit's.
        build: Makes the model, in torch's global random state.
        batch: Makes a batch, in torch's global random state.
        refused: Words of what `fl.compile` says of it; empty if it compiles.
        instead: What the message proposes, written out; it has to compile.
        given: The batch for what is proposed, from the batch.
        redrawn: Whether what is proposed draws other random numbers, so that it cannot be compared.
    """

    loss: Loss
    build: Callable[[], nn.Module]
    batch: Callable[[], Any]
    refused: str = ""
    instead: Loss | None = None
    given: Callable[[Any], Any] = lambda batch: batch
    redrawn: bool = False

    @property
    def name(self) -> str:
        return self.loss.__name__.replace("_", " ").strip()


def network() -> nn.Module:
    """A small network: 6 numbers to 4."""
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight rows and their classes; the last class is there, and one above the first."""
    x, y = torch.randn(8, 6), torch.randint(4, (8,))
    y[:2] = torch.tensor([3, 1])
    return x, y


def habits() -> tuple[list[Habit], Callable[..., Callable[[Loss], Loss]]]:
    """A list, and a decorator that adds a loss to it."""
    found: list[Habit] = []

    def habit(
        build: Callable[[], nn.Module] = network, batch: Callable[[], Any] = rows, **more: Any
    ) -> Callable[[Loss], Loss]:
        def add(loss: Loss) -> Loss:
            found.append(Habit(loss, build, batch, **more))
            return loss

        return add

    return found, habit


def tried(habit: Habit, backend: str = "aot_eager") -> str:
    """Whether the habit is recorded and equals the eager step, or is refused as it should be.

    Raises:
        AssertionError: It is neither, or what is proposed in its place does not do the same.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of beta features
        torch.manual_seed(0)
        model, batches = habit.build(), [habit.batch() for _ in range(2)]
        step = _pipeline(habit.loss)
        state = step.init(model, seed=0)
        if not habit.refused:
            _check_equal(step, state, batches, backend)
            return "recorded"
        expected, _ = step(state, batches[0])
        _check_refusal(habit, step, state, batches[0])
        if habit.instead is not None:
            proposed = _pipeline(habit.instead)
            given = [habit.given(batch) for batch in batches]
            got = _check_equal(proposed, state, given, backend)
            if not habit.redrawn:
                _compare(expected, got)
        return "refused"


def _check_equal(step: Any, state: fl.State, batches: list[Any], backend: str) -> fl.State:
    """The compiled step is the step, for all batches in one graph; the state after the first."""
    fast, got, after = fl.compile(step, backend=backend), state, []
    for batch in batches:
        state, reports = step(state, batch)
        got, reported = fast(got, batch)
        _compare(state, got)
        torch.testing.assert_close(float(reported["loss"]), float(reports["loss"]), **CLOSE)
        after.append(got)
    assert fast.graphs == 1
    return after[0]


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def _compare(expected: fl.State, got: fl.State) -> None:
    torch.testing.assert_close(dict(got.params), dict(expected.params), **CLOSE)
    torch.testing.assert_close(dict(got.buffers), dict(expected.buffers), **CLOSE)


def _pipeline(loss: Loss) -> Any:
    # Adam divides by the size of a gradient: a large eps keeps it from blowing up rounding.
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.01, eps=1e-3)))


def _check_refusal(habit: Habit, step: Any, state: fl.State, batch: Any) -> None:
    """The message says what cannot be recorded, and names the line of the habit."""
    try:
        fl.compile(step, backend="aot_eager")(state, batch)
    except fl.errors.CompileError as error:
        said, code = str(error), habit.loss.__code__
        file = Path(code.co_filename).name
        assert habit.refused in " ".join(said.split()), said
        line = re.search(rf"{re.escape(file)}, line (\d+), in ", said)
        assert line, f"names no line of the user:\n{said}"
    else:
        raise AssertionError("is recorded, though it is written down as refused")
