"""What each model of the battery goes through."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

import fnloop as fl
from fnloop.transforms.vmap_errors import NOTE

from .entry import Entry

LR, EPS, STEPS = 1e-2, 1e-4, 3
"""`EPS` is large, so that Adam does not blow up gradients that are zero but for rounding."""
TOLERANCE = 1e-5
"""The largest difference of a loss, a parameter or a buffer. Each step moves parameters by `LR`."""
REGROUPED = 1e-4
"""The same where operations run in another order: compiled, accumulated, vmapped."""


def made(entry: Entry) -> tuple[nn.Module, list[Any]]:
    """The model and its batches, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batches = entry.build().train(), [entry.batch() for _ in range(STEPS)]
    if not entry.double:
        return model, batches
    return model.double(), fl.tree_map(
        lambda t: t.double() if t.is_floating_point() else t, batches
    )


def pipeline(entry: Entry) -> Any:
    """The step that is tested."""
    return fl.pipe(entry.loss, fl.grad, fl.update(fl.optim.adamw(LR, eps=EPS)))


def eager(entry: Entry) -> str:
    """Three steps equal those of a loop by hand with ``torch.optim.AdamW``; and law 1."""
    model, batches = made(entry)
    given = {name: t.clone() for name, t in model.state_dict().items()}
    step = pipeline(entry)
    state = step.init(model, seed=0)
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    fl.testing.check_pure(step, state, batches[0], model)
    assert all(torch.equal(given[name], t) for name, t in model.state_dict().items())

    hand = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(hand.parameters(), LR, eps=EPS)
    expected = []
    for batch in batches:
        optimizer.zero_grad()
        loss = entry.loss(hand, batch)
        loss = loss.total / loss.weight if isinstance(loss, fl.Mean) else loss
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    most = max(abs(a - b) / max(1, abs(b)) for a, b in zip(losses, expected, strict=True))
    trained = fl.to_module(state).state_dict()
    most = max(most, *(_difference(trained[name], t) for name, t in hand.state_dict().items()))
    assert most <= TOLERANCE, f"differs by {most:.1e} from the loop by hand"
    return f"{most:.0e}"


def compiled(entry: Entry, backend: str = "aot_eager") -> str:
    """The compiled step is the step, in one graph; or it is refused as the entry says."""
    model, batches = made(entry)
    step = pipeline(entry)
    try:
        fl.testing.check_compiles(
            step, step.init(model, seed=0), batches, backend, rtol=REGROUPED, atol=REGROUPED
        )
    except fl.errors.CompileError as error:
        said = " ".join(str(error).split())
        if entry.refused and entry.refused in said:
            return "refused"
        raise
    assert not entry.refused, "compiles, though the table says that it does not"
    return "ok"


def accumulated(entry: Entry) -> str:
    """Two micro-batches give the gradients and metrics of one batch."""
    if entry.uncut:
        return "-"
    model, (batch, *_) = made(entry)
    whole = fl.pipe(entry.loss, fl.grad)
    parts = fl.pipe(entry.loss, fl.grad, fl.accumulate(2))
    state = whole.init(model, seed=0)
    _, a = whole(state, batch)
    _, b = parts(state, entry.cut(batch) if entry.cut else batch)
    assert torch.allclose(a.weight.double(), b.weight.double()), f"weights {a.weight}, {b.weight}"
    assert set(a.mean) == set(b.mean), f"reached by one only: {set(a.mean) ^ set(b.mean)}"
    most = max(_difference(a.mean[name], b.mean[name]) for name in a.mean)
    assert most <= REGROUPED, f"the gradients differ by {most:.1e}"
    return f"{most:.0e}"


def resumed(entry: Entry) -> str:
    """Saved after two steps and loaded into a new state: the third has the same bits."""
    model, batches = made(entry)
    step = pipeline(entry)
    state = step.init(model, seed=0)
    for batch in batches[:-1]:
        state, _ = step(state, batch)
    with tempfile.TemporaryDirectory() as folder:
        path = fl.save(state, folder)
        loaded = fl.load(path, like=step.init(made(entry)[0], seed=1))
    a, b = step(state, batches[-1]), step(loaded, batches[-1])
    assert fl.tree_equal(a, b), fl.tree_diff(a, b)
    return "ok"


def population(entry: Entry) -> str:
    """Each of three members of an ensemble is the run of its seed: vmapped, else in a loop."""
    _, batches = made(entry)
    step, size = pipeline(entry), 3

    def network() -> nn.Module:
        return entry.build().train().to(torch.float64 if entry.double else torch.float32)

    alone = [step.init(network, seed=i) for i in range(size)]
    for batch in batches:
        alone = [step(state, batch)[0] for state in alone]

    def members(mode: Literal["vmap", "loop"]) -> str:
        many = fl.ensemble(step, size, mode=mode)
        states = many.init(network, seed=0)
        for batch in batches:
            states, _ = many(states, batch)
        found = [fl.to_module(fl.member(states, i)).state_dict() for i in range(size)]
        most = max(
            _difference(found[i][name], t)
            for i, state in enumerate(alone)
            for name, t in fl.to_module(state).state_dict().items()
        )
        assert most <= REGROUPED, f"a member differs by {most:.1e} from its run alone"
        return f"{most:.0e}"

    try:
        return members("vmap")
    except Exception as error:
        if NOTE in getattr(error, "__notes__", ()):
            return f"by loop {members('loop')}"
        raise


CHECKS: dict[str, Callable[[Entry], str]] = {
    "eager": eager,
    "compiled": compiled,
    "accumulated": accumulated,
    "resumed": resumed,
    "population": population,
}


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _difference(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    a, b = a.detach(), b.detach()
    wide = torch.complex128 if a.is_complex() else torch.float64
    return float((a.to(wide) - b.to(wide)).abs().div(b.abs().clamp(min=1)).max())
