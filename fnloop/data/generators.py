"""Seed the random generators that samplers and loaders keep for themselves."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch

from fnloop._torch.random import UNSIGNED
from fnloop.data.nested import generators_of


@contextlib.contextmanager
def seeded_generators(parts: Sequence[Any], seed: int) -> Generator[None, None, None]:
    """Within the block, the generators of each part (of torch, numpy, Python) start from `seed`.

    Afterwards they have their state back. A part whose attribute ``generator`` is None has one for
    the duration of the block: a sampler without a generator would seed itself from the global one,
    whose state depends on whether new workers are started. Workers are seeded from the loader's.
    """
    without = [part for part in parts if getattr(part, "generator", 0) is None]
    own = {id(g): g for part in parts for g in _generators(part)}
    before = [(generator, _state(generator)) for generator in own.values()]
    try:
        for part in without:
            part.generator = torch.Generator()
            part.generator.manual_seed(seed)
        for generator in own.values():
            _seed(generator, seed)
        yield
    finally:
        for part in without:
            part.generator = None
        for generator, state in before:
            _restore(generator, state)


def _generators(part: Any) -> list[Any]:
    named = getattr(part, "generator", None)  # also of a proxy
    return [*generators_of(part).values(), *([named] if isinstance(named, torch.Generator) else [])]


def _seed(generator: Any, seed: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, random.Random):
        generator.seed(seed)
    elif isinstance(generator, np.random.RandomState):
        generator.seed(seed & 0xFFFFFFFF)
    else:
        bits = generator.bit_generator
        bits.state = type(bits)(seed & UNSIGNED).state


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _restore(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
