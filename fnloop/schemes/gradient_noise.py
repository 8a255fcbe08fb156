"""``noise_scale``: how noisy gradients are, and so how large a batch is worth its cost."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.stages.accumulate import micro_batches
from fnloop.stages.base import GradStage, Kind
from fnloop.stages.each_example import per_example, refuse_shared, summed, that_add
from fnloop.trees.nodes import static, tree
from fnloop.values.counts import as_count
from fnloop.values.grads import Grads
from fnloop.values.metrics import Metric
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class NoiseScale(Metric):
    """The ratio of two sums of estimates: of the trace of the covariance, and of ``|G|**2``.

    Each is unbiased, and their ratio is not: so they are added before it is taken.
    """

    stacks: ClassVar[bool] = True
    trace: Tensor
    square: Tensor

    def merge(self, other: Self) -> Self:
        return type(self)(self.trace + other.trace, self.square + other.square)

    def value(self) -> Tensor:
        return self.trace / self.square


@tree
class WithNoiseScale(GradStage):
    """The stage that `noise_scale` makes."""

    wraps: ClassVar[Kind | None] = "grad"
    label: ClassVar[str] = "noise_scale"
    repeats: ClassVar[bool] = True
    inner: Any
    k: int | None = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is None:
            refuse_shared(self.inner, "noise_scale")

    def __call__(self, state: State, x: Any) -> tuple[State, Grads]:
        if self.k is None and not state.context.differentiates:
            return self.inner(state, x)
        after, grads, squares, weights = (self._in_parts if self.k else self._each)(state, x)
        if not grads.mean:
            return after, grads
        found = estimated(squares, weights, grads.mean.norm().double() ** 2)
        return after, grads.replace(metrics={**grads.metrics, "noise_scale": found})

    def _in_parts(self, state: State, x: Any) -> tuple[State, Grads, Tensor, Tensor]:
        """The gradient of all micro-batches, and the squared norm and the weight of each."""
        assert self.k is not None
        after, parts = state, micro_batches(x, self.k)
        squares, weights = list[Tensor](), list[Tensor]()

        def gradients() -> Any:
            nonlocal after
            for i, part in enumerate(parts):
                after = after.within(micro=state.context.micro * len(parts) + i)
                after, grads = self.inner(after, part)
                if grads.mean:
                    squares.append(grads.mean.norm().double() ** 2)
                    weights.append(grads.weight.double())
                yield grads

        grads = Grads.fold(gradients())
        none = torch.zeros(0, dtype=torch.float64)
        square, weight = (torch.stack(each) if each else none for each in (squares, weights))
        return after.replace(context=state.context), grads, square, weight

    def _each(self, state: State, x: Any) -> tuple[State, Grads, Tensor, Tensor]:
        """As `_in_parts`, of single examples; buffers stay as they are."""

        def one(grads: Grads) -> tuple[Any, ...]:
            total = grads.mean.wide().scale(grads.weight.double())
            total = total.where(grads.weight > 0, total.zeros())
            square = grads.mean.norm().double() ** 2
            return total, square, grads.weight, that_add(grads.metrics)

        totals, squares, weights, metrics = per_example(self.inner, state, x, one, "noise_scale")
        total: Tensors = summed(totals)
        weight = weights.sum(0)
        divisor = torch.where(weight > 0, weight, torch.ones_like(weight)).double()
        finite = torch.ones_like(weight, dtype=torch.bool)
        grads = Grads(total.scale(1 / divisor), weight, finite, summed(metrics))
        return state, grads, squares, weights.double()


def estimated(squares: Tensor, weights: Tensor, square: Tensor) -> NoiseScale:
    """The estimates of one batch, of the norms of its parts and that of the whole.

    A part of the weight b has a squared norm of ``|G|**2 + trace / b`` in the mean, so the parts,
    weighted, have ``|G|**2 + trace * k / B``, and the whole ``|G|**2 + trace / B``.

    Args:
        squares: float64[k]; squared norms of the gradients of the parts.
        weights: float64[k]; their weights.
        square: float64[]; the squared norm of their weighted mean.

    Returns:
        Both zero where fewer than two parts have a weight.

    >>> parts = torch.tensor([[1.0, 2.0], [3.0, 0.0]]).double()  # whose mean is [2, 1]
    >>> found = estimated(parts.square().sum(1), torch.ones(2).double(), torch.tensor(5.0))
    >>> found.trace, found.square
    (tensor(4., dtype=torch.float64), tensor(3., dtype=torch.float64))
    """
    counts = weights > 0
    total, k = weights.sum(), counts.sum()
    squares = torch.where(counts, squares, torch.zeros_like(squares))
    trace = ((squares * weights).sum() - total * square) / (k - 1).clamp(min=1)
    own = square - trace / torch.where(k > 1, total, torch.ones_like(total))
    nothing = torch.zeros_like(trace)
    return NoiseScale(torch.where(k > 1, trace, nothing), torch.where(k > 1, own, nothing))


@explained
def noise_scale(k: int | None = None) -> Callable[[GradStage], WithNoiseScale]:
    """The gradient noise scale: the batch size up to which more examples pay.

    McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162): ``B_simple = trace(covariance) /
    |G|**2`` (equation 2.9), with the covariance of single examples' gradients and their mean ``G``,
    both estimated without bias from the norms of the gradients of a batch and of its parts
    (appendix A.1). Batches much smaller learn as much from each example, in more steps; much
    larger ones waste examples.

    Takes the place of ``fl.accumulate(k)``: the gradient is that of the whole batch, over `k`
    micro-batches, and the norms come along. Without `k`, single examples are the parts, in one
    vmapped pass, as in `fl.schemes.dp_sgd`: the best estimate from one batch, with the memory of a
    gradient for each example, not for BatchNorm, and not sharded.

    Reports ``"noise_scale"``, in examples (or in what the loss counts: tokens). Of one batch it is
    a ratio of two noisy numbers, and may be negative. It merges over steps by adding these, so take
    many together: ``fl.every(100, ...)``, or a validation's interval.

    Args:
        k: Number of micro-batches, at least 2; None for single examples.

    Raises:
        TypeError: `k` is not a whole number.
        ValueError: `k` is below 2; or, without `k`, as `fl.base.per_example`.

    >>> import fnloop as fl
    >>> loss = lambda model, x: (model.weight * x).mean()  # the gradient of an example is itself
    >>> gradients = fl.pipe(loss, fl.grad, noise_scale())
    >>> state = gradients.init(torch.nn.Linear(1, 1, bias=False))
    >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])  # variance 2.5, squared mean 9 - 0.5
    >>> print(f"{gradients(state, x)[1].metrics['noise_scale']:.3f}")
    0.294
    """
    parts = None if k is None else as_count(k, "noise_scale(k=...)", 2)
    return functools.partial(WithNoiseScale, k=parts)
