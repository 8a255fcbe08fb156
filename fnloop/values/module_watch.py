"""Put back what a model changes outside of its parameters and buffers, and say so once."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fnloop._torch.hooks import hooks_made
from fnloop._torch.tracing import without_modes
from fnloop.values.module_parts import (
    CONTAINERS,
    ModuleParts,
    assigned_by_torch,
    attributes_of,
    join,
    slots_of,
)


class ModuleWatch:
    """Remembers what a module keeps, and restores it after a call.

    In every call it looks at the modules that are not torch's own, at the containers and objects
    that they keep, and at the version of the tensors that they keep. At a close look, and if a
    hook was registered, it looks at everything. What has changed there once is looked at in every
    call from then on.

    Args:
        parts: What the module keeps.
        who: Name of the model, for the warning.
    """

    def __init__(self, parts: ModuleParts, who: str) -> None:
        self._who = who
        self._told: set[str] = set()
        self._owners = parts.owners, parts.quiet_owners, parts.tensors, parts.arrays
        self._take()

    def _take(self) -> None:
        owners, quiet, tensors, arrays = self._owners
        self._often: list[_Kept] = [_kept(path, owner) for path, owner in owners]
        self._often += [_Values(path, tensor) for path, tensor in tensors]
        self._seldom: list[_Kept] = [_kept(path, owner) for path, owner in quiet]
        self._seldom += [_Array(path, array) for path, array in arrays]
        self._modules = [
            kept
            for kept in (*self._often, *self._seldom)
            if isinstance(kept, _Contents) and isinstance(kept.owner, nn.Module)
        ]

    def retake(self) -> None:
        """Remember everything as it is now, such as hooks that were added on purpose."""
        self._take()

    def put_aside(self) -> Callable[[], None]:
        """The same, until the function that it returns is called."""
        before = self.__dict__.copy()

        def bring_back() -> None:
            self.__dict__.update(before)
            self.mode_changed()  # modules may have been set to another meanwhile

        self._take()
        return bring_back

    def mode_changed(self) -> None:
        """Remember the modes of the modules as they are now."""
        for kept in self._modules:
            kept.before["training"] = kept.owner.training

    def changed(self) -> list[str]:
        """The names of everything that has changed; nothing is put back."""
        kept = [kept for kept in (*self._often, *self._seldom) if kept.changed(closely=True)]
        return [name for each in kept for name in each.names()]

    def put_back(self, closely: bool, hooks: int) -> list[str]:
        """Restore what a call has changed; return the names of it, if everything was looked at.

        Args:
            closely: Whether to look at everything.
            hooks: The number of hooks ever registered, before the call.
        """
        everything = closely or hooks_made() != hooks
        changed = [kept for kept in self._often if kept.changed(closely)]
        if not changed and not everything:
            return []  # as in almost all calls
        if everything:
            late = [kept for kept in self._seldom if kept.changed(closely)]
            if late:
                self._seldom = [kept for kept in self._seldom if kept not in late]
                self._often += late
                changed += late
        names = [name for kept in changed for name in kept.names()] if everything else []
        for kept in changed:
            kept.put_back()
        return names

    def tell(self, names: list[str]) -> None:
        """Warn of what has changed, once of each name."""
        new = [name for name in dict.fromkeys(names) if name not in self._told]
        if not new:
            return
        self._told.update(new)
        shown = ", ".join(new[:8]) + (f", and {len(new) - 8} more" if len(new) > 8 else "")
        warnings.warn(
            f"The model {self._who} changed something outside of its parameters and buffers when "
            f"it was called: {shown}. A state holds parameters and buffers only, so everything "
            "else is put back after each call, to what it was at init. Nothing is wrong if it is "
            "read in the same call only (an auxiliary loss, a cache). If it is to last (a counter, "
            'an average), make it a buffer: self.register_buffer("name", torch.zeros(...)).',
            stacklevel=2,
        )

    def tell_dropped(self, names: list[str]) -> None:
        """Warn of buffers that were written in evaluation, once of each name."""
        new = [name for name in names if f"the buffer {name}" not in self._told]
        if new:
            self._told.update(f"the buffer {name}" for name in new)
            warnings.warn(
                f"The model {self._who} wrote to its buffers in evaluation: {', '.join(new[:8])}. "
                "Each batch that is evaluated or predicted begins with the buffers of the state, "
                "whatever the batch before has left there, so that results depend neither on the "
                "order of batches nor on ranks. Nothing is wrong if it is read in the same call "
                "only (a cache). If it is to go on from batch to batch (a hidden state), give each "
                "sequence as one batch, or its memory with the batch, or call the model yourself: "
                "model = fl.to_module(state).eval().",
                stacklevel=2,
            )

    def tell_shared(self, names: list[str]) -> None:
        """Warn of changed attributes of classes, once of each name."""
        new = [name for name in names if name not in self._told]
        if new:
            self._told.update(new)
            warnings.warn(
                f"The model {self._who} changed attributes of its classes when it was called: "
                f"{', '.join(new)}. All models of a class share these, so fnloop neither keeps "
                "them in the state nor puts them back. Assign them in __init__ (self.history = "
                "[]); what is to last is a buffer.",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"_who": self._who, "_told": self._told, "_owners": self._owners}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self._take()


class _Contents:
    """The attributes of an object, or the contents of a container."""

    def __init__(self, path: str, owner: Any) -> None:
        self.path, self.owner = path, owner
        self._now: Any = attributes_of(owner)
        self._ordered = not isinstance(self._now, (dict, set))
        self.before: Any = list(self._now) if self._ordered else self._now.copy()

    def changed(self, closely: bool) -> bool:
        now, before = self._now, self.before
        if len(now) != len(before):
            return True
        if self._ordered:
            return not all(map(operator.is_, now, before))
        if isinstance(now, set):
            return now != before
        if not all(map(operator.is_, now.values(), before.values())):
            return True
        return now is self.owner and now.keys() != before.keys()

    def names(self) -> list[str]:
        now, before = self._now, self.before
        above, _, last = self.path.rpartition(".")
        if isinstance(self.owner, nn.Module):
            keys = [k for k in {**before, **now} if now.get(k, self) is not before.get(k, self)]
            return [join(self.path, key) for key in keys if not _is_torchs_own(self.owner, key)]
        if last == "_modules":
            return [join(above, k) for k in {**before, **now} if now.get(k) is not before.get(k)]
        if last.endswith("_hooks"):
            return [f"hooks of {above or 'the model'}"]
        return [self.path]

    def put_back(self) -> None:
        now = self._now
        now.clear()
        if self._ordered:
            now.extend(self.before)
        else:
            now.update(self.before)


class _Slots:
    """The attributes of an object whose class has ``__slots__``."""

    def __init__(self, path: str, owner: Any) -> None:
        self.path, self._owner, self._before = path, owner, slots_of(owner)

    def changed(self, closely: bool) -> bool:
        now, before = slots_of(self._owner), self._before
        return len(now) != len(before) or any(now[name] is not before.get(name) for name in now)

    def names(self) -> list[str]:
        return [self.path]

    def put_back(self) -> None:
        for name in slots_of(self._owner).keys() - self._before.keys():
            object.__delattr__(self._owner, name)
        for name, value in self._before.items():
            object.__setattr__(self._owner, name, value)


class _Values:
    """A tensor that is no parameter and no buffer."""

    def __init__(self, path: str, tensor: Tensor) -> None:
        self.path, self._now = path, tensor
        self._before = tensor.detach().clone()
        self._version = _version(tensor)
        self._behind = False  # whether it is written to behind the back of its version

    def changed(self, closely: bool) -> bool:
        if _version(self._now) != self._version:
            return True
        if closely or self._behind:
            self._behind = self._behind or not alike(self._now, self._before)
            return self._behind
        return False

    def names(self) -> list[str]:
        return [self.path]

    def put_back(self) -> None:
        with without_modes():
            self._now.detach().copy_(self._before)
        self._version = _version(self._now)


class _Array:
    """A NumPy array."""

    def __init__(self, path: str, array: np.ndarray) -> None:
        self.path, self._now, self._before = path, array, array.copy()

    def changed(self, closely: bool) -> bool:
        return not np.array_equal(self._now, self._before)

    def names(self) -> list[str]:
        return [self.path]

    def put_back(self) -> None:
        self._now[...] = self._before


_Kept = _Contents | _Slots | _Values | _Array


def _kept(path: str, owner: Any) -> _Kept:
    slotted = not isinstance(owner, CONTAINERS) and not hasattr(owner, "__dict__")
    return _Slots(path, owner) if slotted else _Contents(path, owner)


def _is_torchs_own(module: nn.Module, key: str) -> bool:
    """Whether torch itself assigns this attribute in a call, which is no news to the user."""
    private = type(module).__module__[:6] == "torch." and key[0] == "_"  # of recurrent layers
    return private or key in assigned_by_torch(module)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, and nan is nan."""
    if a.layout is not torch.strided or a.is_meta:
        return True
    with without_modes():
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
