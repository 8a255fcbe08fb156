"""Handwritten digits once more, with a loop of one's own.

`fl.run` draws the batch, makes the step, and hands over the state and the metrics. All the rest is
plain Python: when to validate, what to print, what to keep, when to stop. Started again, it goes on
from the best state so far::

    python examples/own_loop.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digits import digits, loss, network  # the file beside this one

import fnloop as fl


def train(folder: Path, epochs: int = 30, patience: int = 5) -> dict[str, float]:
    """Train until the validation loss stops improving; returns the scores on the test data."""
    data = digits(batch_size=32)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(3e-3)), fl.ema(0.98))
    state = step.init(lambda: network(dropout=0.2), seed=0)
    if (saved := fl.latest(folder)) is not None:
        state = fl.load(saved, like=state)

    best, waited, seen = state, 0, list[dict[str, Any]]()
    least = fl.evaluate(loss, best, data.validate, params="ema", statistics=data.train)["loss"]
    loop = fl.run(step, state, data.train, epochs=epochs - fl.data.Cursor.of(state.cursor).epoch)
    for state, metrics in loop:
        seen.append(metrics)
        cursor = fl.data.Cursor.of(state.cursor)
        if cursor.index:
            continue  # in the middle of an epoch

        trained, seen = fl.metrics.numbers(fl.metrics.merge(seen)), []
        validated = fl.evaluate(loss, state, data.validate, params="ema", statistics=data.train)
        print(f"epoch {cursor.epoch}: {trained['loss']:.3f}, validation {validated['loss']:.3f}")
        if validated["loss"] < least:
            best, least, waited = state, validated["loss"], 0  # no copy: a state never changes
            fl.save(best, folder)
        elif waited + 1 < patience:
            waited += 1
            loop.send(fl.scale(state, "adamw.lr", 0.5))  # what the body does is fed back only so
        else:
            break

    return fl.evaluate(loss, best, data.test, params="ema", statistics=data.train)


if __name__ == "__main__":
    print(train(Path("runs/own_loop")))
