"""Select parameters by a function or by name patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from torch import Tensor, nn

from fnloop.trees.nodes import is_tree
from fnloop.trees.show import short
from fnloop.values.parameter_attributes import described
from fnloop.values.tensors import Tensors

Where: TypeAlias = Callable[[str, Tensor], bool] | tuple[str, ...]


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` is the name, or a module that contains it; ``*`` matches any text.

    >>> [matches("head.0.bias", pattern) for pattern in ("head", "*.bias", "hea", "head.0.bias")]
    [True, True, False, True]
    """
    if "*" not in pattern:
        return name == pattern or name.startswith(pattern + ".")
    # Not fnmatch: torch.compile warns about its cache.
    first, *middle, last = pattern.split("*")
    if not name.startswith(first) or not name.endswith(last):
        return False
    rest = name[len(first) :]
    for piece in middle:
        if piece not in rest:
            return False
        rest = rest[rest.index(piece) + len(piece) :]
    return len(rest) >= len(last)


def as_where(where: Callable[[str, Tensor], bool] | Iterable[str]) -> Where:
    """Return a function unchanged, and patterns as a tuple.

    Raises:
        TypeError: It is neither.
    """
    given = (where,) if isinstance(where, str) else where
    if isinstance(given, Iterable) and not isinstance(given, type):
        given = tuple(given)
        if all([isinstance(pattern, str) for pattern in given]):
            return given
    elif is_function(given):
        return given
    raise TypeError(
        "Parameters are chosen (where=, over=, only=, frozen=) by their names, names of modules, "
        "globs such as '*.bias', or a function (name, parameter) -> bool; got "
        f"{short(where)}."
    )


def is_function(value: object) -> bool:
    """Whether it is called as it is: no class, model or stage."""
    return callable(value) and not isinstance(value, (type, nn.Module)) and not is_tree(value)


def chosen(where: Where, params: Tensors) -> list[str]:
    """The names of the selected parameters, in order."""
    if callable(where):
        return [name for name, p in described(params) if where(name, p)]
    return [name for name in params if any(matches(name, pattern) for pattern in where)]


def check_patterns(
    owner: str, patterns: Iterable[str], params: Tensors, trained: bool = False
) -> None:
    """Check that every pattern matches a parameter.

    Args:
        owner: Whose patterns they are, for the message.
        patterns: The patterns.
        params: The parameters.
        trained: Whether there may be others, which are not trained.

    Raises:
        ValueError: One matches none; the message lists the parameters.
    """
    those = ", of those that are trained" if trained else ""
    for pattern in patterns:
        if not any(matches(name, pattern) for name in params):
            raise ValueError(
                f"{owner}: {pattern!r} fits no parameter. A pattern is a parameter's name, the "
                f"name of a module, or a glob such as '*.bias'. There are{those}: {_some(params)}."
            )


def _some(params: Tensors) -> str:
    names = list(params)
    return ", ".join(names[:20]) + (f", and {len(names) - 20} more" if len(names) > 20 else "")
