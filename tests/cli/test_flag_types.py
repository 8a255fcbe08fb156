"""A flag has the value that was given, from the command line and from the configuration alike."""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fnloop.cli import config, parsers
from fnloop.cli.flag_types import UNFIT, fits, read
from fnloop.cli.flags import Flags, parse
from fnloop.cli.messages import Problem


def recipe(
    text: str = "x",
    maybe: str | None = None,
    either: int | str = 1,
    number: float | None = None,
    count: int = 1,
    word: Literal["3e5", "on", 1] = "on",
    some: list[str] | None = None,
    named: dict[str, str | None] | None = None,
    anything: Any = None,
    path: pathlib.Path = pathlib.Path("x"),
    place: pathlib.Path | None = None,
    pair: tuple[str, int] = ("a", 1),
) -> None: ...


def parsed(*arguments: str) -> Flags:
    return parse(
        parsers.of("fit", recipe, "r.py"), recipe, ["r.py", *arguments], pathlib.Path("r.py")
    )


def read_again(plain: dict[str, Any]) -> Flags:
    """The flags, from the configuration that is written for them."""
    with tempfile.TemporaryDirectory() as folder:
        config.write(pathlib.Path(folder) / "r.py", plain, pathlib.Path(folder))
        return parsed("--config", str(pathlib.Path(folder) / config.NAME))


ODD = [
    "3e563",
    "1e-3",
    "010",
    "0x10",
    "on",
    "null",
    "~",
    "1_000",
    ".inf",
    "nan",
    "12:30",
    "2024-01-01",
]
ODD += [
    "",
    "a: b",
    "a #b",
    "\u2028",
    "\x85",
    "true",
    "[1]",
    "'q'",
    "- a",
    "*a",
    "&a",
    "٣",
    "²",
    "1.5",
]
texts = st.text().filter(lambda text: text != "--") | st.sampled_from(ODD)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    texts,
    texts,
    texts | st.integers(),
    st.lists(texts, max_size=3),
    plain,
    st.floats(allow_nan=False),
)
def test_configurations_give_back_what_was_written(
    text: str, maybe: str, either: Any, some: list[str], anything: Any, number: float
) -> None:
    given = {"text": text, "maybe": maybe, "either": either, "some": some, "number": number}
    given |= {"anything": anything, "named": dict.fromkeys(some, maybe)}
    flags = read_again({**parsed().plain, **given})
    assert {name: flags.values[name] for name in given} == given
    assert {name: flags.plain[name] for name in given} == given
    assert repr(flags.values["anything"]) == repr(anything)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(texts)
def test_a_text_on_the_command_line_is_that_text(text: str) -> None:
    flags = parsed(f"--text={text}")
    assert flags.values["text"] == flags.plain["text"] == text
    assert read_again(flags.plain).values == flags.values


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_flags_of_every_type_are_refused_or_read_back(text: str) -> None:
    for name in ("text", "maybe", "either", "number", "count", "word", "anything", "path"):
        try:
            flags = parsed(f"--{name}={text}")
        except Problem as refused:
            assert f"--{name} takes" in str(refused) and name in ("number", "count", "word")
            continue
        again = read_again(flags.plain)
        assert repr(again.values) == repr(flags.values) and repr(again.plain) == repr(flags.plain)


LOST = ["#7", "", "---", "~", "Null", "5 # c", "a #b", "&a", "!!str 5", "None", "a\nb", "%x"]
"""Texts that a document of YAML would lose, or a part of them."""


@pytest.mark.parametrize("text", LOST, ids=ascii)
def test_only_the_word_null_is_none_on_the_command_line(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUN_MAYBE", text)
    values = parsed("--env", "RUN", f"--either={text}", f"--place={text}", f"--anything={text}")
    expected = {"maybe": text, "either": text, "place": pathlib.Path(text), "anything": text}
    assert {name: values.values[name] for name in expected} == expected
    values = parsed("--maybe", "null", "--place", "null", "--anything", "null")
    assert [values.values[name] for name in ("maybe", "place", "anything")] == [None] * 3
    with pytest.raises(Problem, match=r"--some takes list\[str\] \| None, got"):
        parsed(f"--some={text}")


def test_numbers_are_read_in_one_dialect() -> None:
    assert read("010", int) == 10 and read("12:30", int) is UNFIT and read("1_000", int) is UNFIT
    assert read("12:30", int | str) == "12:30" and read("5", int | str) == 5
    assert read("1", float) == 1.0 and isinstance(read("1", float), float)
    assert read("null", str | None) is None and read("null", str) == "null"
    assert not fits(True, int) and not fits(1, bool) and fits([1, None], list[int | None])
    for value in ("12:30", "1_000", "0b1", "1.0", "true"):
        with pytest.raises(Problem, match="--count takes int, got"):
            parsed("--count", value)


def test_a_number_for_a_text_says_to_quote_it(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.yaml").write_text("count: 2\ntext: 3e563\n")
    with pytest.raises(Problem, match=r'a.yaml:2: text takes str, .* quotes: text: "3e563"'):
        parsed("--config", str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text('text: "3e563"\nmaybe: "null"\ncount: 010\n')
    values = parsed("--config", str(tmp_path / "a.yaml")).values
    assert (values["text"], values["maybe"], values["count"]) == ("3e563", "null", 10)


def test_null_is_refused_where_the_type_has_none(tmp_path: pathlib.Path) -> None:
    given = {"text": "str", "either": "int | str", "count": "int", "path": "Path"}
    given |= {"pair": "tuple[str, int]", "word": "Literal['3e5', 'on', 1]", "some": ""}
    given |= dict.fromkeys(("maybe", "number", "named", "anything", "place"), "")
    for name, kind in given.items():
        (tmp_path / "a.yaml").write_text(f"# mine\n{name}: null\n")
        arguments = ("--config", str(tmp_path / "a.yaml"))
        if not kind:
            assert parsed(*arguments).values[name] is None
            continue
        with pytest.raises(Problem) as refused:
            parsed(*arguments)
        assert str(refused.value).endswith(f"a.yaml:2: {name} takes {kind}, got null.")
    (tmp_path / "a.yaml").write_text("some: [a, null]\n")
    with pytest.raises(Problem, match=r"a.yaml:1: some takes list\[str\] \| None, got "):
        parsed("--config", str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("pair: [null, 1]\n")
    with pytest.raises(Problem, match=r"a.yaml:1: pair takes tuple\[str, int\], got null\."):
        parsed("--config", str(tmp_path / "a.yaml"))


def test_the_command_line_wins_over_the_configuration(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.yaml").write_text("some: [a]\nmaybe: b\nanything: 1\n")
    flags = parsed("--config", str(tmp_path / "a.yaml"), "--some+=c", "--maybe=d", "--anything=2")
    assert flags.values["some"] == ["a", "c"] and flags.values["maybe"] == "d"
    assert flags.values["anything"] == 2
