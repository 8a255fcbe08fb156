"""The problems in JAX: the same weights, the same mathematics, JAX's own layouts.

Parameters are a flat dictionary with PyTorch's names. Linear weights are (in, out), convolutions
and images have the channels last. Under bf16 the operands of the matrix products are cast by hand,
as autocast casts them, and normalisation, softmax and loss are computed in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from torch import Tensor, nn

Params = Mapping[str, Array]


def params_of(model: nn.Module) -> dict[str, Array]:
    """The parameters of a module, in JAX's layouts."""
    params = {}
    for path, module in model.named_modules():
        for name, p in module.named_parameters(path, recurse=False):
            p = p.detach()
            if isinstance(module, nn.Linear) and p.ndim == 2:
                p = p.T
            elif isinstance(module, nn.Conv2d) and p.ndim == 4:
                p = p.permute(2, 3, 1, 0)
            params[name] = jnp.array(p.numpy())
    return params


def batch_of(batch: Any) -> Any:
    """A batch, images with the channels last."""
    if isinstance(batch, tuple):
        return tuple(batch_of(part) for part in batch)
    assert isinstance(batch, Tensor)
    return jnp.array((batch.movedim(1, -1) if batch.ndim == 4 else batch).numpy())


def layers(params: Params, batch: tuple[Array, Array], last: int) -> Array:
    """Linear layers with ReLU between them; ``params`` has the names of an ``nn.Sequential``."""
    x, y = batch
    for i in range(0, last, 2):
        x = jax.nn.relu(x @ params[f"{i}.weight"] + params[f"{i}.bias"])
    return cross_entropy(x @ params[f"{last}.weight"] + params[f"{last}.bias"], y)


def many(params: Params, batch: tuple[Array, Array]) -> Array:
    x, y = batch
    for i in range(1000):
        x = x + (x @ params[f"layers.{i}.weight"] + params[f"layers.{i}.bias"]) / 32
    return cross_entropy(x, y)


def cnn(params: Params, batch: tuple[Array, Array]) -> Array:
    x, y = batch
    for i in (0, 3):
        weight, bias = params[f"{i}.weight"], params[f"{i}.bias"]
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=dimensions)
        x = jax.nn.relu(x + bias)
        # Half the time of `reduce_window`, whose gradient is slow.
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # the order in which PyTorch flattens
    return cross_entropy(x @ params["7.weight"] + params["7.bias"], y)


def gpt(params: Params, window: Array, dtype: Any = jnp.float32) -> Array:
    ids, targets = window[:, :-1], window[:, 1:]
    batch, time = ids.shape

    def linear(x: Array, weight: Array) -> Array:
        # Of a matrix: the gradient of a product with more dimensions takes a fifth more time.
        return x.reshape(batch * time, -1).astype(dtype) @ weight.astype(dtype)

    def attend(qkv: Array) -> Array:
        q, k, v = qkv.reshape(batch, time, 3, 4, -1).transpose(2, 0, 3, 1, 4)
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k).astype(jnp.float32) / math.sqrt(q.shape[-1])
        scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -jnp.inf)
        attended = jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores).astype(dtype), v)
        return attended.transpose(0, 2, 1, 3)

    x = params["token.weight"][ids] + params["position.weight"][:time]
    x = x.reshape(batch * time, -1)
    for i in range(4):
        p = {n: params[f"layers.{i}.{n}.weight"] for n in _BLOCK}
        x = x + linear(attend(linear(norm(x, p["norm1"]), p["qkv"])), p["mix"])
        up = linear(norm(x, p["norm2"]), p["up"])
        x = x + linear(jax.nn.gelu(up, approximate=False), p["down"])
    logits = linear(norm(x, params["norm.weight"]), params["token.weight"].T)
    return cross_entropy(logits.astype(jnp.float32), targets.reshape(-1))


_BLOCK = ("norm1", "qkv", "mix", "norm2", "up", "down")


def reconstruct(params: Params, batch: Array, last: int) -> Array:
    x = batch
    for i in range(0, last + 1, 2):
        x = jax.nn.relu(x @ params[f"{i}.weight"] + params[f"{i}.bias"])
    return jnp.mean((x - batch) ** 2)


def norm(x: Array, weight: Array) -> Array:
    """``nn.LayerNorm`` without bias."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight


def cross_entropy(logits: Array, targets: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


LOSSES: Mapping[str, Callable[[Params, Any], Array]] = {
    "mlp": functools.partial(layers, last=4),
    "logged": functools.partial(layers, last=4),
    "narrow": functools.partial(layers, last=18),
    "many": many,
    "cnn": cnn,
    "gpt": gpt,
    "gpt-bf16": functools.partial(gpt, dtype=jnp.bfloat16),
    "gpt-accumulate": gpt,
    "wide": functools.partial(reconstruct, last=22),
    "little": functools.partial(reconstruct, last=2),
}
