"""What is wrong with a class that was chosen for a flag, and with its arguments.

In all of these a place is where it was chosen: ``--model``, or ``c.yaml:2: model``.
"""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from typing import Any, get_args

from fnloop.cli.chosen import ARGUMENTS, PATH, Choices
from fnloop.cli.class_types import arguments_of, bases_of, given_by, is_below
from fnloop.cli.flag_types import kind_text
from fnloop.cli.messages import OWN, did_you_mean, shown
from fnloop.cli.subclasses import known_classes
from fnloop.cli.value_errors import wrong_value

_LISTED = 4
_WRONG_TYPE = r'Parser key "([\w.]+)":\s*Expected an? <class \'(\w+)\'>\. Got value: (.*?)\.? Got'


def no_class(choices: Choices, place: str, name: str, kind: Any) -> str:
    """Nothing goes by the name of a class, or more than one."""
    flag = _flag(place)
    if not name:
        return f"{place} needs the name of a class; {flag}.help lists those that there are."
    if call := re.match(r"([\w.]+)\((?:(\w+)=([\w.]+))?", name):
        argument = f"{call[2]} {call[3]}" if call[2] else "ARGUMENT VALUE"
        return (
            f"{place}: {name} is a call. A class is chosen by its name, and its arguments are "
            f"flags of their own: {flag} {call[1]} {flag}.{argument}"
        )
    if cause := _import_fault(name):
        return f"{place}: {name} cannot be imported: {cause}."
    paths = known_classes(kind).get(name, [])
    if len(paths) > 1:
        others = ", ".join(paths[1:_LISTED]) + (", ..." if len(paths) > _LISTED else "")
        return (
            f"{place}: {len(paths)} classes are called {name}. Did you mean {paths[0]}? The "
            f"others: {others}."
        )
    if name == "None":
        return f"{place}: there is no class 'None'. Nothing is written null: {flag} null"
    plain = [each for each in (kind, *get_args(kind)) if each in (int, float, bool)]
    either = f"{place} takes {kind_text(kind)}, and there" if plain else f"{place}: there"
    file = shown(choices.known.file)
    return (
        f"{either} is no class {name!r}.{_meant(choices, name, kind)} A class of {file} goes by "
        f"its name there, any other by its dotted path; {flag}.help lists those that there are."
    )


def unfit_class(place: str, path: str, made: Any, kind: Any) -> str | None:
    """A class or function gives no value of a flag's type; None if it may."""
    fault = f"{place} takes {kind_text(kind)}, and {_short(path)} is none"
    if not callable(made):
        return f"{fault}: it cannot be called."
    gives, bases = given_by(made), tuple(bases_of(kind))
    if gives is None and bases:
        return (
            f"{fault}: it does not say what it returns, as def f() -> {kind_text(bases[0])} does."
        )
    if inspect.isabstract(made):
        return f"{fault} that can be made: it is abstract."
    if not inspect.isclass(gives) or not bases or is_below(gives, bases) is not False:
        return None
    return f"{fault}." if gives is made else f"{fault}: it gives {kind_text(gives)}."


def no_argument(choices: Choices, place: str, made: Any, name: str) -> str:
    """A class or function has no argument of a name."""
    who, flag = getattr(made, "__qualname__", str(made)), _flag(place)
    if callable(choices.known.held(name)):
        return (
            f"{place}: {who} has no argument {name!r}. That class is chosen by {flag} {name}, or "
            f"in YAML by {PATH}: {name} and {ARGUMENTS}."
        )
    names = list(arguments_of(made) or ())
    hint = did_you_mean(name, names, repr)
    return f"{place}: {who} has no argument {name!r}.{hint} It has: {', '.join(names) or 'none'}."


def told_by_parser(place: str, what: str) -> str | None:
    """The parser's own words `what`, of an argument that a class needs or has not; else None."""
    named = re.search(r"class_path='([^']+)'", what)
    who = _short(named[1]) if named else "what was chosen"
    if match := re.search(r"arguments are required: (\w+(?:\.\w+)*)", what):
        return f"{place}: {who} needs its argument {match[1]!r}: {_flag(place)}.{match[1]} VALUE."
    if match := re.search(_WRONG_TYPE, what, re.DOTALL):
        return f"{_flag(place)}.{match[1]} takes {match[2]}, got {match[3]!r}."
    if match := re.search(r"Option '([\w.]+)' is not accepted", what):
        return f"{place}: {who} has no argument {match[1]!r}."
    return None


def no_choice(place: str, value: Mapping[str, Any]) -> str:
    """A mapping stands where a class is chosen, and chooses none."""
    return f"{place}: which class? It is chosen by {PATH} and {ARGUMENTS}, got {', '.join(value)}."


def no_choice_for(place: str, name: str) -> str:
    """An argument was given, and no class that it is for."""
    return (
        f"{place}: {name!r} is an argument of which class? {place} NAME chooses one; {place}.help "
        "lists those that there are."
    )


def wrong_keys(place: str, value: Mapping[str, Any]) -> str | None:
    """A mapping chooses a class, and has other keys than the two for it, or no arguments."""
    keys = (PATH, ARGUMENTS)
    if not any(difflib.get_close_matches(str(each), keys, cutoff=0.8) for each in value):
        return None
    if others := [str(each) for each in value if each not in keys]:
        meant = did_you_mean(others[0], keys)
        inside = "" if meant else f" An argument stands within {ARGUMENTS}: {{{others[0]}: ...}}."
        return f"{place}: a class has {PATH} and {ARGUMENTS}, got {others[0]!r}.{meant}{inside}"
    own, path = value.get(ARGUMENTS), value.get(PATH, "")
    if not isinstance(path, str):
        return f"{place}: {PATH} is the name of a class, got {path!r}."
    if own is not None and not isinstance(own, dict):
        return f"{place}: {ARGUMENTS} is a mapping, such as {{width: 16}}, got {own!r}."
    return None


def no_name(place: str, record: Any, value: Any) -> str:
    """A dataclass, which is not chosen, was given another value than its fields."""
    flag = _flag(place)
    own = " ".join(f"{flag}.{each} VALUE" for each in arguments_of(record) or ())
    return f"{wrong_value(place, record, value)} It is given by its fields: {own}"


def no_list(place: str, name: str) -> str:
    """A list of classes was given one name."""
    flag = _flag(place)
    return (
        f"{place} takes a list, got {name!r}: {flag} '[{name}]', or {flag}+ {name} to add to one."
    )


def _flag(place: str) -> str:
    """The flag of a place."""
    return f"--{place.rpartition(' ')[2].removeprefix('--')}"


def _short(path: str) -> str:
    return OWN.sub("", path)


def _import_fault(path: str) -> str | None:
    """Why a module that there is cannot be imported."""
    try:
        pkgutil.resolve_name(path)
    except ModuleNotFoundError as error:
        return None if not error.name or path.startswith(error.name) else str(error)
    except ImportError as error:
        return str(error)
    except (AttributeError, ValueError):
        pass
    return None


def _meant(choices: Choices, name: str, kind: Any) -> str:
    """What was probably meant by the name of a class."""
    above, _, last = name.rpartition(".")
    known = known_classes(kind)
    if above:
        holder = choices.known.held(above)
        own = [each for each in dir(holder) if callable(getattr(holder, each, None))]
        if holder is not None and (hint := did_you_mean(last, own, lambda n: f"{above}.{n}")):
            return hint
        return did_you_mean(last, known, lambda n: known[n][0])
    mine = choices.known.own(kind)
    return did_you_mean(name, [*mine, *known], lambda n: n if n in mine else known[n][0])
