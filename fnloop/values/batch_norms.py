"""``BatchNorms``: batch norms that normalize by the examples of all ranks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from fnloop._torch import parallel
from fnloop._torch.read_only import memory_of
from fnloop._torch.tracing import opaque
from fnloop.distributed.gates import RankError, gate
from fnloop.distributed.mesh import Mesh

T = TypeVar("T")


class BatchNorms:
    """Synchronizes the batch norms of a loss: their statistics are those of all ranks' examples.

    It takes the place of `F.batch_norm`, by which the layers of torch and of other libraries
    compute; so models stay as they are. The ranks exchange statistics in the forward pass, and sums
    of gradients in the backward pass: what an example of one rank does to the statistics, it does
    to the losses of all.

    All ranks have to compute the same batch norms in the same order.

    Args:
        mesh: The ranks.

    Attributes:
        names: The buffers that the last loss has written statistics to. They are those of all
            ranks, also where this one had no example.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.names: tuple[str, ...] = ()
        self._counts = True
        self._written: list[Tensor] = []

    @contextlib.contextmanager
    def running(self, model: Any, counts: bool) -> Generator[None]:
        """A context manager for the forward and backward pass of `model`.

        Args:
            model: The model.
            counts: Whether this rank's examples count in the statistics.
        """
        self._counts, self._written = counts, []
        with _without_own(model), _Mode(self):
            yield

    def note(self, buffers: Mapping[str, Tensor]) -> None:
        """Set `names`, of the model's buffers as they are after it has run."""
        written = {memory_of(tensor) for tensor in self._written}
        self.names = tuple([name for name, b in buffers.items() if memory_of(b) in written])
        self._written = []

    def share(self, weight: Tensor) -> Tensor:
        """This rank's share in the mean loss of all ranks, to start the backward pass with.

        The gradients of statistics come from all ranks, so they have to be weighed before.
        """
        self._agree("weigh the loss")
        total = self.mesh.sum(weight.double())
        return weight.double() / torch.where(total > 0, total, 1)

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """`F.batch_norm` over all ranks; by itself where it is given the statistics."""
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, training, momentum, eps
            )
        input, weight, bias = self.whole((input, weight, bias))
        affine = tuple([tensor for tensor in (weight, bias) if tensor is not None])
        if has_torch_function(affine):  # they are divided among the ranks
            return handle_torch_function(
                self.batch_norm, affine,
                input, running_mean, running_var, weight, bias, training, momentum, eps,
            )  # fmt: skip
        with torch.no_grad():
            found = self._statistics(input)
            if running_mean is not None:
                self._move(running_mean, found.mean, momentum)
            if running_var is not None:
                unbiased = found.var * found.total / (found.total - 1).clamp(min=1)
                self._move(running_var, unbiased, momentum)
            scale = torch.rsqrt(found.var + eps)
        return _Normalized.apply(self, input, weight, bias, found.mean, scale, found.total)  # type: ignore[no-any-return]

    def whole(self, tensors: T) -> T:
        """The same whole, if they are shared with other ranks of one model."""
        return parallel.whole(tensors) if self.mesh.tensor > 1 else tensors

    def own_count(self, input: Tensor) -> int:
        """How many values of each channel of this rank count."""
        return input.numel() // max(1, input.shape[1]) if self._counts else 0

    def _statistics(self, input: Tensor) -> _Statistics:
        """The mean and variance of each channel, and the count, over all ranks."""
        channels, count = input.shape[1], self.own_count(input)
        counts = self._agree(f"normalize {channels} channels", count)
        if counts is not None and sum(counts) == self.mesh.tensor:
            raise ValueError(
                "Expected more than 1 value per channel when training, got the input size "
                f"{list(input.shape)} on one rank, and none on the others."
            )
        own = input.new_zeros(2 * channels, dtype=torch.float64)
        if count:
            var, mean = torch.var_mean(_wide(input), _all_but_channels(input), correction=0)
            own = torch.cat([mean, var]).double()
        rows = self.mesh.gather(torch.cat([own, own.new_full((1,), count)]))
        means, variances, weights = rows.split([channels, channels, 1], dim=1)
        total = weights.sum()
        shares = weights / total.clamp(min=1)
        mean = (means * shares).sum(0)
        var = ((variances + (means - mean).square()) * shares).sum(0)
        return _Statistics(mean, var, total)

    def _move(self, running: Tensor, new: Tensor, momentum: float) -> None:
        running.copy_(torch.lerp(running.double(), new, momentum))
        self._written.append(running)

    def summed(self, sums: Tensor) -> Tensor:
        """The sums of all ranks in the backward pass."""
        self._agree(f"sum the gradients of {sums.shape[0] // 2} channels")
        return self.mesh.sum(sums)

    def _agree(self, what: str, count: int = 0) -> list[int] | None:
        """Wait until all ranks are about to do this; return the counts of all.

        Raises:
            RankError: One has failed, or is about to do something else.
        """
        if opaque():
            return None
        same, counts = gate(self.mesh.everyone, f"batch norms ({what})", what, count)
        if not same:
            raise RankError(
                "The ranks do not compute the same batch norms in the same order: this one is "
                f"about to {what}, and another is not. With sync_batchnorm=True they have to, "
                "since each is one of all ranks: what a model computes must not depend on the "
                "rank. Without it each rank normalizes by its own examples."
            )
        return counts


