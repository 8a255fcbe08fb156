"""Refuse wrong arguments by what the annotations of a function say."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from fnloop.names.elsewhere import PRECISIONS


class Wanted(NamedTuple):
    """What an argument may be; as ``Annotated[float, Wanted(...)]``, in words of its own.

    Attributes:
        text: For messages: ``"a number above 0"``.
        fits: Whether a value is that.
        fix: A sentence for messages that says how to get one.
    """

    text: str
    fits: Callable[[Any], bool]
    fix: str = ""


def bounded(
    least: float = -math.inf,
    most: float | None = None,
    above: bool = False,
    below: bool = False,
    tensors: bool = True,
) -> Wanted:
    """A number, or a tensor, whose value is not looked at; never nan.

    Args:
        least: The lower bound.
        most: The upper bound; None for any finite number.
        above: Whether the lower bound itself is refused.
        below: Whether the upper bound itself is refused.
        tensors: Whether it may be a tensor.

    >>> bounded(0, 1, below=True).text
    'a number from 0 to below 1'
    """

    def fits(value: Any) -> bool:
        if _is_tensor(value):
            return tensors
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        number = float(value)
        if not least <= number <= (sys.float_info.max if most is None else most):
            return False
        return not ((above and number == least) or (below and number == most))

    if most is not None and most < math.inf:
        text = f"{'above ' if above else ''}{least:g} to {'below ' if below else ''}{most:g}"
        return Wanted(f"a number from {text}", fits)
    bound = f" {'above' if above else 'of at least'} {least:g}" if least > -math.inf else ""
    return Wanted(f"a number{bound}", fits)


def whole(least: int) -> Wanted:
    """A whole number of at least `least`.

    >>> whole(1).text
    'a whole number of at least 1'
    """

    def fits(value: Any) -> bool:
        try:
            return not isinstance(value, bool) and operator.index(value) >= least
        except TypeError:
            return False

    return Wanted(f"a whole number of at least {least}", fits)


def _is_tensor(value: Any) -> bool:
    """Whether it is torch's, which this layer does not import."""
    return hasattr(value, "detach") and hasattr(value, "dtype")


Check = Callable[[tuple[Any, ...], Mapping[str, Any]], None]


