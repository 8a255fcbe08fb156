"""Parse arguments into a recipe's flags."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fnloop.cli import yaml_dialect
from fnloop.cli.chosen import Choices
from fnloop.cli.chosen_errors import wrong_choice
from fnloop.cli.config import Config
from fnloop.cli.flag_types import UNFIT, fits, is_simple, read, types_of
from fnloop.cli.isolation import inside
from fnloop.cli.links import Links
from fnloop.cli.messages import did_you_mean, usage
from fnloop.cli.source import RESERVED, parameters

_WORDS = {"true": "true", "yes": "true", "on": "true"} | {
    "false": "false",
    "no": "false",
    "off": "false",
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """The values of a recipe's flags.

    Attributes:
        values: The arguments of the function ``recipe``.
        plain: The same as YAML and JSON values.
        options: The command's own options that were given.
        sources: The flags that others refer to, as in ``--width '${depth}'``.
    """

    values: dict[str, Any]
    plain: dict[str, Any]
    options: dict[str, Any]
    sources: Collection[str] = ()


def recipe_in(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The recipe file among the arguments of ``fit``, and the other arguments.

    It is the argument that ends in ``.py``; else the first one, if that is no option.

    >>> recipe_in(["--lr", "0.1", "a.py"])
    ('a.py', ['--lr', '0.1'])
    >>> recipe_in(["--config", "a.yaml", "--lr", "0.1"])
    (None, ['--config', 'a.yaml', '--lr', '0.1'])
    """
    rest = list(arguments)
    named = [i for i, a in enumerate(rest) if a.endswith(".py") and not a.startswith("-")]
    if not named and rest and not rest[0].startswith("-"):
        named = [0]
    return (rest.pop(named[0]) if named else None), rest


def configs_in(arguments: Sequence[str]) -> list[Config]:
    """The configuration files among the arguments, in their order.

    Raises:
        Problem: One cannot be read.
    """
    return [Config(Path(path)) for path in _split_configs(arguments)[0]]


def parse(
    parser: ArgumentParser, function: Callable[..., Any], arguments: Sequence[str], file: Path
) -> Flags:
    """Parse the flags of a recipe; the command line overrides configurations.

    Args:
        parser: The parser of ``fit`` with the function's flags.
        function: The function ``recipe``.
        arguments: The command's arguments.
        file: The recipe's file.

    Raises:
        Problem: An argument, or an entry of a configuration, is wrong.
    """
    names = list(parameters(function))
    configs = configs_in(arguments)
    for config in configs:
        config.check_keys(names, file.name)
    rest = _split_configs(arguments)[1]
    tidied = list(_tidy([*_variables(names, rest), *rest], function))
    choices = Choices(function, file)
    links = Links(function, choices, configs, tidied)
    parsed: Any = None
    ready: Any = None
    helped: SystemExit | None = None
    with inside(file.resolve()):  # the classes that are chosen are imported as by the recipe
        configs, tidied = links.resolved()
        try:
            parsed = parser.parse_args(choices.settle(parser, configs, tidied), env=False)
            ready = parser.instantiate(parsed)
        except ArgumentError as error:
            raise usage(explain(str(error), parser, tidied, configs, function, links.of)) from None
        except SystemExit as leaving:
            helped = leaving
    if helped is not None:
        raise helped
    plain = choices.shown(yaml_dialect.load(parser.dump(parsed, skip_unset=False)))
    own = dict(_own_values(names, types_of(function), tidied, configs, links.of))
    return Flags(
        values={name: own.get(name, ready[name]) for name in names},
        plain={name: own.get(name, plain[name]) for name in names},
        options={name: value for name, value in vars(parsed).items() if name not in names},
        sources=links.sources,
    )


def _variables(names: Sequence[str], arguments: list[str]) -> Iterator[str]:
    """The flags that environment variables give, if ``--env PREFIX`` is among the arguments.

    Raises:
        Problem: A variable with that prefix is no flag.
    """
    prefix = _text_of("env", arguments)
    if prefix is None:
        return
    known = {name.upper(): name for name in names}
    for variable, value in sorted(os.environ.items()):
        if not variable.startswith(f"{prefix}_"):
            continue
        first, *parts = variable.removeprefix(f"{prefix}_").split("__")
        if first not in known:
            hint = did_you_mean(first, known, f"{prefix}_{{}}".format)
            raise usage(
                f"--env {prefix}: the environment variable {variable} is no flag.{hint} There are: "
                f"{', '.join(f'{prefix}_{name}' for name in known)}."
            )
        yield f"--{'.'.join([known[first], *map(str.lower, parts)])}={value}"


def _own_values(
    names: Sequence[str],
    kinds: Mapping[str, Any],
    arguments: Sequence[str],
    configs: Sequence[Config],
    links: Mapping[str, Sequence[str]],
) -> Iterator[tuple[str, Any]]:
    """The flags that are read without jsonargparse, and their values."""
    given = [token.partition("=")[0] for token in arguments if token.startswith("--")]
    for name in names:
        if name not in kinds:
            continue
        kind, text = kinds[name], _text_of(name, arguments)
        if text is not None and is_simple(kind):
            value = read(text, kind)
            if value is UNFIT:
                takes = inspect.formatannotation(kind)
                end = _referring(name, links)
                raise usage(f"--{name} takes {takes}, got {text!r}.{end}")
            yield name, value
        elif not any(option.partition(".")[0].rstrip("+") == f"--{name}" for option in given):
            config = next((c for c in reversed(configs) if name in c.values), None)
            if config is not None and fits(config.values[name], kind):
                yield name, config.values[name]


