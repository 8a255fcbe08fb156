"""Flags whose values are classes or functions, chosen by name, with arguments of their own."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from fnloop.cli import yaml_dialect
from fnloop.cli.class_names import ClassNames, found_at
from fnloop.cli.class_types import (
    PLAIN,
    arguments_of,
    is_chosen,
    items_of,
    record_of,
    values_of,
)
from fnloop.cli.config import Config
from fnloop.cli.flag_types import types_of
from fnloop.cli.messages import OWN

PATH, ARGUMENTS = "class_path", "init_args"


class Choices:
    """The flags of a recipe for which a class is chosen.

    Args:
        function: The function ``recipe``.
        file: Its file.

    Attributes:
        names: Of those flags.
        kinds: The types of all flags.
        known: What names mean.
    """

    def __init__(self, function: Callable[..., Any], file: pathlib.Path) -> None:
        self.kinds, self.known = types_of(function), ClassNames(function, file)
        self.names = [name for name, kind in self.kinds.items() if is_chosen(kind)]
        flags = inspect.signature(function).parameters
        self._defaults = {name: _name_of(flag.default) for name, flag in flags.items()}
        # What is chosen, by the path of flags that it is chosen for; the last one in a list.
        self._made: dict[tuple[str, ...], Any] = {}
        for name in self.names:
            path = self.class_in(name, flags[name].default)
            self._choose((name,), path)

    def settle(
        self, parser: ArgumentParser, configs: Sequence[Config], arguments: Sequence[str]
    ) -> list[str]:
        """All arguments for the parser: those of the configurations, as text, then the others.

        A class that is chosen later takes nothing over from another one before it, in the recipe's
        default or in a configuration: they may have arguments of one name that mean different
        things.
        """
        entries = [self._whole_names(config.values) for config in configs]
        tokens = self._whole(arguments)
        for name in self.names:
            if record_of(self.kinds[name]) is not None:
                continue
            chosen = [_class_in(entry.get(name)) for entry in entries] + list(_given(name, tokens))
            last = next((each for each in reversed(chosen) if each is not None), None)
            if last is None:
                continue
            for entry in entries:
                if _differ(_class_in(entry.get(name)), last):
                    del entry[name]
            if _differ(self._defaults[name], last):
                parser.set_defaults({name: None})
        texts = [yaml_dialect.dump(entry) for entry in entries if entry]
        return [*[token for text in texts for token in ("--config", text)], *tokens]

    def shown(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values with names as the recipe's file has them."""
        return {n: self._own(v) if n in self.names else v for n, v in plain.items()}

    def class_in(self, name: str, value: Any) -> str | None:
        """The path of the class that a value chooses for a flag; None if it chooses none."""
        if name not in self.names or value is None or value is inspect.Parameter.empty:
            return None
        written = _class_in(value)
        if written is None:
            if isinstance(value, PLAIN[:-2]):
                return None
            made = value if hasattr(value, "__qualname__") else type(value)
            return f"{made.__module__}.{made.__qualname__}"
        return self.known.path(written, self.kinds[name])

    def made(self, place: Sequence[str]) -> Any:
        """The class or function that is chosen at a path of flags, ``("model", "head")``; or the
        dataclass that is there without a choice; None if it is unknown.
        """
        return self._made.get(tuple(place)) or record_of(self.kind(place))

    def kind(self, place: Sequence[str]) -> Any:
        """The type of the value at a path of flags; `Any` if it is unknown."""
        *above, last = place
        if not above:
            return self.kinds.get(last, Any)
        made = self.made(above)
        return (arguments_of(made) or {}).get(last, Any) if made else values_of(self.kind(above))

    def _choose(self, place: tuple[str, ...], path: str | None) -> None:
        made = found_at(path) if path is not None else None
        if made is not None and made is not self._made.get(place):
            self._made[place] = made

    def _whole_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            n: self._found(v, self.kinds[n], (n,)) if n in self.names else v
            for n, v in values.items()
        }

    def _whole(self, arguments: Sequence[str]) -> list[str]:
        """The arguments, with whole paths for the names of classes.

        Arguments of a class that stand before it, in place of the default, follow it.
        """
        groups = list(_groups(arguments))
        for name in self.names:
            groups = _class_first(groups, name)
        return [token for group in groups for token in self._whole_group(group)]

    def _whole_group(self, group: Sequence[str]) -> list[str]:
        option, equals, value = group[0].partition("=")
        place = place_of(option)
        if not option.startswith("--") or place[0] not in self.names:
            return list(group)
        kind = self.kind(place)
        if equals:
            return [f"{option}={self._text(value, kind, place)}", *group[1:]]
        return [option, *[self._text(text, kind, place) for text in group[1:]]]

    def _text(self, text: str, kind: Any, place: tuple[str, ...]) -> str:
        value = yaml_dialect.load_flag(text)
        found = self._found(value, kind, place)
        if found == value:
            return text
        return found if isinstance(found, str) else yaml_dialect.dump(found)

    def _found(self, value: Any, kind: Any, place: tuple[str, ...]) -> Any:
        """A value with whole paths for the names that the recipe's file knows."""
        if isinstance(value, str) and is_chosen(kind):
            self._choose(place, self.known.path(value, kind))
            return self.known.whole(value)
        if isinstance(value, list):
            return [self._found(each, items_of(kind), place) for each in value]
        if not isinstance(value, dict):
            return value
        if PATH in value:
            self._choose(place, self.known.path(str(value[PATH]), kind))
            own = value.get(ARGUMENTS)
            inner = self._inner(own, place) if isinstance(own, dict) else own or {}
            return {**value, PATH: self.known.whole(str(value[PATH])), ARGUMENTS: inner}
        return self._inner(value, place)

    def _inner(self, values: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
        return {n: self._found(v, self.kind((*place, n)), (*place, n)) for n, v in values.items()}

    def _own(self, value: Any) -> Any:
        """A value with the names of the recipe's own classes as its file has them."""
        if isinstance(value, str):
            return OWN.sub("", value)
        if isinstance(value, list):
            return [self._own(each) for each in value]
        if isinstance(value, dict):
            return {name: self._own(each) for name, each in value.items()}
        return value


def place_of(option: str) -> tuple[str, ...]:
    """The path of flags that an option is for.

    >>> place_of("--model.init_args.head.class_path"), place_of("--callbacks+")
    (('model', 'head'), ('callbacks',))
    """
    parts = option.partition("=")[0][2:].rstrip("+").split(".")
    return tuple(part for part in parts if part not in (PATH, ARGUMENTS))


def _name_of(value: Any) -> str | None:
    """The name of the class of a default, or of the class that it is."""
    if value is None or value is inspect.Parameter.empty:
        return None
    return getattr(value, "__name__", type(value).__name__)


def _class_in(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get(PATH)
    return value if isinstance(value, str) else None


def _given(name: str, tokens: Sequence[str]) -> Iterator[str | None]:
    """The classes that arguments choose for a flag."""
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        _, equals, value = token.partition("=")
        if _chooses(token, name):
            yield _class_in(yaml_dialect.load_flag(value if equals else after))


def _groups(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Each option with what follows it."""
    group = list[str]()
    for token in arguments:
        if token.startswith("--") and group:
            yield group
            group = []
        group.append(token)
    if group:
        yield group


def _class_first(groups: list[list[str]], name: str) -> list[list[str]]:
    at = next((i for i, group in enumerate(groups) if _chooses(group[0], name)), 0)
    own = [group for group in groups[:at] if group[0].startswith(f"--{name}.")]
    others = [group for group in groups[:at] if group not in own]
    return [*others, *groups[at : at + 1], *own, *groups[at + 1 :]]


def _chooses(token: str, name: str) -> bool:
    return token.partition("=")[0] in (f"--{name}", f"--{name}.{PATH}")


def _differ(one: str | None, other: str) -> bool:
    return one is not None and one.rpartition(".")[2] != other.rpartition(".")[2]
