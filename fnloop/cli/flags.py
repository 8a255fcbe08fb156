"""Parse arguments into a recipe's flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fnloop.cli import yaml_dialect
from fnloop.cli.chosen import Choices
from fnloop.cli.chosen_faults import fault_in, null_in
from fnloop.cli.chosen_help import asked_help
from fnloop.cli.config import Config
from fnloop.cli.flag_errors import Typed, explain, referring, text_of
from fnloop.cli.flag_types import UNFIT, fits, is_simple, read
from fnloop.cli.isolation import inside
from fnloop.cli.links import Links
from fnloop.cli.messages import did_you_mean, usage
from fnloop.cli.source import RESERVED, parameters
from fnloop.cli.value_errors import wrong_value
from fnloop.cli.yaml_dialect import load_flag

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
        typed = Typed(function, choices, configs, tidied, links.of)
        settled = choices.settle(parser, configs, tidied)
        for name in choices.kinds:
            if fault := null_in(typed, name):
                raise usage(fault + referring(name, typed.links))
        help = asked_help(parser.prog, choices, tidied)
        try:
            if help is None:
                parsed = parser.parse_args(settled, env=False)
                ready = parser.instantiate(parsed)
        except ArgumentError as error:
            raise usage(explain(str(error), parser, tidied, typed)) from None
        except SystemExit as leaving:
            helped = leaving
        except Exception:  # of what the parser did not expect, or of the user's own code
            faults = [fault_in(typed, name) for name in choices.names]
            if any(faults):
                raise usage(next(filter(None, faults))) from None
            raise
    if help is not None:
        print(help, end="")
        raise SystemExit(0)
    if helped is not None:
        raise helped
    plain = choices.shown(yaml_dialect.load(parser.dump(parsed, skip_unset=False)))
    own, kept = dict(_own_values(parsed, typed)), dict(_unwritten(parsed, typed))
    return Flags(
        values={name: kept.get(name, own.get(name, ready[name])) for name in names},
        plain={name: own.get(name, plain[name]) for name in names if name not in kept},
        options={name: value for name, value in vars(parsed).items() if name not in names},
        sources=links.sources,
    )


def _unwritten(parsed: Namespace, typed: Typed) -> Iterator[tuple[str, Any]]:
    """The flags that have the recipe's own default, for which no text stands."""
    for name, flag in parameters(typed.function).items():
        given = typed.is_on_line(name) or typed.config_of(name) is not None
        has_default = flag.default is not flag.empty and flag.default is not None
        if has_default and not given and parsed[name] is None:
            yield name, flag.default


def _variables(names: Sequence[str], arguments: list[str]) -> Iterator[str]:
    """The flags that environment variables give, if ``--env PREFIX`` is among the arguments.

    Raises:
        Problem: A variable with that prefix is no flag.
    """
    prefix = text_of("env", arguments)
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


def _own_values(parsed: Namespace, typed: Typed) -> Iterator[tuple[str, Any]]:
    """The flags that are read without jsonargparse, and their values.

    Besides those of simple types these are texts that it reads as None, such as ``#7`` where None
    is allowed.
    """
    for name, kind in typed.choices.kinds.items():
        text, config = typed.text_of(name), typed.config_of(name)
        lost = parsed[name] is None and text is not None and load_flag(text) is not None
        if text is not None and (is_simple(kind) or lost):
            value = read(text, kind)
            if value is UNFIT:
                fault = wrong_value(f"--{name}", kind, text)
                raise usage(fault + referring(name, typed.links))
            yield name, value
        elif config is not None and not typed.is_on_line(name) and fits(config.values[name], kind):
            yield name, config.values[name]


def parse_plain(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse the arguments of a command without flags.

    Raises:
        Problem: An argument is wrong.
    """
    try:
        return parser.parse_args(list(arguments), env=False)
    except ArgumentError as error:
        raise usage(explain(str(error), parser, arguments)) from None


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
