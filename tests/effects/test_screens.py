"""Where somebody can see what is printed."""

from __future__ import annotations

import io
import os
import sys

import pytest

from fnloop.effects.screens import Terminal, screen


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_is_seen_and_a_file_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(screen(Tty()), Terminal) and screen(io.StringIO()) is None
    monkeypatch.setattr(sys, "stderr", Tty())
    assert isinstance(screen(), Terminal)
    monkeypatch.setattr(sys, "stderr", None)  # pythonw has no streams
    assert screen() is None


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [("CI", "true", False), ("CI", "1", False), ("CI", "", True), ("TERM", "dumb", False)],
)
def test_a_ci_log_is_no_screen_even_with_a_terminal(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, seen: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", Tty())
    monkeypatch.setenv(name, value)
    assert (screen() is not None) == seen


def test_the_width_is_that_of_the_terminal_which_is_written_to() -> None:
    own, other = os.openpty()
    os.set_blocking(own, False)
    with os.fdopen(other, "w") as file:
        import fcntl
        import struct
        import termios

        terminal = screen(file)
        assert terminal is not None
        for columns, expected in ((120, 119), (80, 79), (0, 79)):
            fcntl.ioctl(file, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            assert terminal.columns == expected
    os.close(own)


def test_a_shorter_line_covers_a_longer_one() -> None:
    out = Tty()
    terminal = Terminal(out)
    terminal.draw("a longer line")
    terminal.draw("short")
    terminal.keep("kept")
    terminal.keep("next")
    assert out.getvalue() == "\ra longer line\rshort        \rkept \nnext\n"


def test_letters_that_a_terminal_does_not_have_are_replaced() -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(file).draw("━━─")
    assert raw.getvalue() == b"\r##-"
