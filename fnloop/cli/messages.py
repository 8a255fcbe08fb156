"""Error messages for the terminal."""

from __future__ import annotations

import difflib
import linecache
import re
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fnloop.names.whose import LEFT_OUT, is_fnloop, is_users

OWN = re.compile(r"\b_recipe_\w+\.")
"""The module that `load_function` makes of a recipe's file, in a dotted path: left out of texts."""


class Problem(Exception):
    """An error that is shown to the user without a traceback.

    Args:
        message: What is wrong and what to do.
        code: The process's exit code: 1, or 2 for a wrong command line.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def usage(message: str) -> Problem:
    """A `Problem` with the command line: exit code 2."""
    return Problem(message, code=2)


def describe(error: BaseException) -> str:
    """An exception as text: its message, and the innermost line of the user's code."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if fault := getattr(error, "fault", ""):  # a checkpoint's; its fix is an argument of Python
        text = fault.replace("`like`", "the recipe").replace("  like\n", "  the recipe\n")
    frames = traceback.extract_tb(error.__traceback__)
    if not text or not (frames and is_fnloop(frames[-1].filename)):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        # Its own text would name the line a second time.
        place = f"{shown(Path(error.filename))}:{error.lineno}"
        return f"{type(error).__name__}: {error.msg}\n  {place}\n    {(error.text or '').strip()}"
    own = [frame for frame in frames if is_users(frame.filename)]
    if own:
        line = linecache.getline(own[-1].filename, own[-1].lineno or 0).strip()
        place = f"{shown(Path(own[-1].filename))}:{own[-1].lineno}, in {own[-1].name}"
        text += f"\n  {place}" + (f"\n    {line}" if line else "")
    # What fnloop knows of the error; the state is of no use here, and there is no traceback.
    notes = [note for note in getattr(error, "__notes__", ()) if note.startswith("fnloop: ")]
    told = [
        note.removeprefix("fnloop: ")
        for note in notes
        if not ("error.state" in note or LEFT_OUT in note)
    ]
    return "\n".join([text, *told])


def shown(path: Path) -> str:
    """A path as text: relative if it is below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd())) or "."
    except ValueError:
        return str(path)


def printable(text: str) -> str:
    """Text from a file with control characters escaped, safe for a terminal.

    >>> print(printable("a" + chr(27) + "[2J"))
    a\\x1b[2J
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def did_you_mean(word: str, known: Iterable[str], written: Callable[[str], str] = str) -> str:
    """What was probably meant, as a sentence of a message; nothing if nothing is close.

    Args:
        word: What was given.
        known: What there is.
        written: How one of these is written in the message.

    >>> did_you_mean("stag", ["stage", "effect"]), did_you_mean("x", ["stage"])
    (' Did you mean stage?', '')
    """
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {written(close[0])}?" if close else ""


def value_text(value: Any) -> str:
    """A flag's value as text; a class that was chosen, as its call.

    >>> value_text({"class_path": "Net", "init_args": {"width": 16}}), value_text([0.1, "a"])
    ('Net(width=16)', "[0.1, 'a']")
    """
    if isinstance(value, dict) and "class_path" in value:
        if "init_args" not in value:
            return str(value["class_path"])
        own = value.get("init_args") or {}
        arguments = [f"{name}={value_text(each)}" for name, each in own.items()]
        return f"{value['class_path']}({', '.join(arguments)})"
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        return f"[{', '.join(map(value_text, value))}]"
    return str(value)
