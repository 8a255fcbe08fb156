"""Who takes part. Those that need an optional library import it when they are asked to begin."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import fnloop as fl

from . import by_hand, with_fnloop
from .loops import Training
from .problems import Problem
from .timing import Clock

Build = Callable[[Problem, Clock], Training]


class Contender(NamedTuple):
    """A way to train.

    Attributes:
        name: In tables.
        group: ``"by hand"`` are the PyTorch loops that ratios are to; ``"check"`` repeats one of
            them, so that its ratio shows the noise.
        build: Makes it ready to train a problem.
        compiles: Whether it compiles.
        needs: Libraries, as they are imported.
        pictures: Whether it takes part where the model convolves over pictures, and only there.
        around: The contender whose step this loop runs: what it takes longer is the loop's cost.
    """

    name: str
    group: Literal["by hand", "check", "one graph", "peer", "fnloop"]
    build: Build
    compiles: bool = False
    needs: Sequence[str] = ()
    pictures: bool = False
    around: str | None = None

    def absent(self, problem: Problem) -> str | None:
        """Why it takes no part, if it does not."""
        for library in self.needs:
            if importlib.util.find_spec(library) is None:
                return f"{library} is not installed"
        if self.pictures and not problem.pictures:
            return "nothing convolves over pictures"
        return problem.left_out.get(self.name)


def _compile(donate: bool) -> with_fnloop.Transform:
    return lambda step: fl.compile(step, donate=donate)


def _bare(problem: Problem, clock: Clock) -> Training:
    from .with_lightning import bare

    return bare(problem, clock)


def _defaults(problem: Problem, clock: Clock) -> Training:
    from .with_lightning import defaults

    return defaults(problem, clock)


def _accelerate(problem: Problem, clock: Clock) -> Training:
    from .with_accelerate import prepared

    return prepared(problem, clock)


def _jax(problem: Problem, clock: Clock, together: bool = False) -> Training:
    from .with_jax import jit

    return jit(problem, clock, together)


def _fnloop(loop: Callable[..., Training], donate: bool) -> Build:
    return functools.partial(loop, transform=_compile(donate), compiled=True)


def _with(build: Callable[..., Training], **options: Any) -> Build:
    return functools.partial(build, **options)


FUSED = "by hand, fused"
DONATED = "fnloop, compiled, donated"
LIGHTNING = "Lightning, defaults"
JAX = "JAX"
DONATED_TOGETHER = "fnloop, compiled, donated, 8 steps a call"
JAX_TOGETHER = "JAX, 8 steps a call"

_ALL = [
    Contender("by hand, default", "by hand", by_hand.eager),
    Contender("by hand, foreach", "by hand", _with(by_hand.eager, foreach=True)),
    Contender(FUSED, "by hand", _with(by_hand.eager, fused=True)),
    Contender(
        "by hand, fused, channels last",
        "by hand",
        _with(by_hand.eager, fused=True, channels_last=True),
        pictures=True,
    ),
    Contender("by hand, fused, again", "check", _with(by_hand.eager, fused=True)),
    Contender("by hand, compiled model", "by hand", by_hand.compiled_model, compiles=True),
    Contender("by hand, compiled loss", "by hand", by_hand.compiled_loss, compiles=True),
    Contender(
        "by hand, compiled loss, C++ wrapper",
        "by hand",
        _with(by_hand.compiled_loss, options={"cpp_wrapper": True}),
        compiles=True,
    ),
    Contender(
        "by hand, compiled loss, max-autotune",
        "by hand",
        _with(by_hand.compiled_loss, mode="max-autotune-no-cudagraphs", dynamic=False),
        compiles=True,
    ),
    Contender(
        "by hand, compiled loss, channels last",
        "by hand",
        _with(by_hand.compiled_loss, channels_last=True),
        compiles=True,
        pictures=True,
    ),
    Contender(
        "by hand, compiled loss, layouts kept",
        "by hand",
        _with(by_hand.compiled_loss, options={"layout_optimization": False}),
        compiles=True,
        pictures=True,
    ),
    Contender(
        "by hand, compiled loss and optimizer",
        "by hand",
        by_hand.compiled_optimizer,
        compiles=True,
    ),
    Contender("by hand, one graph", "one graph", by_hand.one_graph, compiles=True),
    Contender(
        "by hand, one graph, C++ wrapper",
        "one graph",
        _with(by_hand.one_graph, cpp_wrapper=True),
        compiles=True,
    ),
    Contender(LIGHTNING, "peer", _defaults, needs=["pytorch_lightning"], around=FUSED),
    Contender("Lightning, bare", "peer", _bare, needs=["pytorch_lightning"], around=FUSED),
    Contender("Accelerate", "peer", _accelerate, needs=["accelerate"], around=FUSED),
    Contender(JAX, "peer", _jax, compiles=True, needs=["jax", "optax"]),
    Contender(
        JAX_TOGETHER,
        "peer",
        _with(_jax, together=True),
        compiles=True,
        needs=["jax", "optax"],
    ),
    Contender("fnloop, eager, step alone", "fnloop", with_fnloop.alone),
    Contender("fnloop, eager", "fnloop", with_fnloop.run, around="fnloop, eager, step alone"),
    Contender(
        "fnloop, eager, fit",
        "fnloop",
        _with(with_fnloop.fit, bar=False),
        around="fnloop, eager, step alone",
    ),
    Contender(
        "fnloop, compiled",
        "fnloop",
        _fnloop(with_fnloop.run, False),
        compiles=True,
    ),
    Contender(
        "fnloop, compiled, donated, step alone",
        "fnloop",
        _fnloop(with_fnloop.alone, True),
        compiles=True,
    ),
    Contender(
        DONATED,
        "fnloop",
        _fnloop(with_fnloop.run, True),
        compiles=True,
        around="fnloop, compiled, donated, step alone",
    ),
    Contender(
        "fnloop, compiled, donated, fit",
        "fnloop",
        _fnloop(with_fnloop.fit, True),
        compiles=True,
        around="fnloop, compiled, donated, step alone",
    ),
    Contender(DONATED_TOGETHER, "fnloop", with_fnloop.together, compiles=True),
]

CONTENDERS: Mapping[str, Contender] = {contender.name: contender for contender in _ALL}


def chosen(words: Sequence[str] | None) -> list[Contender]:
    """The contenders whose names are among the words, or contain one of them; default all.

    Raises:
        ValueError: A word is in no name.
    """
    if not words:
        return list(CONTENDERS.values())
    found = {w: [c for c in _ALL if w == c.name] or [c for c in _ALL if w in c.name] for w in words}
    for word, contenders in found.items():
        if not contenders:
            raise ValueError(f"No contender is called {word!r}; there are: {', '.join(CONTENDERS)}")
    return [c for c in _ALL if any(c in contenders for contenders in found.values())]


def sort(
    contenders: Sequence[Contender], problem: Problem
) -> tuple[list[Contender], dict[str, str]]:
    """Those that take part, and for the others why not."""
    reasons = {c.name: reason for c in contenders if (reason := c.absent(problem)) is not None}
    return [c for c in contenders if c.name not in reasons], reasons
