"""``gradnorm``: weights of several losses that balance their gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.optim.patterns import Where, as_where, check_patterns, chosen
from fnloop.schedules.ranges import NonNegative
from fnloop.schemes.several_losses import Several, as_parts_of, filled, losses_of
from fnloop.stages.base import Folding, GradStage
from fnloop.trees.nodes import static, tree
from fnloop.values.choice import select
from fnloop.values.grads import Grads
from fnloop.values.looking import look
from fnloop.values.metrics import Last
from fnloop.values.parameter_attributes import knowing
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class GradNorm(Several):
    """The stage that `gradnorm` makes.

    Attributes:
        over: Which parameters the norms are of; None for those that all losses reach.
    """

    label: ClassVar[str] = "gradnorm"
    alpha: Any = 1.5
    lr: Any = 0.025
    over: Where | None = static(default=None)
    name: str = "gradnorm"

    def init_state(self, state: State) -> dict[str, dict[str, Tensor]]:
        one = torch.ones((), dtype=torch.float64, device=state.step.device)
        return {
            "weight": {name: one.clone() for name in self.names},
            "first": {name: one * torch.inf for name in self.names},  # there was none yet
        }

    def folded(self, fold: Folding, state: State, x: Any) -> tuple[State, Grads]:
        memory = state[self.name]
        weights = torch.stack([memory["weight"][name] for name in self.names])
        after, every = self.gradients(fold, state, x)
        losses = torch.stack(losses_of(every))
        means = filled([grads.mean for grads in every], state.params)
        scaled = [mean.scale(w) for mean, w in zip(means, weights.unbind(), strict=True)]
        mean = functools.reduce(Tensors.add, scaled) if means[0] else means[0]
        grads = self.as_one(every, mean, (weights * losses).sum())
        reports = {
            f"{self.name}.{name}": Last(w)
            for name, w in zip(self.names, weights.unbind(), strict=True)
        }
        grads = grads.replace(metrics={**grads.metrics, **reports})
        if not mean:  # the loss alone was asked for
            return after, grads
        names = self._measured(state, every)
        norms = torch.stack([mean.select(names).norm().double() for mean in means])
        first = torch.stack([memory["first"][name] for name in self.names])
        first = torch.where(first.isinf(), losses, first)
        alpha, lr = self.at(state, "alpha", "lr")
        new = balanced(weights, norms, losses / first, alpha, lr)
        counts = torch.stack([(each.weight > 0) & each.finite for each in every]).all()
        good = look(counts & norms.isfinite().all() & new.isfinite().all())
        moved = {
            "weight": dict(zip(self.names, new.unbind(), strict=True)),
            "first": dict(zip(self.names, first.unbind(), strict=True)),
        }
        return after.put(self.name, select(good, moved, memory)), grads

    def _measured(self, state: State, every: Sequence[Grads]) -> list[str]:
        """The names of the parameters that the norms are of."""
        if self.over is None:
            found = [name for name in state.params if all(name in grads.mean for grads in every)]
        else:
            if not callable(self.over):
                check_patterns("gradnorm(over=)", self.over, state.params)
            reached = {name for grads in every for name in grads.mean}
            with knowing(state.skeleton.attributes):
                found = [name for name in chosen(self.over, state.params) if name in reached]
        if not found:
            raise ValueError(
                "gradnorm compares the norms of gradients of parameters that its losses share, and "
                f"there are none: {', '.join(self.names)} reach others each. It balances losses of "
                "one network; for several networks add them, by fl.schemes.several."
            )
        return found


def balanced(weights: Tensor, norms: Tensor, progress: Tensor, alpha: Any, lr: Any) -> Tensor:
    """The weights after a step down the gradient of ``sum(abs(weights * norms - targets))``.

    Args:
        weights: float64[n].
        norms: float64[n]; of the gradients, without weights.
        progress: float64[n]; each loss as a share of what it was at first.
        alpha: Exponent of the relative progress in the targets.
        lr: Size of the step.

    Returns:
        float64[n], not negative, whose sum is n.

    >>> ones = torch.ones(2, dtype=torch.float64)
    >>> balanced(ones, torch.tensor([1.0, 3.0]).double(), ones, 1.5, 0.1)
    tensor([1.2222, 0.7778], dtype=torch.float64)
    """
    sizes = weights * norms
    targets = sizes.mean() * (progress / progress.mean()) ** alpha
    new = (weights - lr * torch.sign(sizes - targets) * norms).clamp(min=1e-6)
    return new * (len(weights) / new.sum())


@explained
def gradnorm(
    *,
    alpha: NonNegative = 1.5,
    lr: NonNegative = 0.025,
    over: str | Iterable[str] | Callable[[str, Tensor], bool] | None = None,
    name: str = "gradnorm",
    **parts: Callable[..., Any] | GradStage,
) -> GradNorm:
    """GradNorm: weights of several losses, so that all of them train at a similar rate.

    Chen et al., 2018 (https://arxiv.org/abs/1711.02257, algorithm 1). With ``n_i`` the norm of the
    gradient of loss ``i`` and ``w_i`` its weight, each step moves the weights by `lr` down the
    gradient of ``sum(abs(w_i * n_i - mean(w * n) * r_i**alpha))``, the targets taken as constants;
    then they are scaled so that their sum is the number of losses. ``r_i`` is how far the loss has
    come, ``loss / first loss``, relative to the mean of all: what lags behind gets more.

    The first stage of a pipeline, in place of a loss and `fl.grad`: ``fl.pipe(gradnorm(depth=loss,
    normals=other), fl.update(optimizer))``. The weights and the first losses are
    ``state["gradnorm"]``; a batch that is skipped moves none. With `fl.accumulate` directly behind
    it, they move once for all micro-batches. Losses are positive. Cannot be sharded, as it keeps
    memory. Otherwise like `fl.schemes.several`: ``"loss"`` is the weighted sum, and
    ``"gradnorm.depth"`` the weight of `depth`.

    Args:
        alpha: How much more is given to what lags behind; 0 makes all norms equal. A number, tensor
            or schedule. Chen et al. take 1.5, and 0.12 where the losses are alike.
        lr: Of the weights: a number, tensor or schedule. It multiplies the norms.
        over: Patterns of names, or a function ``(name, parameter) -> bool``: the parameters that
            norms are of, for Chen et al. the last layer that all losses share. Default all that
            all share.
        name: Name of the slot.
        **parts: Losses or gradient stages without memory, by name.

    Raises:
        TypeError: A part is neither, or there is none.
        ValueError: A part keeps memory; or, at the call, a pattern of `over` fits no parameter, or
            the losses share none.

    >>> import fnloop as fl
    >>> step = fl.pipe(
    ...     gradnorm(
    ...         lr=1e-3,
    ...         small=lambda model, x: model.weight.square().sum() + 1,
    ...         large=lambda model, x: 9 * (model.weight - 2).square().sum() + 1,
    ...     ),
    ...     fl.update(fl.optim.sgd(1e-3)),
    ... )
    >>> state = step.init(torch.nn.Linear(1, 1, bias=False))
    >>> state = state.replace(params={"weight": torch.ones(1, 1)})  # gradients of 2 and -18
    >>> for _ in range(200):
    ...     state, metrics = step(state, torch.ones(1))
    >>> print(f"{metrics['gradnorm.small']:.1f}, {metrics['gradnorm.large']:.1f}")
    1.8, 0.2
    """
    chosen_ones = None if over is None else as_where(over)
    return GradNorm(as_parts_of("gradnorm", parts), tuple(parts), alpha, lr, chosen_ones, name)
