"""JAX's part of ``population.py``. It needs JAX, optax and the file next to it, no PyTorch."""

from __future__ import annotations

import itertools
import time
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

if __package__:
    from . import piped
else:
    import piped


def loss(params: dict[str, Array], batch: tuple[Array, Array]) -> Array:
    """Of one member: linear layers with ReLU between them."""
    x, y = batch
    for i in (0, 2):
        x = jax.nn.relu(x @ params[f"{i}.weight"] + params[f"{i}.bias"])
    logits = x @ params["4.weight"] + params["4.bias"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


class Answers:
    """Answers the questions of ``population.py``."""

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        return getattr(self, question.pop("do"))(**question)

    def prepare(self, file: str, lr: float, weight_decay: float) -> dict[str, Any]:
        """Read parameters and batches, and make the step."""
        optimizer = optax.adamw(lr, weight_decay=weight_decay)

        def step(params: Any, memory: Any, batch: Any) -> tuple[Any, Any, Array]:
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, memory = optimizer.update(grads, memory, params)
            return optax.apply_updates(params, updates), memory, value

        with np.load(file) as arrays:
            found = {name: jax.device_put(array) for name, array in arrays.items()}
        self._batches = itertools.cycle(list(zip(found.pop("x"), found.pop("y"), strict=True)))
        self._params, self._memory = found, jax.vmap(optimizer.init)(found)
        self._step = jax.jit(jax.vmap(step, in_axes=(0, 0, None)), donate_argnums=(0, 1))
        return {}

    def run(self, steps: int) -> dict[str, Any]:
        """Make steps; the ``seconds`` of the processor that they took."""
        start = time.process_time()
        for batch in itertools.islice(self._batches, steps):
            self._params, self._memory, self._losses = self._step(self._params, self._memory, batch)
        jax.block_until_ready((self._params, self._losses))
        return {"seconds": time.process_time() - start}

    def loss(self) -> dict[str, Any]:
        """The mean ``loss`` of the members in the last step."""
        return {"loss": float(self._losses.mean())}


if __name__ == "__main__":
    piped.serve(Answers())