def _text_of(name: str, arguments: Sequence[str]) -> str | None:
    """The last text given for a flag."""
    found = None
    for i, token in enumerate(arguments):
        if token.startswith(f"--{name}="):
            found = token.partition("=")[2]
        elif token == f"--{name}" and i + 1 < len(arguments):
            found = arguments[i + 1]
    return found


def parse_plain(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse the arguments of a command without flags.

    Raises:
        Problem: An argument is wrong.
    """
    try:
        return parser.parse_args(list(arguments), env=False)
    except ArgumentError as error:
        raise usage(explain(str(error), parser)) from None


def explain(
    error: str,
    parser: ArgumentParser,
    arguments: Sequence[str] = (),
    configs: Sequence[Config] = (),
    function: Callable[..., Any] | None = None,
    links: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A parser's error in plainer words."""
    options = [o for action in parser._actions for o in action.option_strings if o[:2] == "--"]
    if match := re.match(r"unrecognized arguments: (.*)", error, re.DOTALL):
        return _unknown(match[1].split(), options)
    if match := re.match(r"(?:argument )?(--[\w.-]+).*: expected one argument", error):
        kind = _kind(match[1][2:], function)
        return f"{match[1]} needs a value" + (f" ({kind})." if kind else ".")
    if match := re.match(r"the following arguments are required: (.*)", error):
        return _required(match[1].split(", "), parser)
    if match := re.match(r'Parser key "([^"]+)":\s*(.*)', error, re.DOTALL):
        text = _wrong_type(match[1], match[2], arguments, configs, function)
        return text + _referring(match[1], links or {})
    return error


def _split_configs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    files, rest = list[str](), list[str]()
    left = iter(arguments)
    for token in left:
        if token == "--config":
            file = next(left, None)
            if file is None:
                raise usage("--config needs a file: the config.yaml of a run, or one of your own.")
            files.append(file)
        elif token.startswith("--config="):
            files.append(token.removeprefix("--config="))
        else:
            rest.append(token)
    return files, rest


def _tidy(arguments: Sequence[str], function: Callable[..., Any]) -> Iterator[str]:
    """``--batch-size`` for ``--batch_size``; ``--flag`` and ``--no-flag`` for booleans."""
    flags = parameters(function)
    booleans = {name for name, flag in flags.items() if flag.annotation in (bool, "bool")}
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        option, equals, value = token.partition("=")
        name = option[2:].replace("-", "_")
        if not token.startswith("--"):
            yield token
        elif name in booleans:
            if not equals and rest and rest[0].lower() in _WORDS:
                value = rest.pop(0)
            word = _WORDS.get(value.lower(), value) if value or equals else "true"
            yield f"--{name}={word}"
        elif name.removeprefix("no_") in booleans and name not in flags:
            yield f"--{name.removeprefix('no_')}=false"
        elif name in flags:
            yield f"--{name}{equals}{value}"
        elif name in RESERVED:
            yield f"--{name.replace('_', '-')}{equals}{value}"
        else:
            yield token


def _unknown(arguments: Sequence[str], options: Iterable[str]) -> str:
    typed = next((a for a in arguments if a.startswith("-")), None)
    if typed is None:
        return f"Unexpected argument {arguments[0]!r}; a flag's value follows its name: --lr 0.1"
    typed = typed.partition("=")[0]
    hidden = ("--help", "--traceback", "--print_shtab")  # the last is jsonargparse's own
    known = [option for option in options if option not in hidden]
    close = difflib.get_close_matches(typed.replace("-", "_"), [o.replace("-", "_") for o in known])
    match = next((o for o in known if close and o.replace("-", "_") == close[0]), None)
    hint = f" Did you mean {match}?" if match else ""
    return f"There is no flag {typed}.{hint} There are: {', '.join(known)}."


def _required(names: Sequence[str], parser: ArgumentParser) -> str:
    positional = {a.dest: a.metavar for a in parser._actions if not a.option_strings}
    missing = [str(positional.get(name) or f"--{name}") for name in names]
    return f"Missing: {', '.join(missing)}. Usage: {parser.usage}"


def _wrong_type(
    key: str,
    what: str,
    arguments: Sequence[str],
    configs: Sequence[Config],
    function: Callable[..., Any] | None,
) -> str:
    name = key.partition(".")[0]
    place = f"--{key}"
    if not any(argument.partition("=")[0] == place for argument in arguments):
        origin = next((c for c in reversed(configs) if name in c.values), None)
        if origin is not None:
            place = f"{origin.where(name)}: {key}"
        text = origin.texts.get(name) if origin is not None else None
        if text is not None and _kind(name, function) == "str":
            return f'{place} takes str, and {text} is none without quotes: {name}: "{text}".'
    chosen = wrong_choice(place, _kind(name, function), what) if function else None
    if chosen is not None:
        return chosen
    value = re.search(r"(?:Got|Given) value: (.*)", what)
    own = re.search(r"Expected an? <class '(\w+)'>", what)  # of an option of the command
    kind = _kind(key, function) or (own[1] if own else "")
    if value is None or not kind:
        return f"{place}: {what}"
    return f"{place} takes {kind}, got {value[1].strip()!r}."


def _referring(key: str, links: Mapping[str, Sequence[str]]) -> str:
    """The references in a flag that has a wrong value."""
    name = key.partition(".")[0]
    found = {at: paths for at, paths in links.items() if at.partition(".")[0] == name}
    told = [f"{at} is from ${{{'}, ${'.join(paths)}}}" for at, paths in found.items()]
    return f" ({'; '.join(told)})" if told else ""


def _kind(name: str, function: Callable[..., Any] | None) -> str:
    """The type of a flag, for messages."""
    flag = parameters(function).get(name) if function else None
    if flag is None:
        return ""
    if isinstance(flag.annotation, str):
        return flag.annotation
    return inspect.formatannotation(flag.annotation)
