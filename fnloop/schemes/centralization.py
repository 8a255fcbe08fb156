"""``centralize``: gradient centralization."""

from __future__ import annotations

from torch import Tensor

from fnloop.optim.base import Memory, Step, Transform
from fnloop.trees.nodes import tree
from fnloop.values.tensors import Tensors


@tree
class centralize(Transform):
    """Gradient centralization: the gradient of each output's weights gets a mean of zero.

    Yong et al., 2020 (https://arxiv.org/abs/2004.01461), equation 1: from the gradient of a weight
    of two or more dimensions, its mean over all but the first is subtracted; biases and scales stay
    as they are. Goes before the optimizer in `fl.optim.chain`. (Linear and convolution layers of
    torch have their outputs in the first dimension.) `fl.optim.masked` restricts it to some
    parameters.

    Args:
        name: Prefix of its hyperparameters.

    >>> import torch, fnloop as fl
    >>> grads = fl.Tensors({"w": torch.tensor([[1.0, 3.0], [0.0, 4.0]]), "b": torch.ones(2)})
    >>> dict(centralize().update(grads, {}, grads, step=0)[0])
    {'w': tensor([[-1.,  1.],
            [-2.,  2.]]), 'b': tensor([1., 1.])}
    """

    name: str = "centralize"

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        return grads.wide().map_named(_centered), memory


def _centered(g: Tensor) -> Tensor:
    return g if g.ndim < 2 else g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)
