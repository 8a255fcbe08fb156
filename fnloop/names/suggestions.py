"""What to use for a name that is not there."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

from fnloop.names.elsewhere import ELSEWHERE, KEYWORDS, simple

_FAMILIES = (
    "rules",
    "optim",
    "schedules",
    "schemes",
    "metrics",
    "data",
    "tuning",
    "store",
    "trackers",
    "lightning",
    "base",
    "errors",
    "testing",
)


def suggesting(module: str) -> Callable[[str], Any]:
    """A ``__getattr__`` for `module`: an error that says what to use instead."""

    def get(name: str) -> Any:
        raise no_attribute(module, name)

    return get


def no_attribute(module: str, name: str) -> AttributeError:
    """The error for an attribute that `module` does not have.

    >>> print(no_attribute("fnloop", "AdamW"))
    module 'fnloop' has no attribute 'AdamW'. Use fl.optim.adamw.
    """
    text = f"module {module!r} has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(text, name=name)
    hint = _hint(module.partition(".")[2], name)
    # Without `name`, which would make Python add a guess of its own.
    return AttributeError(f"{text}. {hint}" if hint else text)


def _hint(family: str, name: str) -> str:
    wanted = simple(name)
    known = _known(family)
    for place in known:
        if simple(place.rpartition(".")[2]) == wanted:
            return f"Use {place}."
    if wanted in ELSEWHERE:
        return ELSEWHERE[wanted]
    short = {place.rpartition(".")[2]: place for place in reversed(known)}
    close = difflib.get_close_matches(name.lower(), short, n=1, cutoff=0.75)
    return f"Did you mean {short[close[0]]}?" if close else ""


def _known(family: str) -> list[str]:
    """All public names: those of `family` first, then the top, then those of other families."""
    found: list[str] = []
    for place in dict.fromkeys((family, "", *_FAMILIES)):
        module = importlib.import_module(f"fnloop.{place}" if place else "fnloop")
        names: list[str] = getattr(module, "__all__", None) or _own(module)
        prefix = f"fl.{place}." if place else "fl."
        found += [prefix + name for name in names if not name.startswith("_")]
    return found


def _own(module: Any) -> list[str]:
    """The names of a package that are no modules."""
    kind = type(module)
    return [name for name, value in vars(module).items() if not isinstance(value, kind)]


def no_keyword(who: str, unknown: str, names: list[str]) -> TypeError:
    """The error for a keyword argument that a function does not take.

    Args:
        who: The function, as users write it.
        unknown: The keyword.
        names: The keywords that it takes.

    >>> print(no_keyword("adamw", "learning_rate", ["lr", "betas"]))
    adamw got an unexpected keyword argument 'learning_rate'. Use lr=.
    """
    text = f"{who} got an unexpected keyword argument {unknown!r}."
    wanted = simple(unknown)
    same = [name for name in names if simple(name) == wanted]
    same += [name for name in KEYWORDS.get(wanted, "").split() if name in names]
    if same:
        return TypeError(f"{text} Use {same[0]}=.")
    if wanted in ELSEWHERE:
        return TypeError(f"{text} {ELSEWHERE[wanted]}")
    close = difflib.get_close_matches(unknown.lower(), names, n=1)
    hint = f" Did you mean {close[0]}=?" if close else ""
    return TypeError(f"{text}{hint} It takes {', '.join(names) or 'none'}.")
