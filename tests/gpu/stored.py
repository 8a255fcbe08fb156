"""States that are saved and loaded across devices, and runs of `fl.fit`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import fnloop as fl

from .problems import (
    Net,
    arrays,
    backend,
    batches,
    everything,
    loss,
    simple,
    smooth,
    started,
)


def there_and_back(device: str) -> None:
    """Saved on the device, loaded on the CPU, saved there and loaded on the device: same bits."""
    step = everything()
    state = started(step, Net, device)
    for batch in batches(3, device):
        state, _ = step(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        here = fl.load(fl.save(state, Path(folder, "a")), like=state.to("cpu"))
        assert fl.tree_equal(here, state.to("cpu")), fl.tree_diff(here, state.to("cpu"))
        back = fl.load(fl.save(here, Path(folder, "b")), like=state)
        assert fl.tree_equal(back, state), fl.tree_diff(back, state)
    for there, where in ((here, "cpu"), (back, device)):
        found = {leaf.device.type for leaf in fl.tree_leaves((there.params, there.slots))}
        assert found == {where}, f"loaded for {where}, tensors are on {found}"
        after, metrics = step(there, batches(1, where)[0])
        assert int(after.step) == 4 and float(metrics["loss"]) > 0


def compiled_and_loaded(device: str) -> None:
    """A compiled, donating run goes on from a checkpoint with the bits of a run without a stop."""
    step = fl.compile(simple(), donate=True, backend=backend(device))
    given = batches(6, device)
    whole = state = started(step, Net, device)
    for batch in given:
        whole, _ = step(whole, batch)
    state = started(step, Net, device)
    for batch in given[:3]:
        state, _ = step(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        state = fl.load(fl.save(state, folder), like=started(step, Net, device))
    for batch in given[3:]:
        state, _ = step(state, batch)
    assert fl.tree_equal(whole, state), fl.tree_diff(whole, state)


def fitted(device: str) -> None:
    """`fl.fit` with validation, early stopping, checkpoints; stopped and resumed, the same bits."""
    data = fl.data.prefetch(fl.Batches(arrays(64), batch_size=16, seed=1), device=device)
    held_out = fl.data.prefetch(fl.Batches(arrays(32, seed=9), 16, shuffle=False), device=device)
    step = fl.compile(
        fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9)),
        backend=backend(device),
    )

    def fit(folder: Path, steps: int, **options: Any) -> tuple[fl.State, fl.History]:
        callbacks = [
            fl.every(4, fl.validate(loss, held_out, params="ema")),
            fl.early_stopping("val/loss", patience=50),
            fl.checkpoint(folder, every=4, unit="step", monitor="val/loss"),
        ]
        state = started(step, smooth, device)
        return fl.fit(step, state, data, steps=steps, callbacks=callbacks, **options)

    with tempfile.TemporaryDirectory() as folder:
        whole, history = fit(Path(folder, "whole"), 24)
        fit(Path(folder, "parts"), 12)
        resumed, _ = fit(Path(folder, "parts"), 24, resume=Path(folder, "parts"))
        assert history.status == "completed" and len(history["val/loss"]) == 6
        assert history["val/loss"][-1] < history["val/loss"][0], history["val/loss"]
        assert fl.tree_equal(whole.params, resumed.params), fl.tree_diff(whole, resumed)
        best = fl.load(fl.best(Path(folder, "whole")), like=whole)
        assert {p.device.type for p in best.params.values()} == {device}
    found = fl.evaluate(loss, whole, held_out, params="ema")
    assert abs(found["loss"] / history["val/loss"][-1] - 1) < 1e-6


def stopped(device: str) -> None:
    """Early stopping stops a run whose loss does not fall."""
    step = simple(fl.optim.sgd(0.0))
    state, history = fl.fit(
        step,
        started(step, smooth, device),
        batches(1, device) * 40,
        steps=40,
        callbacks=[fl.early_stopping("loss", patience=3)],
    )
    assert history.status == "stopped" and 3 <= int(state.step) <= 5, int(state.step)


def prefetched(device: str) -> None:
    """Batches that are copied ahead are those of the data, also while the device is busy."""
    data = fl.Batches(arrays(256), batch_size=8, seed=2)
    ahead = fl.data.prefetch(data, depth=3, device=device)
    busy = torch.ones(512, 512, device=device)
    seen = []
    for _ in range(3):
        for batch, expected in zip(_epoch(ahead), _epoch(data), strict=True):
            busy = torch.tanh(busy @ busy)
            seen.append((batch[0] * 1, expected[0]))
    for got, expected in seen:
        assert got.device.type == device and torch.equal(got.cpu(), expected)


def _epoch(data: Any) -> Any:
    from fnloop.data.sources import one_epoch

    return one_epoch(data)
