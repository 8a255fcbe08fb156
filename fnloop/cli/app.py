"""The entry point of ``fnloop``: parse the command line, run a command, return an exit code."""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fnloop.cli.isolation import forget
from fnloop.cli.many import launch, processes_in, speaker, speaks
from fnloop.cli.messages import Problem, describe, did_you_mean, shown, usage
from fnloop.names.whose import is_fnloop

# Imported when called: importing torch takes seconds, and help does not need it. This module itself
# imports nothing that does.
_MODULES = {
    "fit": "fnloop.cli.fit_command",
    "resume": "fnloop.cli.fit_command",
    "validate": "fnloop.cli.evaluate_command",
    "test": "fnloop.cli.evaluate_command",
    "predict": "fnloop.cli.evaluate_command",
    "completion": "fnloop.cli.completion_command",
    "runs": "fnloop.cli.runs_command",
    "show": "fnloop.cli.show_command",
    "diff": "fnloop.cli.diff_command",
    "replay": "fnloop.cli.replay_command",
    "export": "fnloop.cli.export_command",
    "summary": "fnloop.cli.summary_command",
    "sweep": "fnloop.cli.sweep_command",
    "profile": "fnloop.cli.profile_command",
    "find-lr": "fnloop.cli.tune_command",
    "find-batch-size": "fnloop.cli.tune_command",
    "new": "fnloop.cli.new_command",
}
_WITH_FLAGS = ("completion", "summary", "sweep", "profile", "find-lr", "find-batch-size")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of ``fnloop``.

    Args:
        arguments: As on the command line, without the program's name; default ``sys.argv[1:]``.

    Returns:
        The exit code: 0; 1 if something failed; 2 for a wrong command line or configuration; 130
        for Ctrl-C, even if the run was closed properly.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    whole = "--traceback" in given
    given = [argument for argument in given if argument != "--traceback"]
    name = f"fnloop {given[0]}" if given and given[0] in _MODULES else "fnloop"
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _run(given, whole)
        except SystemExit as leaving:  # --help, or the recipe's own
            return _code(leaving)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of the pipe has exited
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            _tell_ranks(error)
            expected = isinstance(error, Problem)
            if not speaks(error):
                return error.code if expected else 1
            if whole:
                traceback.print_exc()
            text = str(error) if expected else describe(error)
            more = not whole and (not expected or error.__cause__ is not None)
            hint = "\n(--traceback shows where it happened)" if more else ""
            who = name + speaker(error)
            print(f"{who}: {text}{hint}", file=sys.stderr)
            return error.code if expected else 1
        finally:
            forget()


def _run(given: list[str], whole: bool) -> int:
    if not given or given[0] in ("-h", "--help"):
        from fnloop.cli.help_text import overview

        print(overview(), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    command, *rest = given
    if command == "--version":
        print(f"fnloop {import_module('fnloop').__version__}")
        return 0
    if command not in _MODULES:
        raise usage(_unknown(command))
    rest = _joined_numbers(rest)
    helps = rest[:1] in (["-h"], ["--help"])
    if command in ("fit", "resume") and not helps:
        count, rest = processes_in(rest)
        if count is not None and count > 1:
            return launch(count, [command, *rest, *(["--traceback"] if whole else [])])
    if not helps and command != "completion" and sys.stderr.isatty():
        print(f"fnloop {shlex.join(given)}: importing PyTorch", file=sys.stderr, flush=True)
    from fnloop.cli import parsers
    from fnloop.cli.flags import parse_plain

    if helps:
        parsers.of(command).print_help()
        return 0
    if command in ("fit", "resume"):
        return _trained(command, rest)
    if command in _WITH_FLAGS:
        return _function(command)(rest)
    return _function(command)(parse_plain(parsers.of(command), rest))


def _joined_numbers(arguments: Sequence[str]) -> list[str]:
    """The arguments with negative numbers after ``=``: argparse takes some of them for options.

    >>> _joined_numbers(["--lr", "-1e-3", "--shift", "-2,-1", "--name", "-x", "--early"])
    ['--lr=-1e-3', '--shift=-2,-1', '--name', '-x', '--early']
    """
    joined = list[str]()
    for token in arguments:
        if joined and _FLAG.fullmatch(joined[-1]) and _NEGATIVE.fullmatch(token):
            joined[-1] += f"={token}"
        else:
            joined.append(token)
    return joined


_FLAG = re.compile(r"--[^=]+")
_NEGATIVE = re.compile(r"-\.?(\d.*|inf|nan)", re.DOTALL | re.IGNORECASE)


def _trained(command: str, arguments: list[str]) -> int:
    rest = [argument for argument in arguments if argument != "--deterministic"]
    if rest == arguments:
        return _function(command)(rest)
    from fnloop.loop.deterministic import deterministic

    with deterministic():  # before the recipe is imported, which may use a GPU
        return _function(command)(rest)


def _tell_ranks(error: Exception) -> None:
    """Note an error for the other processes, which else would only find this one gone."""
    if "fnloop.distributed.mesh" in sys.modules:
        from fnloop.distributed.farewell import tell

        tell(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def _function(command: str) -> Any:
    return getattr(import_module(_MODULES[command]), f"run_{command.replace('-', '_')}")


def _unknown(command: str) -> str:
    if command.endswith(".py"):
        return f"{command} is a recipe, and no command. To train it: fnloop fit {command}"
    hint = did_you_mean(command, [*_MODULES, "--help", "--version"])
    return f"There is no command {command!r}.{hint} There are: {', '.join(_MODULES)}."


def _code(leaving: SystemExit) -> int:
    if isinstance(leaving.code, str):
        print(leaving.code, file=sys.stderr)
        return 1
    return leaving.code or 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any
) -> None:
    place = "" if is_fnloop(filename) else f" ({shown(Path(filename))}:{lineno})"
    print(f"warning: {message}{place}", file=sys.stderr)
