"""Population-based training against grids of the same compute, on digits and on a small GPT.

Eight learning rates from too small to too large, trained at once. One grid keeps each as it is; a
second lets each fall along a cosine, as one does by hand; population-based training begins with the
first grid, and lets members that do badly go on from better ones with another rate. All see the
same batches, and of each the state with the best validation loss of all members is tested::

    python examples/pbt.py                       # five seeds of both: some minutes
    python examples/pbt.py --task gpt --check 80 --seeds 1

``runs/pbt`` then has a table for each task, and pictures of who went on from whom.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import char_gpt  # the files beside this one
import digits
import torch
from torch import nn

import fnloop as fl

RATES = torch.logspace(-4, -1, 8)
METHODS = ("grid", "grid, cosine", "population")


class Task(NamedTuple):
    """What is trained: the loss, a function that builds the model, data, and for how long.

    Attributes:
        steps: Of training.
        check: Steps from one comparison of the members to the next.
        compiled: Whether the step is compiled, which pays in a model of many small kernels.
    """

    loss: Callable[..., Any]
    model: Callable[[], nn.Module]
    data: fl.Data
    steps: int
    check: int
    compiled: bool


class Result(NamedTuple):
    """Of one method and seed: loss on test data, and the run with the member that was chosen."""

    loss: float
    history: fl.History
    member: int


def perceptron() -> nn.Module:
    """From images of 8 x 8 pixels to ten scores."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)
    )


def digits_task(steps: int = 510, check: int = 17) -> Task:
    """A perceptron on the data of ``digits.py``: 15 epochs, compared twice in each."""
    return Task(digits.loss, perceptron, digits.digits(32), steps, check, compiled=False)


def gpt_task(steps: int = 320, check: int = 20, compiled: bool = True) -> Task:
    """The GPT of ``char_gpt.py`` with two layers, 32 wide, on the Python manual."""
    text = char_gpt.read(None)
    characters = sorted(set(text))
    index = {character: i for i, character in enumerate(characters)}
    parts = torch.tensor([index[c] for c in text]).tensor_split(
        [int(share * len(text)) for share in (0.8, 0.9)]
    )
    train, *others = (part.unfold(0, 33, 1) for part in parts)
    places = [
        torch.linspace(0, len(part) - 1, count).long()
        for part, count in zip(others, (128, 1024), strict=True)
    ]
    validate, test = (
        fl.Batches(part[some], 256, shuffle=False)
        for part, some in zip(others, places, strict=True)
    )
    model = functools.partial(char_gpt.GPT, len(characters), block=32, layers=2, heads=2, width=32)
    data = fl.Data(fl.Batches(train, 8), validate, test)
    return Task(char_gpt.loss, model, data, steps, check, compiled)


TASKS = {"digits": digits_task, "gpt": gpt_task}


def step_of(task: Task, falls: bool) -> Any:
    """Eight runs that differ in their learning rates, which are constant or fall to zero."""
    step = fl.pipe(
        task.loss,
        fl.grad,
        fl.update(
            fl.optim.chain(
                fl.optim.clip_by_norm(1.0),
                fl.optim.adamw(fl.schedules.cosine(1e-3, steps=task.steps)),
            )
        ),
    )
    ends = torch.zeros_like(RATES) if falls else RATES  # where the cosine ends: level
    many = fl.sweep(step, {"adamw.lr.peak": RATES, "adamw.lr.end": ends})
    return fl.compile(many, donate=True) if task.compiled else many


def train(task: Task, step: Any, explores: bool, seed: int) -> Result:
    """Train eight members; on test data, the best state of the one that was best in validation."""
    callbacks: list[Any] = [
        fl.every(task.check, fl.validate(task.loss, task.data)),
        fl.tuning.keep_best("val/loss"),
    ]
    if explores:
        callbacks += [fl.population("val/loss", fraction=0.25)]
    states, history = fl.fit(
        step,
        step.init(task.model, seed=seed),
        task.data,
        steps=task.steps,
        callbacks=callbacks,
        progress=False,
    )
    if history.status == "interrupted":
        raise KeyboardInterrupt(history.reason)
    member = int(states["best"]["value"].argmin())
    chosen = fl.member(fl.tuning.best_states(states), member)
    return Result(fl.evaluate(task.loss, chosen, task.data.test)["loss"], history, member)


def compare(task: Task, seeds: int) -> dict[str, list[Result]]:
    """The results of each method, one for each seed."""
    level, falling = (step_of(task, falls) for falls in (False, True))
    steps = dict(zip(METHODS, (level, falling, level), strict=True))
    return {
        method: [train(task, step, method == METHODS[-1], seed) for seed in range(seeds)]
        for method, step in steps.items()
    }


def table(found: dict[str, list[Result]]) -> str:
    """A line for each method: mean test loss, its deviation over seeds, and each seed."""
    lines = [f"{'':14}{'mean':>8}{'std':>8}  each seed"]
    for method, results in found.items():
        losses = [result.loss for result in results]
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        each = " ".join(f"{loss:.4f}" for loss in losses)
        lines.append(f"{method:14}{statistics.fmean(losses):8.4f}{spread:8.4f}  {each}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=TASKS, nargs="*", default=[*TASKS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--check", type=int, help="batches from one comparison to the next")
    parser.add_argument("--folder", type=Path, default=Path("runs/pbt"))
    given = parser.parse_args()
    options = {} if given.check is None else {"check": given.check}
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.task:
        found = compare(TASKS[name](**options), given.seeds)
        (given.folder / f"{name}.txt").write_text(table(found) + "\n")
        print(f"{name}: test loss\n{table(found)}\n")
        result = found[METHODS[-1]][0]
        lineage = fl.tuning.lineage(result.history)
        picture = given.folder / f"{name}.png"
        lineage.plot(["val/loss", "adamw.lr"], result.member, picture)


if __name__ == "__main__":
    main()
