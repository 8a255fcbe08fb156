"""Errors for wrong arguments that say which one was meant, and what it takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fnloop.names.arguments import checking
from fnloop.names.suggestions import no_keyword

F = TypeVar("F", bound=Callable[..., Any])


def explained(function: F, hints: Mapping[str, Any] | None = None) -> F:
    """Let a function refuse arguments that its annotations do not allow.

    Its error for an unknown keyword says which one was meant.

    Args:
        function: The function.
        hints: Its annotations, if they are resolved; see `checking`.

    >>> @explained
    ... def train(epochs=1):
    ...     return epochs
    >>> train(max_epochs=3)
    Traceback (most recent call last):
    ...
    TypeError: train got an unexpected keyword argument 'max_epochs'. Use epochs=.
    """
    check = checking(_name(function), function, hints)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        check(args, kwargs)
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:
                check_keywords(function, kwargs)  # the call itself failed, nothing inside it
            raise

    return call  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


class Explained:
    """A base class: the ``__init__`` of each class derived from it is `explained`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in cls.__dict__:
            cls.__init__ = explained(cls.__init__)


def check_keywords(call: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse keywords that `call`, a function or a class, does not take.

    Raises:
        TypeError: There is one.
    """
    parameters = inspect.signature(call).parameters.values()
    if any(p.kind is p.VAR_KEYWORD and p.annotation != "Never" for p in parameters):
        return
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in given:
        if name not in names:
            shown = [each for each in names if each not in ("inner", "self")]
            raise no_keyword(_name(call), name, shown) from None


def _name(call: Callable[..., Any]) -> str:
    """A function's name; for an ``__init__``, that of the class."""
    parts = call.__qualname__.split(".")
    return parts[-2] if parts[-1] == "__init__" and len(parts) > 1 else parts[-1]
