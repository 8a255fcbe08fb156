"""Flags whose values are classes or functions, chosen by name, with arguments of their own."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from jsonargparse import ArgumentParser
from yaml import YAMLError

from fnloop.cli import yaml_dialect
from fnloop.cli.config import Config
from fnloop.cli.flag_types import types_of
from fnloop.cli.subclasses import known_classes

OWN = re.compile(r"^_recipe_\w+\.")  # the module that `load_function` makes of the recipe's file
PATH, ARGUMENTS = "class_path", "init_args"
_PLAIN = (str, int, float, bool, bytes, list, tuple, dict, set, type(None), object)


class Choices:
    """The flags of a recipe for which a class is chosen.

    Names are those that the recipe's own file has (``Net``, ``nn.Linear``, ``fl.optim.adamw``), or
    dotted paths to import. In what is written they are the same.

    Args:
        function: The function ``recipe``.
        file: Its file.

    Attributes:
        names: Of those flags.
    """

    def __init__(self, function: Callable[..., Any], file: pathlib.Path) -> None:
        self._kinds = types_of(function)
        self.names = [name for name, kind in self._kinds.items() if _is_chosen(kind)]
        self._stem = file.stem
        self._known: dict[str, Any] = getattr(inspect.unwrap(function), "__globals__", {})
        self._defaults = {
            name: _name_of(parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
        }

    def settle(
        self, parser: ArgumentParser, configs: Sequence[Config], arguments: Sequence[str]
    ) -> list[str]:
        """All arguments for the parser: those of the configurations, then the others.

        A class that is chosen later takes nothing over from another one before it, in the recipe's
        default or in a configuration: they may have arguments of one name that mean different
        things.
        """
        tokens = list(self._whole(arguments))
        entries = [self._whole_names(config.values) for config in configs]
        for name in self.names:
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
            if isinstance(value, _PLAIN[:-2]):
                return None
            made = value if hasattr(value, "__qualname__") else type(value)
            return f"{made.__module__}.{made.__qualname__}"
        path = self._path(written)
        if "." not in path:
            path = known_classes(self._kinds[name]).get(path, [path])[0]
        return path

    def found(self, path: str) -> Any:
        """What a path leads to; None if it leads nowhere."""
        try:
            return pkgutil.resolve_name(path)
        except (ImportError, AttributeError, ValueError):
            return None

    def _whole_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {n: self._found(v) if n in self.names else v for n, v in values.items()}

    def _whole(self, arguments: Sequence[str]) -> Iterator[str]:
        """The arguments, with whole paths for the names of classes."""
        takes = False  # the next one, as its value
        for token in arguments:
            option, equals, value = token.partition("=")
            name, _, rest = option[2:].partition(".")
            mine = token.startswith("--") and name.rstrip("+") in self.names
            names = mine and (not rest or rest.rpartition(".")[2] in (PATH, "help"))
            if takes:
                yield self._text(token)
            elif names and equals:
                yield f"{option}={self._text(value)}"
            else:
                yield token
            takes = names and not equals and not takes

    def _text(self, text: str) -> str:
        try:
            value = yaml_dialect.load(text)
        except YAMLError:
            return text
        found = self._found(value)
        if found == value:
            return text
        return found if isinstance(found, str) else yaml_dialect.dump(found)

    def _found(self, value: Any) -> Any:
        """A value with whole paths for the names that the recipe's file knows."""
        if isinstance(value, str):
            return self._path(value)
        if isinstance(value, list):
            return [self._found(each) for each in value]
        if isinstance(value, dict) and PATH in value:
            own = value.get(ARGUMENTS) or {}
            inner = {n: self._found(v) if isinstance(v, dict | list) else v for n, v in own.items()}
            return {**value, PATH: self._path(str(value[PATH])), ARGUMENTS: inner}
        return value

    def _path(self, name: str) -> str:
        """The path to import what the recipe's file calls `name`; `name` if it does not know it."""
        first, *parts = name.removeprefix(f"{self._stem}.").split(".")
        found = self._known.get(first)
        for part in parts:
            found = getattr(found, part, None)
        if found is None or not callable(found) or not hasattr(found, "__qualname__"):
            return name
        return f"{found.__module__}.{found.__qualname__}"

    def _own(self, value: Any) -> Any:
        """A value with the names of the recipe's own classes as its file has them."""
        if isinstance(value, str):
            return OWN.sub("", value)
        if isinstance(value, list):
            return [self._own(each) for each in value]
        if isinstance(value, dict):
            return {name: self._own(each) for name, each in value.items()}
        return value


def _is_chosen(kind: Any) -> bool:
    """Whether values of this type are made by a class or function that is chosen by name."""
    origin = get_origin(kind) or kind
    if origin is collections.abc.Callable:
        return True
    if get_args(kind):
        return any(map(_is_chosen, get_args(kind)))
    if not inspect.isclass(kind) or issubclass(kind, (enum.Enum, pathlib.PurePath)):
        return False
    return kind not in _PLAIN


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
        option, equals, value = token.partition("=")
        if option in (f"--{name}", f"--{name}.{PATH}"):
            text = value if equals else after
            try:
                yield _class_in(yaml_dialect.load(text))
            except YAMLError:
                yield text


def _differ(one: str | None, other: str) -> bool:
    return one is not None and one.rpartition(".")[2] != other.rpartition(".")[2]
