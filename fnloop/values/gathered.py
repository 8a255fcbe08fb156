"""``Gathering``: a model runs on parameters that are divided among ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Size, Tensor

from fnloop._torch.stand_in import StandIn
from fnloop._torch.tracing import opaque
from fnloop.distributed.gates import RankError, gate
from fnloop.trees.show import short
from fnloop.values.close_look import written_error
from fnloop.values.shards import Shards


class Gathering:
    """Parameters of which each rank has a piece, gathered where an operation uses them.

    Whole ones live as long as that operation. What autograd saves of them for the backward pass is
    not kept, but gathered again there. Their gradients are reduced into pieces at once, as the
    weighted means over ranks.

    All ranks have to use the same parameters in the same order.

    Args:
        layout: The parameters' layout.
        pieces: This rank's pieces by name.
        user: The function that uses them, for messages.

    Attributes:
        params: Stand-ins for the whole parameters, by name.
    """

    def __init__(self, layout: Shards, pieces: Mapping[str, Tensor], user: Any) -> None:
        self._layout, self._pieces, self._user = layout, pieces, user
        self.params: dict[str, Tensor] = {
            name: self._stand_in(name, shape)
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        }
        self._names = {id(stand_in): name for name, stand_in in self.params.items()}
        self._wholes: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._share: Tensor | None = None

    def _stand_in(self, name: str, shape: Size) -> StandIn:
        piece = self._pieces[name]
        if name in self._layout.pairs:
            shape, piece = shape[:-1], torch.view_as_complex(piece.detach().new_empty(1, 2))
        return StandIn.of(shape, piece, self)

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """A context manager for the forward and backward pass: no whole parameters are saved."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def result(self, result: Any) -> Any:
        """What the loss function returns, as it is."""
        return result

    def weigh(self, weight: Tensor) -> None:
        """Set this rank's weight in the means of the backward pass to come.

        Without it the gradients are parts of the means already.
        """
        self._agree("weigh", ())
        total = self._layout.mesh.sum(weight.double())
        self._share = weight.double() / torch.where(total > 0, total, 1)

    def _agree(self, what: str, names: tuple[str, ...]) -> None:
        """Wait until all ranks are about to do this, since they would exchange other things.

        Raises:
            RankError: One has failed, or is about to do something else.
        """
        about = f"{what} {', '.join(names) or 'what it has computed'}"
        if not opaque() and not gate(self._layout.mesh, about, repr((what, names)))[0]:
            raise RankError(
                "The ranks do not use the same parameters in the same order in the loss "
                f"{short(self._user)}: this one is about to {about}. With the "
                'plan "zero3" they have to, since each is gathered where it is used: what a model '
                'uses must not depend on the batch or the rank. The plan "zero2" has no such rule.'
            )

    def whole(self, names: tuple[str, ...], pieces: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The whole tensors as they are stored."""
        self._agree("gather", names)
        return self._selected(names).whole(pieces)

    def reduced(self, names: tuple[str, ...], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The pieces of the means over ranks."""
        self._agree("reduce", names)
        if self._share is not None:
            grads = [_weighed(grad, self._share) for grad in grads]
        return self._selected(names).scatter(grads)

    def _selected(self, names: tuple[str, ...]) -> Any:
        found = self._layout.select(names)
        assert found is not None
        return found[0]

    def values(self, stand_ins: Sequence[StandIn], autocast: torch.dtype | None) -> list[Tensor]:
        """The whole parameters, with pairs of numbers as complex ones."""
        names = tuple([self._names[id(stand_in)] for stand_in in stand_ins])
        stored: Any = _Whole.apply(self, names, *[self._pieces[name] for name in names])
        if autocast is not None:  # as the operation would, so that what it saves is known here
            stored = [t.to(autocast) if t.dtype is torch.float32 else t for t in stored]
        for name, tensor in zip(names, stored, strict=True):
            self._wholes[tensor.untyped_storage()] = name
        pairs = self._layout.pairs
        return [
            torch.view_as_complex(tensor) if name in pairs else tensor
            for name, tensor in zip(names, stored, strict=True)
        ]

    def written(self, stand_in: StandIn) -> RuntimeError:
        """The error for an operation that writes to a parameter."""
        return written_error(self._user, self._names[id(stand_in)])

    def owner(self, tensor: Tensor) -> str | None:
        """The name of the whole parameter that a tensor, or a view of it, is."""
        try:
            return self._wholes.get(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # a sparse tensor, say, has no storage
            return None

    def _pack(self, tensor: Tensor) -> Any:
        name = self.owner(tensor)
        if name is None:
            return tensor, tensor._version  # which autograd does not look at where there are hooks
        offset: Any = tensor.storage_offset()
        return _View(name, tensor.dtype, tensor.size(), tensor.stride(), offset)

    def _unpack(self, saved: Any) -> Tensor:
        if isinstance(saved, _View):
            (whole,) = self.whole((saved.name,), (self._pieces[saved.name].detach(),))
            as_real = saved.dtype.is_complex or whole.dtype is saved.dtype
            whole = whole.view(saved.dtype) if as_real else whole.to(saved.dtype)
            return whole.as_strided(saved.size, saved.stride, saved.offset)
        tensor, version = saved
        if tensor._version != version:
            raise RuntimeError(
                "One of the variables needed for gradient computation has been modified by an "
                f"inplace operation: a tensor of shape {list(tensor.shape)} is at version "
                f"{tensor._version}; expected version {version} instead."
            )
        return tensor


class _View(NamedTuple):
    """A view of a whole parameter."""

    name: str
    dtype: torch.dtype
    size: Size
    stride: tuple[int, ...]
    offset: int


class _Whole(torch.autograd.Function):
    """Pieces to whole tensors; and their gradients to pieces of the means over ranks."""

    @staticmethod
    def forward(ctx: Any, gathering: Gathering, names: tuple[str, ...], *pieces: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.gathering, ctx.names = gathering, names
        return gathering.whole(names, pieces)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        asked = ctx.needs_input_grad[2:]
        found = {
            name: grad
            for name, grad, needed in zip(ctx.names, grads, asked, strict=True)
            if needed and grad is not None
        }
        if found:
            names = tuple(found)
            pieces = ctx.gathering.reduced(names, list(found.values()))
            found = dict(zip(names, pieces, strict=True))
        return (None, None, *[found.get(name) for name in ctx.names])


def _weighed(grad: Tensor, share: Tensor) -> Tensor:
    """A gradient times a share; zero if the share is, even if the gradient is not finite."""
    if not opaque() and share.is_cpu and not share.item():
        return torch.zeros_like(grad)
    weighed = grad * share.to(grad.dtype)  # of two numbers the wider one would decide
    return weighed if share.is_cpu and not opaque() else weighed.where(share > 0, 0.0)
