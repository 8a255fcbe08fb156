"""JAX with optax: the whole step under ``jit``, parameters and optimizer donated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from .loops import TOGETHER, Training, grouped, looped
from .problems import LR, WEIGHT_DECAY, Problem
from .problems_jax import LOSSES, batch_of, params_of
from .timing import Clock


def jit(problem: Problem, clock: Clock, together: bool = False) -> Training:
    """A loop by hand around the compiled step; or around `TOGETHER` steps in one ``lax.scan``."""
    optimizer = optax.adamw(LR, weight_decay=WEIGHT_DECAY)
    value_and_grad = jax.value_and_grad(LOSSES[problem.name])

    def step(carried: Any, parts: list[Any]) -> tuple[Any, Array]:
        params, memory = carried
        results = [value_and_grad(params, part) for part in parts]
        loss, grads = jax.tree.map(lambda *xs: sum(xs) / len(xs), *results)
        updates, memory = optimizer.update(grads, memory, params)
        return (optax.apply_updates(params, updates), memory), loss

    def several(carried: Any, batches: Any) -> tuple[Any, Array]:
        return jax.lax.scan(step, carried, batches)

    compiled = jax.jit(several if together else step, donate_argnums=0)
    params = params_of(problem.model())
    carried = params, optimizer.init(params)

    def one(parts: Any) -> Array:
        nonlocal carried
        carried, loss = compiled(carried, parts)
        return loss

    batches = [[batch_of(part) for part in problem.parts(batch)] for batch in problem.batches]
    if together:
        batches = [jax.tree.map(lambda *xs: jnp.stack(xs), *group) for group in grouped(batches)]
    return looped(
        problem,
        clock,
        one,
        read=lambda loss: np.atleast_1d(loss).tolist()[-1],
        wait=jax.block_until_ready,
        batches=batches,
        graphs=compiled._cache_size,
        each=TOGETHER if together else 1,
    )
