"""The parsers of the commands."""

from __future__ import annotations

import inspect
import re
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_dumper, set_loader, set_parsing_settings
from yaml import YAMLError

from fnloop.cli import yaml_dialect
from fnloop.cli.commands import COMMANDS, USAGE, WITH_RECIPES, YIELDING
from fnloop.cli.help_text import HelpFormatter, first_paragraph, wrapped_usage
from fnloop.cli.options import OPTIONS, switch, yielding

_UNWRITTEN = "Unable to serialize instance"  # jsonargparse's words


def of(
    command: str, recipe: Callable[..., Any] | None = None, file: str = "RECIPE.py"
) -> ArgumentParser:
    """The parser of a command, with the flags of `recipe` if given."""
    parser = _Parser(
        prog=f"fnloop {command}",
        usage=wrapped_usage(command, re.sub(r"^RECIPE\.py", file, USAGE[command])),
        description=COMMANDS[command],
        print_config=None,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help="show this help")
    OPTIONS[command](parser)
    switch(parser, "--traceback", "show an error's whole traceback")
    if recipe is not None:
        import_module("fnloop.cli.torch_types")
        for name in YIELDING.get(command, {}).keys() - inspect.signature(recipe).parameters.keys():
            yielding(parser, command, name)
        group = parser.add_argument_group(f"flags of {file}", first_paragraph(recipe))
        group.add_function_arguments(recipe, as_group=False)
        numbers = dict(_numpy_defaults(recipe))
        unwritten = set(_unwritten_defaults(recipe)) - numbers.keys()
        for action in parser._actions:
            _tidy_help(action, unwritten)
        parser.set_defaults(numbers | dict.fromkeys(unwritten))
        return parser
    for name in YIELDING.get(command, ()):
        yielding(parser, command, name)
    if command in WITH_RECIPES:
        own = f"For its flags: fnloop {command} RECIPE.py --help"
        parser.description = f"{parser.description} {own}"
    return parser


def of_class(call: str, flag: str, made: Any, taken: int) -> ArgumentParser:
    """The parser of a class's arguments, for its help.

    Args:
        call: The command that chooses it.
        flag: The flag that it is chosen for.
        made: The class, or a function.
        taken: How many arguments are not for the command line: the first ones.
    """
    usage = f"{call} [--{flag}.ARGUMENT VALUE ...]"
    text = first_paragraph(made)
    parser = _Parser(usage=usage, description=text, add_help=False, print_config=None)
    group = parser.add_argument_group("arguments")
    add = group.add_class_arguments if inspect.isclass(made) else group.add_function_arguments
    add(made, flag, as_group=False, skip={taken} if taken else None)
    for action in parser._actions:
        _tidy_help(action)
    return parser


def _tidy_help(action: Any, unwritten: Collection[str] = ()) -> None:
    """Tell of ``--model.help`` beside ``--model``; not of hundreds of classes that there are."""
    if action.dest in unwritten:
        action.default_words = "the recipe's own"
    if hasattr(action, "extra_help"):
        action.asks_for_class = bool(action.extra_help())
        action.extra_help = lambda: ""
    if action.dest.endswith(".help"):
        action.help = SUPPRESS


def _numpy_defaults(recipe: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Defaults that are numpy's numbers, as Python's."""
    for name, parameter in inspect.signature(recipe).parameters.items():
        value = _without_numpy(parameter.default)
        if repr(value) != repr(parameter.default):
            yield name, value


def _without_numpy(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_without_numpy(each) for each in value)
    if type(value) is dict:
        return {name: _without_numpy(each) for name, each in value.items()}
    number = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if number else value


def _unwritten_defaults(recipe: Callable[..., Any]) -> Iterator[str]:
    """The flags with a default that no text stands for, such as a lambda: the recipe has it."""
    flags = inspect.signature(recipe).parameters
    for name, flag in flags.items():
        if type(flag.default) in (str, int, float, bool, type(None)) or flag.default is flag.empty:
            continue
        alone = _Parser()
        others: set[str | int] = {each for each in flags if each != name}
        alone.add_function_arguments(recipe, as_group=False, skip=others)
        try:
            with warnings.catch_warnings(action="ignore"):
                text = alone.dump(alone.parse_args([], env=False), skip_unset=False)
        except (ArgumentError, YAMLError):
            text = _UNWRITTEN
        if _UNWRITTEN in text:
            yield name


# A configuration makes only what the types of flags allow: no class of its own choice as an `Any`.
set_parsing_settings(instantiate_subclass_spec_in_any=False)
set_loader("fnloop", yaml_dialect.load_flag, exceptions=(YAMLError,))
set_dumper("fnloop", yaml_dialect.dump)


class _Parser(ArgumentParser):
    """Raises errors in arguments and does not print them; reads no environment variables."""

    def __init__(self, **options: Any) -> None:
        own: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
        own |= {"parser_mode": "fnloop", "formatter_class": HelpFormatter}
        given: dict[str, Any] = own | options  # jsonargparse makes more of its kind
        super().__init__(**given)

    @property
    def default_env(self) -> bool:
        return False

    @default_env.setter
    def default_env(self, default_env: bool) -> None:  # JSONARGPARSE_DEFAULT_ENV would turn it on
        self._default_env = False
