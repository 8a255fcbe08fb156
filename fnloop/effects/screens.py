"""Where somebody can see what is printed now: a terminal, or a notebook."""

from __future__ import annotations

import html
import os
import sys
from typing import Any, Protocol, TextIO

_NOTEBOOK_COLUMNS = 110
_NOTEBOOK_LINES = 200


class Screen(Protocol):
    """Lines that stay, and below them one that changes."""

    @property
    def columns(self) -> int:
        """How many characters fit into a line."""
        ...

    def draw(self, line: str) -> None:
        """Show `line` in place of the one that changes."""

    def keep(self, line: str) -> None:
        """Show a line that stays, in place of the one that changes."""


def screen(file: TextIO | None = None) -> Screen | None:
    """The screen that somebody looks at; None if there is none, as in a pipe, a file or a CI log.

    Args:
        file: Where to write; default ``sys.stderr``, or the notebook.
    """
    if file is None and in_notebook():
        return Notebook()
    chosen: Any = sys.stderr if file is None else file
    if chosen is sys.stderr and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        return None
    try:
        seen = chosen.isatty()
    except (AttributeError, ValueError):  # no stream, or a closed one
        return None
    return Terminal(chosen) if seen and os.environ.get("TERM") != "dumb" else None


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Colab has its own


class Terminal:
    """A terminal; the line that changes is written over."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._drawn = 0  # characters of the line that changes

    @property
    def columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._file.fileno()).columns
        except (AttributeError, ValueError, OSError):
            columns = 0
        # One less: a terminal goes to the next line when the last column is written.
        return (columns or 80) - 1

    def draw(self, line: str) -> None:
        self._write("\r" + line + " " * (self._drawn - len(line)))
        self._drawn = len(line)

    def keep(self, line: str) -> None:
        start = "\r" if self._drawn else ""
        self._write(start + line + " " * (self._drawn - len(line)) + "\n")
        self._drawn = 0

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except UnicodeEncodeError:  # a terminal without the bar's characters
            self._file.write(text.replace("━", "#").replace("─", "-"))
        self._file.flush()


class Notebook:
    """A cell's output, which is replaced as a whole."""

    columns = _NOTEBOOK_COLUMNS

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._left_out = 0
        self._handle: Any = None

    def draw(self, line: str) -> None:
        self._show(line)

    def keep(self, line: str) -> None:
        self._kept.append(line)
        if len(self._kept) > _NOTEBOOK_LINES:
            self._left_out += 1
            del self._kept[0]
        self._show("")

    def _show(self, line: str) -> None:
        from IPython.display import (  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
            display,
        )

        first = [f"({self._left_out} earlier lines)"] if self._left_out else []
        shown = _Text("\n".join([*first, *self._kept, *([line] if line else [])]))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


class _Text:
    """Text in a notebook, in letters of one width."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        style = "margin: 0; font-family: monospace; white-space: pre; overflow-x: auto"
        return f'<pre style="{style}">{html.escape(self._text)}</pre>'
