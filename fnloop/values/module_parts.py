"""What a module keeps besides its parameters and buffers: containers, tensors, generators."""

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from fnloop.values.host_random import GENERATORS

_DICTS = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
_LISTS = (list, collections.deque)
CONTAINERS = (*_DICTS, *_LISTS, set)
"""The types of containers that can be put back."""


class ModuleParts:
    """Finds everything that a module keeps.

    Attributes:
        owners: Each object whose contents can change, with its path: modules, other objects with
            attributes, and containers. The second list is of those of torch's own layers, and of
            hooks, which change rarely.
        places: Other places than ``_parameters`` and ``_buffers`` in which the module keeps one of
            its parameters or buffers, as (owner, key, name): a list of them, say.
        fixed: The same for places that cannot be assigned to, as (path, name).
        tensors: Other tensors, with their paths.
        arrays: NumPy arrays, with their paths.
        generators: Generators of random numbers, with their paths.
        references: Functions and weak references, with their paths. A copy of the module shares
            them with the original.
        iterators: Iterators, with their paths.

    Args:
        module: The module.
        own: Names of its parameters and buffers, by their ids.
        private: The ids of the objects that are the module's own. The others, such as classes or
            loggers, are not looked into.
    """

    def __init__(self, module: nn.Module, own: Mapping[int, str], private: Container[int]) -> None:
        self.owners: list[tuple[str, Any]] = []
        self.quiet_owners: list[tuple[str, Any]] = []
        self.places: list[tuple[Any, Any, str]] = []
        self.fixed: list[tuple[str, str]] = []
        self.tensors: list[tuple[str, Tensor]] = []
        self.arrays: list[tuple[str, np.ndarray]] = []
        self.generators: list[tuple[str, Any]] = []
        self.references: list[tuple[str, Any]] = []
        self.iterators: list[tuple[str, Any]] = []
        self._own, self._private = own, private
        modules = dict(module.named_modules())
        self._seen = {id(child) for child in modules.values()}
        for path, child in modules.items():
            own_layer = is_torchs(child)
            owners = self.quiet_owners if own_layer else self.owners
            owners.append((path, child))
            for key, value in vars(child).items():
                if key in ("_parameters", "_buffers") or key in assigned_by_torch(child):
                    continue
                if _is_recipe(value):
                    continue
                quiet = own_layer or (key in _OF_MODULES)
                self._visit(child, key, value, join(path, key), quiet)

    def _visit(self, owner: Any, key: Any, value: Any, path: str, quiet: bool) -> None:
        """Note a value that `owner` has under `key`, and what is in it."""
        waiting = [(owner, key, value, path)]
        while waiting:
            owner, key, value, path = waiting.pop()
            if id(value) in self._own:
                name = self._own[id(value)]
                if _can_be_assigned_to(owner):
                    self.places.append((owner, key, name))
                else:
                    self.fixed.append((path, name))
            elif isinstance(value, (types.FunctionType, weakref.ref)):
                self.references.append((path, value))
            elif isinstance(value, types.MethodType):
                self.references.append((path, value.__func__))
            elif id(value) not in self._seen and (
                id(value) in self._private or isinstance(value, tuple)
            ):
                self._seen.add(id(value))
                if isinstance(value, Tensor):
                    self.tensors.append((path, value))
                elif isinstance(value, np.ndarray):
                    self.arrays.append((path, value))
                elif isinstance(value, GENERATORS):
                    self.generators.append((path, value))
                elif isinstance(value, Iterator):
                    self.iterators.append((path, value))
                elif (inside := contents(value)) is not None:
                    if not isinstance(value, tuple):
                        (self.quiet_owners if quiet else self.owners).append((path, value))
                    waiting += [(value, k, v, _path(path, value, k)) for k, v in inside]


def _is_recipe(value: Any) -> bool:
    """Whether it says how a layer is to be quantized, which no forward reads.

    Its functions close over the layer that it was made for, to ask for its device.
    """
    kind = type(value)
    return kind.__name__ == "QConfig" and kind.__module__.startswith("torch.ao.")


def _can_be_assigned_to(owner: Any) -> bool:
    """Whether what the owner keeps can be replaced in `attributes_of` it."""
    if isinstance(owner, CONTAINERS):
        return not isinstance(owner, set)
    return hasattr(owner, "__dict__") and not isinstance(owner, functools.partial)


def contents(value: Any) -> Iterator[tuple[Any, Any]] | None:
    """What is in a container or an object, with keys; None if it is neither."""
    if type(value) in _DICTS:
        return iter(list(value.items()))
    if isinstance(value, tuple) or type(value) in _LISTS:
        return enumerate(list(value))
    if type(value) is set:
        return enumerate(value)
    if isinstance(value, functools.partial):
        return iter([("func", value.func), ("args", value.args), ("keywords", value.keywords)])
    attributes = getattr(value, "__dict__", None)
    if type(attributes) is dict:
        return iter(list(attributes.items()))
    return iter(slots_of(value).items()) if slot_names(type(value)) else None


def slots_of(value: Any) -> dict[str, Any]:
    """The attributes of an object whose class has ``__slots__``."""
    return {name: getattr(value, name) for name in slot_names(type(value)) if hasattr(value, name)}


def slot_names(kind: type) -> list[str]:
    """The attributes for which a Python class has ``__slots__``."""
    members = [(name, member) for base in kind.__mro__ for name, member in vars(base).items()]
    return [name for name, member in members if isinstance(member, types.MemberDescriptorType)]


def attributes_of(owner: Any) -> Any:
    """The mutable container behind an owner: itself, or the dict of its attributes."""
    return owner if isinstance(owner, CONTAINERS) else vars(owner)


def is_torchs(module: nn.Module) -> bool:
    """Whether it is one of torch's layers: these assign no attributes when they are called.

    But a hook before the call may do so, as that of ``torch.nn.utils.spectral_norm`` does.
    """
    return type(module).__module__.startswith("torch.nn.modules") and not module._forward_pre_hooks


def assigned_by_torch(module: nn.Module) -> set[str]:
    """Attributes that torch's own hooks assign before each call: the weight of a spectral norm.

    Those of `weight_norm` and of `prune` do so, too.
    """
    hooks = [h for h in module._forward_pre_hooks.values() if type(h).__module__[:6] == "torch."]
    return {getattr(hook, "name", getattr(hook, "_tensor_name", "")) for hook in hooks}


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _path(path: str, owner: Any, key: Any) -> str:
    if isinstance(owner, (*CONTAINERS, tuple)):
        return f"{path}[{key!r}]" if isinstance(key, (int, str)) else f"{path}[...]"
    return join(path, str(key))


_OF_MODULES = frozenset(vars(nn.Module()))
"""The attributes of every module."""
