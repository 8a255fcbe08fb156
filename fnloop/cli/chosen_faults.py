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
from fnloop.cli.flag_types import UNFIT, fits, is_simple, read
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
    choices = given.choices
    for config in given.configs:
        if name in config.values:
            here = _Here(choices, config, name, (name,), choices.kinds[name])
            if fault := here.fault(config.values[name]):
                return fault
    for option, text in _options(name, given.arguments):
        at = place_of(option)
        here = _Here(choices, None, "", at, choices.kind(at))
        if fault := _misplaced(choices, at) or here.fault(load_flag(text), option.endswith("+")):
            return fault
    return None


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
        return self.inside(name)._replace(at=(*self.at, name), kind=kind)

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

    def _fault_of_plain(self, value: Any) -> str | None:
        if is_simple(self.kind):
            text = isinstance(value, str) and read(value, self.kind) is not UNFIT
            whole = type(value) is int and fits(float(value), self.kind)
            fit = text or whole or fits(value, self.kind)
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
        if PATH not in value and values_of(self.kind) is not Any:
            each = values_of(self.kind)
            return _first(self.below(n, each).fault(v) for n, v in value.items())
        made = self.choices.made(self.at)
        if PATH in value:
            if fault := self.inside(PATH).fault(value[PATH]):
                return fault
            made = found_at(self.choices.known.path(value[PATH], self.kind))
        if made is None and is_chosen(self.kind):
            return no_choice(self.told, value)
        known = arguments_of(made) if made is not None else None
        if known is None:
            return None
        own = value.get(ARGUMENTS) or {} if {PATH, ARGUMENTS} & value.keys() else value
        if wrong := [name for name in own if name not in known]:
            return no_argument(self.choices, self.inside(wrong[0]).told, made, wrong[0])
        return _first(self.below(n, known[n]).fault(v) for n, v in own.items())


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
