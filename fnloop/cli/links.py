"""References among a recipe's flags: ``${model.width}`` stands for the value of another.

The notation is that of Hydra and OmegaConf (https://omegaconf.readthedocs.io, "Variable
interpolation"): a value that is one reference takes over the other as it is, a reference within a
text its words, and ``\\${x}`` is that text itself. References hold after configurations, the
environment and flags have been put together.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fnloop.cli import yaml_dialect
from fnloop.cli.chosen import ARGUMENTS, PATH, Choices
from fnloop.cli.class_names import found_at
from fnloop.cli.config import REFERENCE, Config, short
from fnloop.cli.flag_types import UNFIT, is_simple, read, types_of
from fnloop.cli.links_errors import in_a_circle, to_nothing
from fnloop.cli.messages import usage, value_text
from fnloop.cli.source import parameters

_PLAIN = (str, int, float, bool, list, dict, type(None))
_MISSING: Any = object()

_Where = Callable[[str], str]
"""Of the path of an entry: where it stands, for messages."""


class Links:
    """Replaces the references in what was given for a recipe's flags.

    Args:
        function: The function ``recipe``.
        choices: The flags for which classes are chosen.
        configs: Configurations, the later ones over the earlier.
        arguments: Those of the command line, over the configurations.

    Attributes:
        of: The references by the flag, or the part of one, that they stand in.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        choices: Choices,
        configs: Sequence[Config],
        arguments: Sequence[str],
    ) -> None:
        self._flags, self._kinds = parameters(function), types_of(function)
        self._choices, self._configs, self._arguments = choices, configs, arguments
        self._pairs = list(_pairs(arguments))
        self.of: dict[str, list[str]] = {}

    def resolved(self) -> tuple[list[Config], list[str]]:
        """Configurations and arguments without references.

        Raises:
            Problem: A reference is to nothing, or to itself.
        """
        return [self._config(each) for each in self._configs], self._tokens()

    @property
    def sources(self) -> set[str]:
        """The flags that are referred to."""
        return {path.partition(".")[0] for paths in self.of.values() for path in paths}

    def _config(self, config: Config) -> Config:
        changed = copy.copy(config)
        changed.values = {
            name: value if name == "recipe" else self._filled(value, config.where, (name,))
            for name, value in config.values.items()
        }
        return changed

    def _tokens(self) -> list[str]:
        tokens, place = list[str](), ""
        for token in self._arguments:
            option, equals, value = token.partition("=")
            if not token.startswith("--"):
                tokens.append(self._text(token, place))
            elif equals:
                tokens.append(f"{option}={self._text(value, option)}")
            else:
                tokens.append(token)
            place = option
        return tokens

    def _text(self, text: str, place: str) -> str:
        if "${" not in text or place[2:].partition(".")[0].rstrip("+") not in self._flags:
            return text
        whole = self._read(text, None)
        whole = whole if isinstance(whole, dict | list) else text
        value = self._filled(whole, lambda _: place, (short(place[2:]),))
        if isinstance(value, str):
            return value
        return yaml_dialect.dump(value).removesuffix("\n").removesuffix("\n...")

    def _filled(self, value: Any, where: _Where, at: tuple[str, ...]) -> Any:
        """A value without references; `at` are the paths that have led to it, its own last."""
        if isinstance(value, list):
            return [
                self._filled(e, where, (*at[:-1], f"{at[-1]}.{i}")) for i, e in enumerate(value)
            ]
        if isinstance(value, dict):
            below = {name: at[-1] if name == ARGUMENTS else f"{at[-1]}.{name}" for name in value}
            return {n: self._filled(e, where, (*at[:-1], below[n])) for n, e in value.items()}
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = REFERENCE.fullmatch(value)
        if whole and not whole[1]:
            return self._value(whole[2], where, at)
        return REFERENCE.sub(
            lambda m: m[0][1:] if m[1] else _words(self._value(m[2], where, at)), value
        )

    def _value(self, path: str, where: _Where, at: tuple[str, ...]) -> Any:
        """The value that a path refers to."""
        path, place = short(path.strip()), where(at[0])
        self.of.setdefault(at[-1], []).append(path)
        first = next((i for i, each in enumerate(at) if _within(each, path)), None)
        if first is not None:
            raise usage(in_a_circle(place, [*at[first:], path]))
        found = self._given(path)
        if found is _MISSING:
            raise usage(to_nothing(place, path, list(self._flags)))
        return self._filled(found, where, (*at, path))

    def _given(self, path: str) -> Any:
        """What was given last for a path, references as they are; else its default."""
        name, *parts = path.split(".")
        if name not in self._flags:
            return _MISSING
        chosen = None
        for value in self._layers(name):
            other = self._choices.class_in(name, value)
            if other is not None and chosen is not None and _last(other) != _last(chosen):
                continue  # its arguments are not those of the class that was chosen later
            chosen = chosen or other
            if (found := _part(value, parts)) is not _MISSING:
                return found
        default = self._flags[name].default
        if chosen is not None and parts:
            known = self._choices.class_in(name, default)
            if known is None or _last(known) != _last(chosen):
                default = found_at(chosen)
        return _default(default, parts)

    def _layers(self, name: str) -> list[Any]:
        """What was given for a flag, the last first; a part of it within mappings."""
        layers = list[Any]()
        for option, text in self._pairs:
            own, *parts = short(option).split(".")
            if own != name:
                continue
            value = self._read(text, self._kinds.get(name) if not parts else None)
            for part in reversed(parts):
                value = {part: value} if part == PATH else {ARGUMENTS: {part: value}}
            layers.append(value)
        return [
            *reversed(layers),
            *[c.values[name] for c in reversed(self._configs) if name in c.values],
        ]

    def _read(self, text: str, kind: Any) -> Any:
        if kind is not None and is_simple(kind) and (value := read(text, kind)) is not UNFIT:
            return value
        return yaml_dialect.load_flag(text)


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Options and their values."""
    found = list[tuple[str, str]]()
    for token, after in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = token.partition("=")
        if option.startswith("--") and not option.endswith("+"):
            found.append((option[2:], value if equals else after))
    return found


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _within(one: str, other: str) -> bool:
    """Whether one of two paths lies within the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _words(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return yaml_dialect.dump(value).split("\n")[0]
    return value_text(value)


def _part(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if isinstance(value, dict):
            own = value.get(ARGUMENTS)
            inner = own if isinstance(own, dict) and part in own else value
            value = inner.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _default(default: Any, parts: Sequence[str]) -> Any:
    """A part of a default: an argument's default of a class, an attribute of what it made."""
    value = default
    for part in parts:
        if inspect.isclass(value) or inspect.isroutine(value):
            known = inspect.signature(value).parameters
            value = known[part].default if part in known else _MISSING
        elif isinstance(value, Mapping):
            value = value.get(part, _MISSING)
        else:
            value = getattr(value, part, _MISSING)
    if value is inspect.Parameter.empty:
        return _MISSING
    return value if isinstance(value, _PLAIN) else _MISSING