class _Statistics(NamedTuple):
    """float64[channels]: means, and variances that are not corrected; float64[]: the count."""

    mean: Tensor
    var: Tensor
    total: Tensor


class _Mode(TorchFunctionMode):
    """`F.batch_norm` is that of `norms`."""

    def __init__(self, norms: BatchNorms) -> None:
        super().__init__()
        self._norms = norms

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._norms.batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


class _Normalized(torch.autograd.Function):
    """``(x - mean) * scale * weight + bias``, where mean and scale depend on all ranks' `x`."""

    @staticmethod
    def forward(
        ctx: Any,
        norms: BatchNorms,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        total: Tensor,
    ) -> Tensor:
        ctx.norms, ctx.count = norms, norms.own_count(x)
        ctx.save_for_backward(x, weight, mean, scale, total)
        factor = scale if weight is None else scale * weight
        offset = -mean * factor if bias is None else bias - mean * factor
        wide = _wide(x)
        return torch.addcmul(_along(offset, wide), wide, _along(factor, wide)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, scale, total = ctx.saved_tensors
        wide, grad = _wide(x), _wide(ctx.norms.whole(grads[0]))
        centered = wide - _along(mean, wide)
        dims = _all_but_channels(x)
        own = grad.sum(dims).double(), (grad * centered).sum(dims).double() * scale
        of_x = None
        if ctx.needs_input_grad[1]:
            factor = scale if weight is None else scale * weight
            of_x = grad * _along(factor, wide)
            sums = torch.cat(own)
            sums = ctx.norms.summed(sums if ctx.count else torch.zeros_like(sums)) / total
            if ctx.count:
                plain, slope = sums.chunk(2)
                of_x = of_x - _along(plain * factor, wide)
                of_x = torch.addcmul(of_x, centered, _along(-slope * scale * factor, wide))
            of_x = of_x.to(x.dtype)
        of_weight = own[1] if ctx.needs_input_grad[2] else None
        of_bias = own[0] if ctx.needs_input_grad[3] else None
        return None, of_x, of_weight, of_bias, None, None, None


def _wide(tensor: Tensor) -> Tensor:
    """At least in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _along(channels: Tensor, x: Tensor) -> Tensor:
    """One value for each channel of `x`, in its dtype."""
    return channels.to(x.dtype).view(-1, *[1] * (x.ndim - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


@contextlib.contextmanager
def _without_own(model: Any) -> Generator[None]:
    """`nn.SyncBatchNorm` is `nn.BatchNorm` here: its own exchange knows no weights, and no CPU."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    layers = [layer for layer in modules if isinstance(layer, nn.SyncBatchNorm)]
    for layer in layers:
        layer.__dict__["forward"] = functools.partial(_BatchNorm.forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def refuse_own_synchronization(model: Any) -> None:
    """Refuse `nn.SyncBatchNorm` where `BatchNorms` is not asked for.

    Raises:
        ValueError: The module has one.
    """
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    for name, layer in modules:
        if isinstance(layer, nn.SyncBatchNorm):
            raise ValueError(
                f"The layer {name!r} is an nn.SyncBatchNorm, which would exchange statistics by "
                "itself, without the ranks' weights: its gradients are wrong where ranks have "
                "unequally many examples. Write fl.shard(step, mesh, sync_batchnorm=True), which "
                "synchronizes it, and nn.BatchNorm too."
            )
