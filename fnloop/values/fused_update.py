"""``FusedUpdate``: what a fused kernel makes of parameters and memory, on copies or in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fnloop._torch.fused import Kernel
from fnloop.values.writes import Write

if TYPE_CHECKING:
    from fnloop.values.tensors import Tensors

_LAYOUT = attrgetter("layout")


class FusedUpdate:
    """An optimizer's update by a fused kernel, which has not run yet.

    Args:
        kernel: The kernel.
        old: The parameters, and the parts of the memory that it changes.
        remember: Makes the optimizer's new memory of the new parts.
    """

    __slots__ = ("_kernel", "_old", "_remember")

    def __init__(
        self, kernel: Kernel, old: Sequence[Tensors], remember: Callable[..., Any]
    ) -> None:
        self._kernel, self._old, self._remember = kernel, old, remember

    def on_copies(self) -> tuple[Tensors, Any]:
        """The new parameters and the new memory, as new tensors."""
        return self._made(self._kernel.on_copies())

    def may_write(self, free: Set[int]) -> bool:
        """Whether it can be made in place, by one call of torch.

        Args:
            free: The ``id`` of each `Tensors` that may be overwritten.
        """
        layouts = list(map(_LAYOUT, self._old))
        alike = layouts.count(layouts[0]) == len(layouts)
        return self._kernel.at_once and alike and free >= set(map(id, self._old))

    def in_place(self) -> tuple[Tensors, Any]:
        """The new parameters and the new memory over the old ones, once `call` has been called."""
        return self._made(self._kernel.given)

    @property
    def call(self) -> Write:
        """The call that writes the new values over the old ones."""
        return self._kernel.on(self._kernel.given)

    def _made(self, groups: Any) -> tuple[Tensors, Any]:
        params, *parts = map(self._old[0].made, groups)
        for part in (params, *parts):
            part.owned = True
        return params, self._remember(*parts)
