"""``per_example``: the gradients of single examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnloop.stages.base import GradStage
from fnloop.stages.unsharded import refuse_sharded
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.metrics import Mean, Sum
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


def per_example(
    stage: GradStage,
    state: State,
    batch: Any,
    then: Callable[[Grads], Any] | None = None,
    who: str = "per_example",
) -> Any:
    """What a gradient stage gives for each example alone, in one vmapped pass.

    For stages that look at single examples: clipping (`fl.schemes.dp_sgd`), the noise of gradients
    (`fl.schemes.noise_scale`), influence, hard examples. Each example has a dropout mask of its
    own. Needs the memory of a gradient for each example, unless `then` makes less of it.

    Args:
        stage: A gradient stage without memory, such as the field ``inner`` of a stage around one.
        state: The state. Buffers that the model changes are dropped.
        batch: Tensors with one leading dimension, that of the examples.
        then: Called with the `fl.Grads` of one example, inside the vmap; what it returns, a tree of
            tensors, is stacked. By default that is the `fl.Grads`, with a leading dimension.
        who: Whose errors they are.

    Raises:
        ValueError: `stage` is sharded or keeps memory; or the model has BatchNorm with running
            statistics; or the batch is not made of tensors with one leading dimension.

    >>> import fnloop as fl
    >>> gradients = fl.grad(lambda model, x: model(x).square().mean())
    >>> state = gradients.init(torch.nn.Linear(1, 1, bias=False))
    >>> state, x = state.replace(params={"weight": torch.ones(1, 1)}), torch.tensor([[1.0], [3.0]])
    >>> per_example(gradients, state, x).mean["weight"].flatten()
    tensor([ 2., 18.])
    >>> per_example(gradients, state, x, lambda grads: grads.mean.norm())
    tensor([ 2., 18.])
    """
    refuse_shared(stage, who)
    if state.skeleton.statistics:
        raise ValueError(
            f"{who} takes the gradient of each example alone, and BatchNorm normalizes an "
            f"example by others: {', '.join(state.skeleton.statistics)}. Use nn.GroupNorm or "
            "nn.LayerNorm there."
        )
    _check_examples(batch, who)
    # One by one: a leading dimension fits no other layout, and what is packed is copied, for each.
    state = state.replace(params=Tensors(dict(state.params.items())))

    def one(example: Any) -> Any:
        _, grads = stage(state, tree_map(lambda t: t[None], example))
        return grads if then is None else then(grads)

    return torch.func.vmap(one, randomness="different")(batch)


def refuse_shared(stage: GradStage, who: str) -> None:
    """Check that single examples have a gradient of this stage.

    Raises:
        ValueError: It is sharded, or keeps memory.
    """
    refuse_sharded(
        stage, who, "takes the gradients of single examples, which are not divided among ranks"
    )
    for part in stage.stages():
        if part.slot is not None:
            raise ValueError(
                f"{part.describe()} keeps memory, which {who} would have for each example. "
                f"Put it behind what calls {who}: fl.pipe(loss, fl.grad, ..., "
                f"fl.{part.describe()}, ...)."
            )


def that_add(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics that merge by adding their numbers, as can be done for all examples at once."""
    return {name: metric for name, metric in metrics.items() if type(metric) in (Mean, Sum)}


def summed(stacked: Any) -> Any:
    """The sum over the examples, of every leaf."""
    return tree_map(lambda tensor: tensor.sum(0), stacked)


def _check_examples(batch: Any, who: str) -> None:
    leaves = tree_leaves(batch)
    tensors = all(isinstance(leaf, Tensor) and leaf.ndim for leaf in leaves)
    if not leaves or not tensors or len({leaf.shape[0] for leaf in leaves}) > 1:
        raise ValueError(
            f"{who} takes a batch of tensors with one leading dimension, that of the examples; got "
            f"{', '.join(map(short, leaves)) or 'no tensor'}. The usual cause is a number or a "
            "text in the batch: leave out what is not an example's."
        )
