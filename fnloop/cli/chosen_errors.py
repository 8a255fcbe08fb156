"""What is wrong with a class that was chosen for a flag, in plainer words than the parser's."""

from __future__ import annotations

import inspect
import pkgutil
import re
from typing import Any

from fnloop.cli.chosen import OWN
from fnloop.cli.messages import did_you_mean

_WRONG_TYPE = r'Parser key "([\w.]+)":\s*Expected an? <class \'(\w+)\'>\. Got value: (.*?)\.? Got'


def wrong_choice(place: str, kind: str, what: str) -> str | None:
    """The error for a flag whose value is a class; None if it is about something else.

    Args:
        place: Where it was chosen, such as ``--model``.
        kind: The flag's type, as its annotation.
        what: The parser's own words.
    """
    named = re.search(r"class_path='([^']+)'", what)
    path = named[1] if named else ""
    if match := re.search(r"Option '([\w.]+)' is not accepted", what):
        return f"{place}: {_short(path)} has no argument {match[1]!r}.{_hint(match[1], path)}"
    if match := re.search(_WRONG_TYPE, what, re.DOTALL):
        return f"{place}.{match[1]} takes {match[2]}, got {match[3]!r}."
    if match := re.search(r"arguments are required: (\w+(?:\.\w+)*)", what):
        return f"{place}: {_short(path)} needs its argument {match[1]!r}: {place}.{match[1]} VALUE."
    if match := re.search(r"Expected a dot import path string: (\S+)", what):
        return _no_class(place, match[1])
    if match := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", what):
        return f"{place} takes {kind}, and {_short(match[1])} is none."
    if match := re.search(r"(?:No module named|unresolved|has no attribute) '?([\w.]+)'?", what):
        given = re.search(r"value: ([\w.]+)", what)
        return _no_class(place, path or (given[1] if given else match[1]))
    return None


def _no_class(place: str, name: str) -> str:
    return (
        f"{place}: there is no class {_short(name)!r}. A class of the recipe's file goes by its "
        "name there, any other by its dotted path, such as torch.nn.Linear."
    )


def _short(path: str) -> str:
    return OWN.sub("", path)


def _hint(wrong: str, path: str) -> str:
    try:
        found: Any = pkgutil.resolve_name(path)
        names = [name for name in inspect.signature(found).parameters if name != "self"]
    except (ImportError, AttributeError, ValueError, TypeError):
        return ""
    return f"{did_you_mean(wrong, names, repr)} It has: {', '.join(names) or 'none'}."
