"""``StandIn``: a tensor without values, for which others are put in wherever it is used."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import optree
import torch
import torch.nn.functional as F
from torch import Size, Tensor


class ValueSource(Protocol):
    """Where the values of stand-ins come from."""

    def values(
        self, stand_ins: Sequence[StandIn], autocast: torch.dtype | None
    ) -> Sequence[Tensor]:
        """The values of some of them; an operation asks once, for all that it uses.

        Args:
            stand_ins: Those.
            autocast: The dtype to which autocast converts float32 in that operation, if it does.
        """
        ...

    def written(self, stand_in: StandIn) -> Exception:
        """The error for an operation that writes to one of them."""
        ...

    def owner(self, tensor: Tensor) -> str | None:
        """The name of the stand-in whose values, or a view of them, a tensor is; None if none."""
        ...


class StandIn(Tensor):
    """A tensor that has shape and dtype. Each operation that uses it gets its values anew.

    It does not keep their source, which has its stand-ins: in a cycle, the pieces of a model's
    parameters would live until Python collects garbage.

    >>> class Ones:
    ...     def values(self, stand_ins, autocast):
    ...         return [torch.ones(2)]
    >>> ones = Ones()
    >>> w = StandIn.of(Size([2]), torch.zeros(()), ones)
    >>> w.shape, w + 1
    (torch.Size([2]), tensor([2., 2.]))
    """

    _source: weakref.ref[ValueSource]

    @classmethod
    def of(cls, shape: Size, like: Tensor, source: ValueSource) -> StandIn:
        """One of this shape, with the dtype and device of `like`."""
        new = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # pyright: ignore
            cls, shape, dtype=like.dtype, device=like.device, requires_grad=like.requires_grad
        )
        new._source = weakref.ref(source)
        return new

    @property
    def source(self) -> ValueSource:
        """Where its values come from.

        Raises:
            RuntimeError: It is gone, with the call of the loss function that it was made for.
        """
        source = self._source()
        if source is None:
            raise RuntimeError(
                "A parameter that is divided among ranks was used after the loss had returned. "
                "During the call, the model's parameters are stand-ins, which have values for that "
                "long only: what the model keeps of one is of no use later."
            )
        return source

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WITHOUT_VALUES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        leaves, structure = optree.tree_flatten((args, kwargs))  # pyright: ignore
        stand_ins = list({id(x): x for x in leaves if isinstance(x, StandIn)}.values())
        source = stand_ins[0].source
        if func in _WRITES:
            raise source.written(stand_ins[0])
        values = source.values(stand_ins, _cast(func, stand_ins[0]))
        versions = [value._version for value in values]
        found = {id(stand_in): value for stand_in, value in zip(stand_ins, values, strict=True)}
        given: Any = structure.unflatten([found.get(id(leaf), leaf) for leaf in leaves])
        result = func(*given[0], **given[1])
        for stand_in, value, version in zip(stand_ins, values, versions, strict=True):
            if value._version != version:  # what was written would be lost
                raise source.written(stand_in)
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(
            f"The operation {func} was called on a parameter that is divided among ranks, in a way "
            "that Python does not see, as compiled code does (TorchScript, torch.compile inside of "
            'the model). Shard the step with "zero2", which gathers all parameters before.'
        )


def _cast(func: Any, stand_in: StandIn) -> torch.dtype | None:
    with torch._C.DisableTorchFunctionSubclass():
        kind = stand_in.device.type
    if func not in _CAST or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


_CAST = {
    *[F.linear, torch.mm, torch.matmul, torch.bmm, torch.addmm, torch.baddbmm],
    *[Tensor.mm, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.bmm, Tensor.addmm],
    *[F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d],
}
"""Operations in which autocast uses half precision on each device; some of them."""

_WRITES = {Tensor.data.__set__, Tensor.grad.__set__}  # type: ignore[attr-defined]

_ATTRIBUTES = (
    "shape dtype device layout ndim requires_grad grad grad_fn is_leaf _version is_cpu is_cuda "
    "is_meta is_sparse is_quantized is_mkldnn itemsize nbytes _backward_hooks"
)

_METHODS = (
    "size stride dim ndimension numel nelement element_size is_floating_point is_complex "
    "is_contiguous is_signed get_device storage_offset untyped_storage __len__ __hash__"
)

_WITHOUT_VALUES = {
    *[getattr(Tensor, name).__get__ for name in _ATTRIBUTES.split()],
    *[getattr(Tensor, name) for name in _METHODS.split()],
    torch.is_floating_point,
    torch.is_complex,
    torch.numel,
}
