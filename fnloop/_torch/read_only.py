"""Refuse writes to the memory of given tensors, before they happen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fnloop._torch.tracing import unwrapped


class ReadOnly(TorchDispatchMode):
    """A dispatch mode in which no operation writes to the memory of some tensors.

    It sees what version counters do not: writes through ``.data``, ``detach()`` and other views.
    It raises before the operation runs, so that nothing has been written.

    Args:
        tensors: Tensors by name.
        refusal: Makes the error from the name of the tensor.
        owner: The name of what another tensor is part of, to refuse writes to it; None if it may
            be written to, as by default all may.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first step would import the compiler, which takes a second

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        refusal: Callable[[str], Exception],
        owner: Callable[[Tensor], str | None] = lambda tensor: None,
    ) -> None:
        super().__init__()
        self._refusal = refusal
        self._owner = owner
        self._owners: dict[int, list[tuple[int, str]]] = {}  # packed tensors share one storage
        self._views: dict[int | None, tuple[str, Tensor]] = {}  # of such others, by address
        for name, tensor in tensors.items():
            address, start = memory_of(tensor)
            if address is not None:
                self._owners.setdefault(address, []).append((start, name))
        for spans in self._owners.values():
            spans.sort()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            address, start = memory_of(tensor)
            if address in self._owners:
                spans = self._owners[address]
                before = [name for first, name in spans if first <= start]
                raise self._refusal(before[-1] if before else spans[0][1])
            if address in self._views:
                raise self._refusal(self._views[address][0])
            if (name := self._owner(unwrapped(tensor))) is not None:
                raise self._refusal(name)
        made = func(*args, **kwargs)
        # The conjugate of a number is a view, too.
        viewed = _is_view(func) and isinstance(args[0], Tensor)
        if viewed and (name := self._owner(unwrapped(args[0]))) is not None:
            # While a graph is recorded, a view of a tensor with values is made without them, and
            # shares no memory with it.
            for view in tree_leaves(made):
                if self._owner(unwrapped(view)) is None:
                    self._views[memory_of(view)[0]] = name, view
        return made


def memory_of(tensor: Tensor) -> tuple[int | None, int]:
    """The address of a tensor's storage object, and the tensor's place in it in bytes.

    The address is None for tensors without a storage of their own, such as sparse ones.
    """
    tensor = unwrapped(tensor)
    try:
        address = tensor.untyped_storage()._cdata
        return address, int(tensor.storage_offset()) * tensor.element_size()
    except (NotImplementedError, RuntimeError):
        return None, 0


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for place, name in _writes(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        values: Iterable[Any] = value if isinstance(value, (list, tuple)) else (value,)
        yield from (v for v in values if isinstance(v, Tensor))


@functools.lru_cache(maxsize=4096)
def _is_view(func: Any) -> bool:
    """Whether an operation returns a view of its first argument, and writes nothing."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or not schema.arguments:
        return False
    return schema.arguments[0].alias_info is not None


@functools.lru_cache(maxsize=4096)
def _writes(func: Any) -> tuple[tuple[int, str], ...]:
    """The arguments that an operation writes to: position and name."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return ()
    return tuple(
        (i, argument.name)
        for i, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
