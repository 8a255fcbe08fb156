"""JAX with optax: the whole step under ``jit``, parameters and optimizer donated."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax import Array

from .loops import Training, looped
from .problems import LR, WEIGHT_DECAY, Problem
from .problems_jax import LOSSES, batch_of, params_of
from .timing import Clock


def jit(problem: Problem, clock: Clock) -> Training:
    """A loop by hand around the compiled step."""
    optimizer = optax.adamw(LR, weight_decay=WEIGHT_DECAY)
    value_and_grad = jax.value_and_grad(LOSSES[problem.name])

    def step(params: Any, memory: Any, parts: list[Any]) -> tuple[Any, Any, Array]:
        results = [value_and_grad(params, part) for part in parts]
        loss, grads = jax.tree.map(lambda *xs: sum(xs) / len(xs), *results)
        updates, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory, loss

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = params_of(problem.model())
    memory = optimizer.init(params)

    def one(parts: list[Any]) -> Array:
        nonlocal params, memory
        params, memory, loss = compiled(params, memory, parts)
        return loss

    batches = [[batch_of(part) for part in problem.parts(batch)] for batch in problem.batches]
    return looped(
        problem,
        clock,
        one,
        wait=jax.block_until_ready,
        batches=batches,
        graphs=compiled._cache_size,
    )