def checking(
    who: str, function: Callable[..., Any], hints: Mapping[str, Any] | None = None
) -> Check:
    """A function of the arguments of a call that refuses those that annotations do not allow.

    Strings, bools, literals, paths, mappings, sequences, fnloop's own classes, and what `Wanted`
    says are checked. Plain numbers are left to the function, which knows their bounds, and so are
    functions, and each annotation that has something else in it.

    Args:
        who: The function, for messages.
        function: The function.
        hints: Its annotations, if they are resolved.

    Raises (the function that is returned):
        TypeError: One is of a wrong type.
        ValueError: One is of a right type, and out of range, or none of the known words.
    """

    @functools.cache  # at the first call: annotations may name what is defined later
    def known() -> tuple[list[str], dict[str, _Parameter]]:
        found = _parameters(function, _hints(function) if hints is None else hints)
        return [name for name, each in found.items() if each.by_place], found

    def check(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        by_place, parameters = known()
        for name, value in (*zip(by_place, args, strict=False), *kwargs.items()):
            parameter = parameters.get(name)
            if parameter is None or parameter.wanted is None or value is parameter.default:
                continue
            if not parameter.wanted.fits(value):
                raise _wrong(f"{who}({name}=...)", name, value, parameter)

    return check


class _Parameter(NamedTuple):
    by_place: bool
    default: Any
    wanted: Wanted | None
    choices: tuple[Any, ...]


def _parameters(function: Callable[..., Any], hints: Mapping[str, Any]) -> dict[str, _Parameter]:
    """The parameters of a function by name, in order."""
    found: dict[str, _Parameter] = {}
    for name, each in inspect.signature(function).parameters.items():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        hint, by_place = hints.get(name, Any), each.kind is not each.KEYWORD_ONLY
        choices = [choice for part in _alternatives(hint) for choice in _choices(part)]
        found[name] = _Parameter(by_place, each.default, wanted(hint), tuple(choices))
    return found


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, but for those that only type checkers can resolve."""
    scope: dict[str, Any] = getattr(inspect.unwrap(function), "__globals__", {})
    found: dict[str, Any] = {}
    for name, hint in inspect.get_annotations(function).items():
        with contextlib.suppress(NameError):
            found[name] = eval(hint, scope) if isinstance(hint, str) else hint
    return found


def wanted(hint: Any) -> Wanted | None:
    """What an annotation lets through; None if it is anything, or not known here.

    >>> wanted(str | None).text
    'a string or None'
    >>> wanted(Literal["skip", "rewind"]).text
    '"skip" or "rewind"'
    """
    parts = [_one(part) for part in _alternatives(hint)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if len(known) == 1:
        return known[0]
    texts = [part.text for part in known]
    text = " or ".join([", ".join(texts[:-1]), texts[-1]])
    fix = next((part.fix for part in known if part.fix), "")
    return Wanted(text, lambda value: any([part.fits(value) for part in known]), fix)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _one(hint: Any) -> Wanted | None:
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, Wanted):
            return note
    if hint in (None, type(None)):
        return Wanted("None", lambda value: value is None)
    if choices := _choices(hint):
        words = [f'"{choice}"' for choice in choices]
        text = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
        return Wanted(text, lambda value: isinstance(value, str) and value in choices)
    kind = typing.get_origin(hint) or hint
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if not isinstance(kind, type) or kind.__module__.partition(".")[0] not in ("fnloop", "torch"):
        return None
    if getattr(kind, "_is_protocol", False):
        names = [name for name in vars(kind) if not name.startswith("_")]
        fits = functools.partial(_has_all, names)
        return Wanted(f"{_an(kind.__name__)} with {', '.join(names)}", fits)
    text, fix = _OWN.get(kind.__name__, (_an(kind.__name__), ""))
    return Wanted(text, lambda value: isinstance(value, kind), fix)


def _is_sequence(value: Any) -> bool:
    listed = isinstance(value, collections.abc.Iterable) or hasattr(value, "__getitem__")
    return listed and not isinstance(value, (str, bytes, type))


def _has_all(names: list[str], value: Any) -> bool:
    return not isinstance(value, type) and all([hasattr(value, name) for name in names])


_MAPPING = Wanted("a dict", lambda value: isinstance(value, Mapping))
_SEQUENCE = Wanted("a list", _is_sequence)
_PATH = Wanted("a path", lambda value: isinstance(value, os.PathLike) or hasattr(value, "joinpath"))
_SIMPLE: dict[Any, Wanted] = {
    str: Wanted("a string", lambda value: isinstance(value, str)),
    bool: Wanted("True or False", lambda value: type(value).__name__ in ("bool", "bool_")),
    collections.abc.Mapping: _MAPPING,
    collections.abc.Sequence: _SEQUENCE,
    collections.abc.Iterable: _SEQUENCE,
    tuple: Wanted("a tuple", _is_sequence),
    os.PathLike: _PATH,
    pathlib.Path: _PATH,
    typing.TextIO: Wanted("an open file", functools.partial(_has_all, ["write"])),
}
_OWN = {
    "State": ("a state", "step.init(model) makes one."),
    "Optimizer": (
        "an optimizer such as fl.optim.adamw(1e-3)",
        "Wrap a torch.optim class: fl.optim.from_torch(torch.optim.AdamW, lr=1e-3).",
    ),
    "GradStage": ("a gradient stage", "Such as fl.grad(loss)."),
    "StepStage": ("a training step", "Such as fl.pipe(loss, fl.grad, fl.update(optimizer))."),
    "Mesh": ("a mesh", "fl.mesh() makes one."),
    "validate": ("a validation", "Such as fl.validate(loss, val_data)."),
    "Tracker": ("a tracker", 'Such as fl.trackers.JSONL("runs/a.jsonl").'),
}
"""Texts and fixes for fnloop's own classes by name: those are in layers above this one."""


def _wrong(what: str, name: str, value: Any, parameter: _Parameter) -> Exception:
    """The error for a wrong argument."""
    asked, default, choices = parameter.wanted, parameter.default, parameter.choices
    assert asked is not None
    text = f"{what} takes {asked.text}, got {_shown(value)}."
    number = int if "whole number" in asked.text else (int, float)
    counts = isinstance(value, number) and not isinstance(value, bool)
    same_kind = "number" in asked.text and counts
    error = ValueError if same_kind or (choices and isinstance(value, str)) else TypeError
    elsewhere = PRECISIONS.get(str(value))
    meant = [elsewhere] if elsewhere in choices else []
    if close := meant or difflib.get_close_matches(str(value), map(str, choices), n=1):
        return error(f'{text} Did you mean "{close[0]}"?')
    if isinstance(value, type) and value.__module__.startswith("fnloop."):
        return error(f"{text} Write {value.__name__}(...), which makes an instance of it.")
    if isinstance(value, str) and "number" in asked.text and _reads_as_number(value):
        return error(f"{text} Write {value}, without quotation marks.")
    usual = f"Usual: {name}={default!r}." if isinstance(default, (str, int, float)) else ""
    fix = usual or asked.fix if isinstance(value, (str, int, float)) else asked.fix or usual
    return error(f"{text} {fix}".rstrip())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return f"{value!r} ({type(value).__name__})" if value is not None else "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return _an(type(value).__name__)


def _an(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
