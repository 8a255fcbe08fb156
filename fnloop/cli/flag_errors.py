"""What is wrong with flags and options, in plainer words than the parser's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from fnloop.cli.chosen import Choices, place_of
from fnloop.cli.chosen_errors import told_by_parser
from fnloop.cli.chosen_faults import fault_in
from fnloop.cli.config import Config
from fnloop.cli.flag_types import kind_text
from fnloop.cli.messages import OWN, did_you_mean
from fnloop.cli.source import parameters
from fnloop.cli.value_errors import wrong_value


class Typed(NamedTuple):
    """What was given for a recipe's flags.

    Attributes:
        function: The function ``recipe``.
        choices: The flags for which classes are chosen.
        configs: Configurations.
        arguments: Those of the command line.
        links: The references by the flag, or the part of one, that they stand in.
    """

    function: Callable[..., Any]
    choices: Choices
    configs: Sequence[Config]
    arguments: Sequence[str]
    links: Mapping[str, Sequence[str]]

    def text_of(self, name: str) -> str | None:
        """The last text given for a flag on the command line."""
        return text_of(name, self.arguments)

    def is_on_line(self, name: str) -> bool:
        """Whether the command line gives a flag, or a part of one."""
        return any(a.startswith("--") and place_of(a)[0] == name for a in self.arguments)

    def config_of(self, name: str) -> Config | None:
        """The last configuration that has a flag."""
        return next((c for c in reversed(self.configs) if name in c.values), None)


def text_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last text given for a flag among arguments."""
    found = None
    for i, token in enumerate(arguments):
        if token.startswith(f"--{name}="):
            found = token.partition("=")[2]
        elif token == f"--{name}" and i + 1 < len(arguments):
            found = arguments[i + 1]
    return found


def explain(
    error: str, parser: ArgumentParser, arguments: Sequence[str], typed: Typed | None = None
) -> str:
    """A parser's error in plainer words; `typed` is of a recipe's flags."""
    options = [o for action in parser._actions for o in action.option_strings if o[:2] == "--"]
    if match := re.match(r"unrecognized arguments: (.*)", error, re.DOTALL):
        return _unknown(match[1].split(), options, typed)
    if match := re.match(r"(?:argument )?(--[\w.-]+).*: expected one argument", error):
        return _without_value(match[1], arguments, _kind(match[1][2:], typed))
    if match := re.match(r"argument (--[\w-]+): ignored explicit argument (.*)", error, re.DOTALL):
        return f"{match[1]} takes no value, got {match[2]}."
    if match := re.match(r"the following arguments are required: (.*)", error):
        return _required(match[1].split(", "), parser)
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', error, re.DOTALL):
        text = _wrong_value(match[1], match[2], typed)
        return text + referring(match[1], typed.links if typed else {})
    if typed and (found := [fault_in(typed, name) for name in typed.choices.names]):
        return next(filter(None, found), error)
    return error


def _without_value(option: str, arguments: Sequence[str], kind: str) -> str:
    needs = f"{option} needs a value" + (f" ({kind})." if kind else ".")
    after = text_of(option[2:], arguments)
    if after is None or not re.match("-[^-]", after):
        return needs
    return f"{needs} One that begins with - follows =: {shlex.quote(f'{option}={after}')}"


def referring(key: str, links: Mapping[str, Sequence[str]]) -> str:
    """The references in a flag that has a wrong value."""
    name = key.partition(".")[0]
    found = {at: paths for at, paths in links.items() if at.partition(".")[0] == name}
    told = [f"{at} is from ${{{'}, ${'.join(paths)}}}" for at, paths in found.items()]
    return f" ({'; '.join(told)})" if told else ""


def _unknown(arguments: Sequence[str], options: Iterable[str], typed: Typed | None) -> str:
    option = next((a for a in arguments if a.startswith("-")), None)
    if option is None:
        return _stray(arguments[0], typed)
    option = option.partition("=")[0]
    hidden = ("--help", "--traceback", "--print_shtab")  # the last is jsonargparse's own
    known = [o for o in options if o not in hidden and not o.endswith((".help", "+"))]
    same = {o[2:].replace("-", "_"): o for o in known}
    hint = did_you_mean(option.lstrip("-").replace("-", "_"), same, lambda o: same[o])
    return f"There is no flag {option}.{hint} There are: {', '.join(known)}."


def _stray(text: str, typed: Typed | None) -> str:
    before = typed.arguments[typed.arguments.index(text) - 1 :][0] if typed else ""
    if re.fullmatch(r"--\w+=(true|false)", before):
        return f"{before.partition('=')[0]} takes true or false, got {text!r}."
    if text.endswith((".yaml", ".yml")):
        return f"Unexpected argument {text!r}; a configuration follows its option: --config {text}"
    return f"Unexpected argument {text!r}; a flag's value follows its name: --lr 0.1"


def _required(names: Sequence[str], parser: ArgumentParser) -> str:
    positional = {a.dest: a.metavar for a in parser._actions if not a.option_strings}
    missing = [str(positional.get(name) or f"--{name}") for name in names]
    return f"Missing: {', '.join(missing)}. Usage: {' '.join(str(parser.usage).split())}"


def _wrong_value(key: str, what: str, typed: Typed | None) -> str:
    name, place = key.partition(".")[0], f"--{key}"
    if typed is None or name not in typed.choices.kinds:
        own = re.search(r"Expected an? <class '(\w+)'>", what)  # of an option of the command
        return _got(place, own[1] if own else "", what)
    config = typed.config_of(name)
    if typed.text_of(key) is None and config is not None:
        place = f"{config.where(key)}: {key}"
        text, kind = config.texts.get(key), typed.choices.kind(tuple(key.split(".")))
        if text and kind is str:
            last = key.rpartition(".")[2]
            return f'{place} takes str, and {text} is none without quotes: {last}: "{text}".'
    if name in typed.choices.names and (
        fault := fault_in(typed, name) or told_by_parser(place, what)
    ):
        return fault
    text, kind = typed.text_of(key), typed.choices.kind(tuple(key.split(".")))
    if text is not None and kind is not Any and key not in typed.choices.names:
        return wrong_value(place, kind, text)
    return _got(place, _kind(key, typed), what)


def _got(place: str, kind: str, what: str) -> str:
    value = re.search(r"(?:Got|Given) value: (.*)", what)
    if value is None or not kind:
        return f"{place}: {what}"
    text = value[1].strip()
    got = "null" if text == "None" and not place.startswith("--") else repr(text)
    return OWN.sub("", f"{place} takes {kind}, got {got}.")


def _kind(name: str, typed: Typed | None) -> str:
    """The type of a flag, for messages."""
    flag = parameters(typed.function).get(name) if typed else None
    return "" if flag is None else kind_text(flag.annotation)
