"""Attributes that a model has set on its parameters, for functions that choose by them."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Generator, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

from fnloop.values.reached import MOST, inside
from fnloop.values.tensors import Tensors

Attributes: TypeAlias = Mapping[str, Mapping[str, Any]]
"""By the parameter's name; parameters without any are left out."""


class _Local(threading.local):
    known: Attributes = MappingProxyType({})


_here = _Local()
_NOTHING = contextlib.nullcontext()


def copied_attributes(parameter: Tensor) -> dict[str, Any]:
    """Copies of what a model has set on a parameter.

    What holds a tensor or a module is left out, as its copy would be another than the model's; and
    so is what cannot be copied.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> w.decays, w.partner = {"when": "never"}, torch.ones(2)
    >>> copied_attributes(w)
    {'decays': {'when': 'never'}}
    """
    found: dict[str, Any] = {}
    for key, value in vars(parameter).items():
        if not _leads_to_tensors(value):
            with contextlib.suppress(Exception):
                found[key] = copy.deepcopy(value)
    return found


def _leads_to_tensors(value: Any) -> bool:
    seen, waiting = set[int](), [value]
    while waiting and len(seen) < MOST:
        each = waiting.pop()
        if isinstance(each, (Tensor, nn.Module)):
            return True
        if id(each) not in seen and not isinstance(each, (type, ModuleType)):
            seen.add(id(each))
            waiting += inside(each)
    return bool(waiting)


def attributes_on(params: Mapping[str, Tensor]) -> Attributes:
    """The attributes that have been set on parameters."""
    found = {name: {**vars(p)} for name, p in params.items()}
    for own in found.values():
        own.pop("_is_param", None)  # torch's own
    return {name: own for name, own in found.items() if own}


def put_attributes(named: Mapping[str, Tensor], attributes: Attributes) -> None:
    """Set the attributes of parameters on tensors of the same names."""
    for name, own in attributes.items():
        vars(named[name]).update(own)


def knowing(attributes: Attributes) -> contextlib.AbstractContextManager[Any]:
    """A context manager: the parameters of `described` have these attributes."""
    return _knowing(attributes) if attributes or _here.known else _NOTHING


@contextlib.contextmanager
def _knowing(attributes: Attributes) -> Generator[None]:
    before, _here.known = _here.known, attributes
    try:
        yield
    finally:
        _here.known = before


def described(params: Tensors) -> Iterator[tuple[str, Tensor]]:
    """Names, each with a tensor of the parameter's shape and dtype that has its attributes.

    >>> import torch
    >>> params = Tensors({"a": torch.ones(2), "b": torch.ones(1)})
    >>> with knowing({"a": {"_no_weight_decay": True}}):
    ...     [(name, hasattr(p, "_no_weight_decay")) for name, p in described(params)]
    [('a', True), ('b', False)]
    """
    for name, p in params.outlines():
        if name in _here.known:
            vars(p).update(_here.known[name])
        yield name, p
