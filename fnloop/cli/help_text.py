"""How the help of a command is laid out."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from argparse import SUPPRESS, Action
from typing import Any

from jsonargparse import DefaultHelpFormatter, Namespace

from fnloop.cli.commands import COMMANDS
from fnloop.cli.messages import OWN, value_text


class HelpFormatter(DefaultHelpFormatter):
    """Tells type and default of a flag in the words of its recipe."""

    def _get_help_string(self, action: Action) -> str:
        kind = self._get_type_str(action)
        whole = getattr(action, "_jsonargparse_preexpanded_help", False)  # it was called before
        own = action.default == SUPPRESS and not action.required  # one of the command's options
        if kind is None or whole or own or not action.option_strings:
            return action.help or ""
        told = ["required"] if action.required else []
        if kind != "Any":
            told.append(re.sub("<class '(.*?)'>", r"\1", f"type: {kind}"))
        if not action.required:
            told.append(f"default: {_default_text(action)}")
        if getattr(action, "asks_for_class", False):
            told.append(f"see {action.option_strings[0]}.help")
        return f"{action.help or ''} ({', '.join(told)})".strip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.fill(text, width, break_on_hyphens=False)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def overview() -> str:
    """What ``fnloop --help`` shows."""
    rows = {**COMMANDS, "--version": "Print the version."}
    width = max(map(len, rows)) + 4
    indent = " " * width
    lines = [
        textwrap.fill(
            f"  {name}".ljust(width) + text,
            _width(),
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        for name, text in rows.items()
    ]
    return "\n".join(
        [
            "usage: fnloop COMMAND ...",
            "",
            "Train, evaluate and look at runs. More on each: fnloop COMMAND --help",
            "",
            *lines,
        ]
    )


def wrapped_usage(command: str, arguments: str) -> str:
    """The usage of a command, broken between its arguments, as wide as the terminal."""
    words, depth = [""], 0
    for letter in arguments:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == " " and not depth:
            words.append("")
        else:
            words[-1] += letter
    start = f"fnloop {command} "
    text = textwrap.fill(
        start + " ".join(word.replace(" ", "\0") for word in words),
        _width() - len("usage: "),
        subsequent_indent=" " * len(f"usage: {start}"),
        break_on_hyphens=False,
    )
    return text.replace("\0", " ")


def _width() -> int:
    return shutil.get_terminal_size().columns - 2


def first_paragraph(made: Any) -> str | None:
    """How a docstring begins; None if there is none."""
    return " ".join((inspect.getdoc(made) or "").partition("\n\n")[0].split()) or None


def _default_text(action: Any) -> str:
    """A default as it would be given."""
    value: Any = getattr(action, "default_words", action.default)
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, type):
        value = f"{value.__module__}.{value.__qualname__}"
    return OWN.sub("", "null" if value is None else value_text(value))
