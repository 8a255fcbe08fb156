"""Look for what is wrong in the classes that were chosen for a flag, and in their arguments."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fnloop.cli.chosen import ARGUMENTS, PATH, Choices, place_of
from fnloop.cli.chosen_errors import (
    no_argument,
    no_choice,
    no_choice_for,
    no_class,
    no_list,
    no_name,
    unfit_class,
    wrong_keys,
)
from fnloop.cli.class_names import found_at
from fnloop.cli.class_types import arguments_of, is_chosen, items_of, record_of, values_of
from fnloop.cli.config import Config
from fnloop.cli.flag_types import UNFIT, is_simple, may_be, read, takes_none
from fnloop.cli.subclasses import known_classes
from fnloop.cli.value_errors import wrong_value
from fnloop.cli.yaml_dialect import load_flag


class _Given(Protocol):
    @property
    def choices(self) -> Choices: ...
    @property
    def configs(self) -> Sequence[Config]: ...
    @property
    def arguments(self) -> Sequence[str]: ...


def fault_in(given: _Given, name: str) -> str | None:
    """The error in what was given for a flag; None if none is found.

    Args:
        given: What was given for all.
        name: The flag.
    """
    return _first(
        _misplaced(given.choices, here.at) or here.fault(value, adds)
        for here, value, adds in _places(given, name)
    )


def null_in(given: _Given, name: str) -> str | None:
    """The error that null was given for a flag, or within it, where the type has no None.

    The parser takes null for every type, but for items of lists and mappings, and on the command
    line.

    Args:
        given: What was given for all.
        name: The flag.
    """
    return _first(
        here.null(value)
        for here, value, _ in _places(given, name)
        if here.config is not None or value is not None or not here.is_parsed
    )


def _places(given: _Given, name: str) -> Iterator[tuple[_Here, Any, bool]]:
    """What was given for a flag: where, the value, and whether it is added to a list."""
    choices = given.choices
    for config in given.configs:
        if name in config.values:
            here = _Here(choices, config, name, (name,), choices.kinds[name])
            yield here, config.values[name], False
    for option, text in _options(name, given.arguments):
        at = place_of(option)
        here = _Here(choices, None, "", at, choices.kind(at))
        yield here, load_flag(text), option.endswith("+")


class _Here(NamedTuple):
    """A place where a class may be chosen.

    Attributes:
        choices: All that were chosen.
        config: The configuration that it is in; None on the command line.
        entry: Its path there.
        at: Its path of flags: without the numbers of items in lists.
        kind: The type of its value.
    """

    choices: Choices
    config: Config | None
    entry: str
    at: tuple[str, ...]
    kind: Any

    @property
    def told(self) -> str:
        """Its name in messages."""
        name = ".".join(self.at)
        return f"--{name}" if self.config is None else f"{self.config.where(self.entry)}: {name}"

    def below(self, name: str, kind: Any) -> _Here:
        return self.inside(name)._replace(at=(*self.at, str(name)), kind=kind)

    def inside(self, name: str | int) -> _Here:
        return self._replace(entry=f"{self.entry}.{name}")

    def fault(self, value: Any, adds: bool = False) -> str | None:
        item, record = items_of(self.kind), record_of(self.kind)
        if isinstance(value, dict):
            return self._fault_of_mapping(value)
        if record is not None and value is not None and not isinstance(value, list):
            return no_name(self.told, record, value)
        if isinstance(value, list):
            inner = self._replace(kind=item)
            faults = (inner.inside(i).fault(each) for i, each in enumerate(value))
            return None if item is Any else _first(faults)
        if value is not None and not is_chosen(self.kind):
            return self._fault_of_plain(value)
        if not isinstance(value, str):
            return None
        if item is Any or value == "None":
            return self._fault_of_name(value)
        return self._replace(kind=item).fault(value) if adds else no_list(self.told, value)

    @property
    def is_parsed(self) -> bool:
        """Whether the parser reads a text by this type: not by that of an argument of a class."""
        above = self.at[:-1]
        fields = not above or record_of(self.choices.kind(above)) is not None
        return fields and not is_chosen(self.kind)

    def null(self, value: Any) -> str | None:
        if isinstance(value, list):
            inner = self._replace(kind=items_of(self.kind))
            items = ((i, each) for i, each in enumerate(value) if each is not None)
            return _first(inner.inside(i).null(each) for i, each in items)
        if isinstance(value, dict):
            return _first(here.null(each) for here, each in self._parts(value))
        if value is not None or takes_none(self.kind):
            return None
        record = record_of(self.kind)
        if record is not None:
            return no_name(self.told, record, None)
        return wrong_value(self.told, self.kind, None)

    def _fault_of_plain(self, value: Any) -> str | None:
        if is_simple(self.kind):
            text = isinstance(value, str) and read(value, self.kind) is not UNFIT
            fit = text or may_be(value, self.kind)
        elif inspect.isclass(self.kind) and issubclass(self.kind, enum.Enum):
            fit = value in self.kind.__members__
        else:
            fit = items_of(self.kind) is Any or isinstance(value, list)
        return None if fit else wrong_value(self.told, self.kind, value)

    def _fault_of_name(self, name: str) -> str | None:
        made, path = self.choices.known.held(name), self.choices.known.path(name, self.kind)
        if made is None and len(known_classes(self.kind).get(name, ())) <= 1:
            made = found_at(path)
        if made is None:
            return no_class(self.choices, self.told, name, self.kind)
        return unfit_class(self.told, path, made, self.kind)

    def _fault_of_mapping(self, value: Mapping[str, Any]) -> str | None:
        if fault := wrong_keys(self.told, value):
            return fault
        if self._holds(value):
            return _first(here.fault(each) for here, each in self._parts(value))
        if PATH in value and (fault := self.inside(PATH).fault(value[PATH])):
            return fault
        made = self._made(value)
        if made is None and is_chosen(self.kind):
            return no_choice(self.told, value)
        known = arguments_of(made) if made is not None else None
        if known is None:
            return None
        if wrong := [name for name in _arguments_in(value) if name not in known]:
            return no_argument(self.choices, self.inside(wrong[0]).told, made, wrong[0])
        return _first(here.fault(each) for here, each in self._parts(value))

    def _holds(self, value: Mapping[str, Any]) -> bool:
        """Whether a mapping is one itself, and not the choice of a class."""
        return PATH not in value and values_of(self.kind) is not Any

    def _made(self, value: Mapping[str, Any]) -> Any:
        """The class or function that a mapping chooses, or is for; None if it is unknown."""
        if PATH in value:
            return found_at(self.choices.known.path(str(value[PATH]), self.kind))
        return self.choices.made(self.at) or record_of(self.kind)

    def _parts(self, value: Mapping[str, Any]) -> Iterator[tuple[_Here, Any]]:
        """The values of a mapping, or the arguments of the class that it chooses."""
        if self._holds(value):
            each = values_of(self.kind)
            return ((self.below(n, each), part) for n, part in value.items())
        made = self._made(value)
        known = (arguments_of(made) if made is not None else None) or {}
        own = _arguments_in(value)
        return ((self.below(n, known.get(n, Any)), part) for n, part in own.items())


def _arguments_in(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a class in what chooses it, or changes those of the one before."""
    if not {PATH, ARGUMENTS} & value.keys():
        return value
    own = value.get(ARGUMENTS)
    return own if isinstance(own, dict) else {}


def _misplaced(choices: Choices, at: tuple[str, ...]) -> str | None:
    """An argument, by a flag of its own, that a class does not have, or of no class."""
    for i in range(1, len(at)):
        place, kind = f"--{'.'.join(at[:i])}", choices.kind(at[:i])
        made = choices.made(at[:i])
        if made is None and is_chosen(kind) and items_of(kind) is values_of(kind) is Any:
            return no_choice_for(place, at[i])
        known = arguments_of(made) if made is not None else None
        if known is not None and at[i] not in known:
            return no_argument(choices, place, made, at[i])
    return None


def _options(name: str, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for token, after in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = token.partition("=")
        if token.startswith("--") and place_of(option)[0] == name:
            yield option, value if equals else after


def _first(faults: Iterable[str | None]) -> str | None:
    return next(filter(None, faults), None)
