"""The parsers of the commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from jsonargparse import ArgumentParser, set_dumper, set_loader, set_parsing_settings
from yaml import YAMLError

from fnloop.cli import yaml_dialect
from fnloop.cli.commands import COMMANDS, USAGE, WITH_RECIPES, YIELDING
from fnloop.cli.options import OPTIONS, switch, yielding


def top() -> ArgumentParser:
    """The parser of ``fnloop`` without a command, for its help."""
    parser = _Parser(
        prog="fnloop",
        description="Train, evaluate and look at runs. More on each: fnloop COMMAND --help",
    )
    commands = parser.add_subcommands(
        required=False, metavar="COMMAND", title="commands", description=None
    )
    for name, help in COMMANDS.items():
        commands.add_subcommand(name, _Parser(), help=help)
    switch(parser, "--version", "print the version")
    return parser


def of(
    command: str, recipe: Callable[..., Any] | None = None, file: str = "RECIPE.py"
) -> ArgumentParser:
    """The parser of a command, with the flags of `recipe` if given."""
    parser = _Parser(
        prog=f"fnloop {command}",
        usage=f"fnloop {command} {USAGE[command]}",
        description=COMMANDS[command],
        print_config=None,
    )
    OPTIONS[command](parser)
    switch(parser, "--traceback", "show an error's whole traceback")
    if recipe is not None:
        for name in YIELDING.get(command, {}).keys() - inspect.signature(recipe).parameters.keys():
            yielding(parser, command, name)
        group = parser.add_argument_group(f"flags of {file}")
        group.add_function_arguments(recipe, as_group=False)
        for action in parser._actions:
            _quiet(action)
        parser.set_defaults(dict(_numpy_defaults(recipe)))
        return parser
    for name in YIELDING.get(command, ()):
        yielding(parser, command, name)
    if command in WITH_RECIPES:
        own = f"For its flags: fnloop {command} RECIPE.py --help"
        parser.description = f"{parser.description} {own}"
    return parser


def _quiet(action: Any) -> None:
    """Leave out of the help the list of all classes that can be chosen: hundreds for a module."""
    if hasattr(action, "extra_help"):
        action.extra_help = lambda: ""


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


# A configuration makes only what the types of flags allow: no class of its own choice as an `Any`.
set_parsing_settings(instantiate_subclass_spec_in_any=False)
set_loader("fnloop", yaml_dialect.load, exceptions=(YAMLError,))
set_dumper("fnloop", yaml_dialect.dump)


class _Parser(ArgumentParser):
    """Raises errors in arguments and does not print them; reads no environment variables."""

    def __init__(self, **options: Any) -> None:
        own = {"exit_on_error": False, "allow_abbrev": False, "parser_mode": "fnloop"}
        given: dict[str, Any] = own | options  # jsonargparse makes more of its kind
        super().__init__(**given)

    @property
    def default_env(self) -> bool:
        return False

    @default_env.setter
    def default_env(self, default_env: bool) -> None:  # JSONARGPARSE_DEFAULT_ENV would turn it on
        self._default_env = False
