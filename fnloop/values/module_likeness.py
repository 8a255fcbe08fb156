"""Whether two modules do the same, but for their parameters and buffers."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_FORWARD = ("_forward_pre_hooks", "_forward_hooks")  # each has another: which take kwargs
_HOOKS = (*_FORWARD, "_backward_pre_hooks", "_backward_hooks")
_OF_TORCH = frozenset(name for name, v in vars(nn.Module()).items() if isinstance(v, dict))
"""The dicts of each module: tensors and modules, hooks, and what else is not an attribute."""


def behave_alike(module: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one structure have equal attributes and hooks.

    Dicts are compared with their order, as a model may loop over one. Objects that do not say when
    they are equal are, if what they are copied by is. Tensors are equal if they are the same, and
    if they stand for those of a state, which have no values.

    >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> behave_alike(a, b)
    True
    >>> _ = b.register_forward_hook(lambda module, inputs, output: 2 * output)
    >>> behave_alike(a, b)
    False
    """
    return _Pair(module, other).alike()


class _Pair:
    def __init__(self, module: nn.Module, other: nn.Module) -> None:
        self._modules = list(zip(module.modules(), other.modules(), strict=True))
        self._partner = {id(a): b for a, b in self._modules}
        self._compared: dict[tuple[int, int], Any] = {}  # or being compared; kept for their ids

    def alike(self) -> bool:
        return all(self._same(_attributes(a), _attributes(b)) for a, b in self._modules)

    def _same(self, a: Any, b: Any) -> bool:
        if a is b or (id(a), id(b)) in self._compared:
            return True
        if type(a) is not type(b):
            return False
        if isinstance(a, Tensor):
            return a.is_meta and b.is_meta and (a.shape, a.dtype) == (b.shape, b.dtype)
        if isinstance(a, nn.Module) and id(a) in self._partner:
            return self._partner[id(a)] is b
        if isinstance(a, float):
            return repr(a) == repr(b)  # 0.0 and -0.0, nan
        self._compared[id(a), id(b)] = a, b
        if isinstance(a, Mapping):
            return list(a) == list(b) and all(map(self._same, a.values(), b.values()))
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(self._same, a, b))
        if isinstance(a, types.MethodType):
            return a.__func__ is b.__func__ and self._same(a.__self__, b.__self__)
        try:
            if type(a).__eq__ is object.__eq__ and not isinstance(a, _BY_IDENTITY):
                return self._same(_copied_by(a), _copied_by(b))
            return bool(a == b)
        except Exception:
            return False


_BY_IDENTITY = (types.FunctionType, types.BuiltinFunctionType, types.ModuleType, type)


def _copied_by(value: Any) -> Any:
    """What ``copy`` makes a copy of an object with: a function, arguments, attributes, items."""
    found = value.__reduce_ex__(2)
    if isinstance(found, str):  # a global
        return value
    made, items = found[:3], found[3:]
    return [*made, *[None if each is None else list(each) for each in items]]


def _attributes(module: nn.Module) -> dict[str, Any]:
    own = vars(module)
    attributes = {k: v for k, v in own.items() if k not in _OF_TORCH and k != "training"}
    hooks = [list(own[name].values()) for name in _HOOKS]
    kwargs = [[n in own[f"{name}_with_kwargs"] for n in own[name]] for name in _FORWARD]
    of_parameters = [vars(p) for p in own["_parameters"].values() if p is not None]
    return {**attributes, "hooks": [hooks, kwargs], "of parameters": of_parameters}
