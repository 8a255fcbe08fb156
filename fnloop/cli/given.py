"""A recipe on the command line, and its flags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser

from fnloop.cli import parsers
from fnloop.cli.commands import YIELDING
from fnloop.cli.flags import Flags, configs_in, parse, recipe_in
from fnloop.cli.messages import shown, usage
from fnloop.cli.recipe import Recipe
from fnloop.cli.source import build, load_function, parameters

_PICTURES = (".png", ".pdf", ".svg")

Taking = Callable[[Callable[..., Any], Sequence[str]], Sequence[str]]
"""Of the function ``recipe`` and the arguments: those that are left to be parsed."""


class Given(NamedTuple):
    """A recipe on the command line.

    Attributes:
        file: Its file.
        function: The function ``recipe`` in it.
        parser: Of the command, with its flags.
        arguments: Those that were parsed.
        flags: Its flags.
    """

    file: Path
    function: Callable[..., Any]
    parser: ArgumentParser
    arguments: Sequence[str]
    flags: Flags

    def over(self, configuration: Path) -> Flags:
        """Its flags, over those of a configuration."""
        arguments = ["--config", str(configuration), *self.arguments]
        return parse(self.parser, self.function, arguments, self.file)

    def recipe(self, **changes: Any) -> Recipe:
        """What it returns, for other values of some flags, and of those that refer to them.

        Args:
            changes: Values by flag, or by the argument of a class: ``optimizer.lr``.
        """
        flags = self.flags
        if any(name in flags.sources or "." in name for name in changes):
            more = [f"--{name}={value}" for name, value in changes.items()]
            flags = parse(self.parser, self.function, [*self.arguments, *more], self.file)
        own = {name: value for name, value in changes.items() if "." not in name}
        return build(self.function, self.file, {**flags.values, **own})

    def picture(self) -> str | None:
        """The file that ``--plot`` names.

        Raises:
            Problem: It is none that can be drawn to.
        """
        return pictured(self.flags.options.get("plot"))


def pictured(plot: str | None) -> str | None:
    """The file that ``--plot`` names.

    Raises:
        Problem: It is none that can be drawn to.
    """
    if plot is not None and Path(plot).suffix not in _PICTURES:
        raise usage(f"--plot {plot}: expected a file called {', '.join(_PICTURES)}.")
    return plot


def given_in(command: str, arguments: Sequence[str], take: Taking | None = None) -> Given:
    """The recipe and its flags among the arguments of a command.

    Args:
        command: Its name.
        arguments: As on the command line.
        take: Takes out what is not to be parsed.

    Raises:
        Problem: There is none, or a flag has the name of an option.
    """
    named, rest = recipe_in(arguments)
    files = [Path(named)] if named else [c.recipe() for c in reversed(configs_in(rest))]
    file = next(filter(None, files), None)
    if file is None:
        raise usage(f"Which recipe? fnloop {command} RECIPE.py, or --config of a run.")
    function = load_function(file)
    taken = [o[2:] for action in parsers.of(command)._actions for o in action.option_strings]
    yielding = YIELDING.get(command, {})
    if both := [n for n in parameters(function) if n in taken and n not in yielding]:
        raise usage(
            f"recipe() in {shown(file)} has a parameter {both[0]!r}, and --{both[0]} is an option "
            f"of fnloop {command}. Give the parameter another name."
        )
    left = rest if take is None else take(function, rest)
    parser = parsers.of(command, function, file.name)
    arguments = [str(file), *left]
    return Given(file, function, parser, arguments, parse(parser, function, arguments, file))
