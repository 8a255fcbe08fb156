"""``dp_sgd``: gradients of single examples, clipped and with noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.base import GradStage, Kind, mesh_of
from fnloop.trees.nodes import tree, tree_leaves, tree_map
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.metrics import Mean, Sum
from fnloop.values.randomness import randomness
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class DpSgd(GradStage):
    """The stage that `dp_sgd` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "dp_sgd"
    inner: Any
    clip: Any
    noise: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if mesh_of(self.inner) is not None:
            raise ValueError(
                "dp_sgd is around a stage that is sharded, and takes the gradients of single "
                "examples, which are not divided among ranks. Leave fl.shard out."
            )
        for part in self.inner.stages():
            if part.slot is not None:
                raise ValueError(
                    f"{part.describe()} keeps memory, which dp_sgd would have for each example. "
                    f"Put it behind: fl.pipe(loss, fl.grad, fl.schemes.{self.describe()}, "
                    f"fl.{part.describe()}, ...)."
                )

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        if not state.context.differentiates:
            return self.inner(state, x)
        if state.skeleton.statistics:
            raise ValueError(
                "dp_sgd takes the gradient of each example alone, and BatchNorm normalizes an "
                f"example by others: {', '.join(state.skeleton.statistics)}. Use nn.GroupNorm or "
                "nn.LayerNorm there."
            )
        _check_examples(x)
        clip, noise = self.at(state, "clip", "noise")

        def one(example: Any) -> tuple[Tensors, Tensor, dict[str, Any]]:
            _, grads = self.inner(state, tree_map(lambda t: t[None], example))
            mean, counts = grads.mean.wide(), grads.weight > 0
            mean = mean.scale((clip / (mean.norm() + 1e-12)).clamp(max=1.0))
            metrics = {name: metric for name, metric in grads.metrics.items() if _adds(metric)}
            return mean.where(counts, mean.zeros()), counts, metrics

        clipped, counts, metrics = torch.func.vmap(one, randomness="different")(x)
        total = tree_map(_summed, clipped)
        examples = counts.sum()
        with randomness(state, "dp_sgd"):
            total = total.map_named(lambda g: g + noise * clip * torch.randn_like(g))
        mean = total.scale(1 / examples.clamp(min=1).to(torch.float64))
        finite = torch.ones_like(examples, dtype=torch.bool)
        return state, Grads(mean, examples, finite, tree_map(_summed, metrics))


def _summed(tensor: Tensor) -> Tensor:
    return tensor.sum(0)


def _adds(metric: Any) -> bool:
    """Whether metrics of this kind merge by adding their numbers."""
    return type(metric) in (Mean, Sum)


def _check_examples(batch: Any) -> None:
    leaves = tree_leaves(batch)
    tensors = all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves)
    if not leaves or not tensors or len({leaf.shape[0] for leaf in leaves}) > 1:
        raise ValueError(
            "dp_sgd takes a batch of tensors with one leading dimension, that of the examples; got "
            f"{', '.join(map(short, leaves)) or 'no tensor'}. The usual cause is a number or a "
            "text in the batch: leave out what is not an example's."
        )


@explained
def dp_sgd(clip: Any, noise: Any) -> Callable[[GradStage], DpSgd]:
    """Private gradients (DP-SGD): each example's is clipped, and noise is added to their sum.

    Abadi et al., 2016 (https://arxiv.org/abs/1607.00133, algorithm 1): with ``g_i`` the gradient of
    the loss of example ``i`` alone, ``(sum(g_i * min(1, clip / ||g_i||)) + noise * clip * normal) /
    examples``. Examples of weight zero do not count.

    Goes directly behind `fl.grad`; all examples are computed in one vmapped pass, which needs the
    memory of a gradient for each. Each has a dropout mask of its own. Not inside of
    `fl.accumulate`, which would add noise for each part. Metrics that are `fl.Mean` or `fl.Sum` are
    reported; others are left out. Cannot be sharded. Buffers stay as they are.

    What privacy a run has follows from `noise`, the share of examples in a batch and the number of
    steps, by an accountant (of Opacus, or ``dp_accounting``). Accountants mostly assume that
    each batch is drawn anew (Poisson sampling); `fl.Batches` shuffles epochs.

    Args:
        clip: The largest norm of an example's gradient: a number, tensor or schedule.
        noise: Standard deviation of the noise in the sum, in units of `clip`.

    Raises:
        ValueError: `inner` is sharded or keeps memory; or, at the call, the model has BatchNorm
            with running statistics, or the batch is not made of tensors with one leading dimension.

    >>> import torch, fnloop as fl
    >>> gradients = fl.pipe(lambda m, x: m(x).mean(), fl.grad, dp_sgd(clip=1.0, noise=0.0))
    >>> state = gradients.init(torch.nn.Linear(1, 1, bias=False))
    >>> _, grads = gradients(state, torch.tensor([[0.5], [100.0]]))  # which are the gradients
    >>> grads.mean["weight"], int(grads.weight)
    (tensor([[0.7500]]), 2)
    """
    return functools.partial(DpSgd, clip=clip, noise=noise)
