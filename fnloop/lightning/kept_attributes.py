"""What a module keeps on itself besides tensors, at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from fnloop.lightning.metric_objects import is_metric


def attributes_kept(module: nn.Module) -> dict[str, Any]:
    """The plain attributes of the user's modules: containers by their lengths, others by their ids.

    Two of these, from before and after a call, differ in what the call has changed.

    >>> class Counts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.seen = []
    >>> attributes_kept(Counts())
    {'seen': 0}
    """
    return {
        name: len(value) if isinstance(value, _CONTAINERS) else id(value)
        for path, child in _own_modules(module)
        for name, value in _plain(path, child)
    }


def emptied(module: nn.Module, before: Mapping[str, int]) -> set[str]:
    """The attributes that are 0, None or empty, and another object than `before`, by `objects_in`.

    >>> class Counts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.seen, self.count = [], 1
    >>> counts = Counts()
    >>> before = objects_in(counts)
    >>> counts.seen, counts.count = [], 2
    >>> emptied(counts, before)
    {'seen'}
    """
    return {
        name
        for path, child in _own_modules(module)
        for name, value in _plain(path, child)
        if id(value) != before.get(name) and (value is None or _is_empty(value))
    }


def objects_in(module: nn.Module) -> dict[str, int]:
    """The ids of the plain attributes of the user's modules."""
    found = [pair for path, child in _own_modules(module) for pair in _plain(path, child)]
    return {name: id(value) for name, value in found}


def settings_kept(module: nn.Module, modes: bool = True) -> dict[str, Any]:
    """What a module is set to: which parameters require gradients, its modes, torch's own modules.

    Args:
        module: The module.
        modes: Whether to look at training and evaluation modes.

    >>> settings_kept(nn.Dropout(0.5))
    {'training': True, 'p': 0.5, 'inplace': False}
    """
    found = {f"{n}.requires_grad": p.requires_grad for n, p in module.named_parameters()}
    for path, child in module.named_modules():
        if is_metric(child):
            continue
        if modes:
            found[_joined(path, "training")] = child.training
        if _is_torchs(child):
            found |= {name: v for name, v in _plain(path, child) if isinstance(v, _NUMBERS)}
    return found


def changed(
    before: Mapping[str, Any], now: Mapping[str, Any], first: Mapping[str, Any] | None = None
) -> list[str]:
    """The names of what is new or different, and not as at `first`, to which it may be put back.

    >>> changed({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    ['b', 'c']
    >>> changed({"a": 1, "b": 2}, {"a": 0, "b": 3}, first={"a": 0, "b": 0})
    ['b']
    """
    starts = [before] if first is None else [before, first]
    return [n for n, value in now.items() if all([s.get(n, now) != value for s in starts])]


class Written:
    """Looks closely whether a module's attributes or settings are written to from now on."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._settings, self._contents = settings_kept(module), _contents(module)

    def any(self) -> bool:
        """Whether one is: also private ones, and the items of containers."""
        pairs = zip_longest(self._contents, _contents(self._module))
        same = all([one is other or (type(one) is int and one == other) for one, other in pairs])
        return not same or settings_kept(self._module) != self._settings


def _contents(module: nn.Module) -> list[Any]:
    """All that a module keeps, as objects to compare by identity, and versions of tensors."""
    found = list[Any]()
    for child in module.modules():
        for name, value in vars(child).items():
            found += [name, value]
            if isinstance(value, _CONTAINERS):
                found += [*value, *(value.values() if isinstance(value, dict) else ())]
            elif isinstance(value, Tensor):
                found.append(value._version)
    return found


_CONTAINERS = (list, dict, set)
_NUMBERS = (bool, int, float, str, type(None))


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.", "torchmetrics"))


def _own_modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The user's modules, by path."""
    found = module.named_modules()
    return [
        (path, child) for path, child in found if not _is_torchs(child) and not is_metric(child)
    ]


def _is_empty(value: Any) -> bool:
    return not value if isinstance(value, (*_CONTAINERS, int, float)) else False


def _plain(path: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "training":
            yield _joined(path, name), value


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
