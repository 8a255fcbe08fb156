"""One dialect of YAML is written and read, and what is read is bounded."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fnloop.cli import yaml_dialect

ODD = [
    *(
        "3e563",
        "1e-3",
        "010",
        "0x10",
        "0o17",
        "on",
        "off",
        "yes",
        "null",
        "~",
        "1_000",
        ".inf",
        "nan",
    ),
    *("2024-01-01", "12:30:45", "", " ", "a: b", "a #b", "#", "- a", "*a", "&a", "!t", "%x", "@x"),
    *(
        "\u2028",
        "\u2029",
        "\x85",
        "\ufeff",
        "\x00",
        "\x7f",
        "\udc80",
        "\U0001f600",
        "a\nb",
        "a\r\n",
    ),
    *(
        "true",
        "False",
        "[1]",
        "{a: 1}",
        "'q'",
        '"q"',
        "`",
        "=",
        "<<",
        "?",
        "|",
        ">",
        "---",
        "...",
        "\t",
    ),
]
texts = st.one_of(
    st.text(), st.sampled_from(ODD), st.from_regex(r"[-+]?[0-9._eExo:]+", fullmatch=True)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(values)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert repr(yaml_dialect.load(yaml_dialect.dump(value))) == repr(value)


@pytest.mark.parametrize("text", ODD, ids=ascii)
def test_odd_texts_are_read_back(text: str) -> None:
    for value in (text, [text], {text: text}):
        assert yaml_dialect.load(yaml_dialect.dump(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("010", 10),
            ("0x10", 16),
            ("0o17", 15),
            ("+1", 1),
            ("-0", 0),
            ("1e-3", 0.001),
            ("1.", 1.0),
        ),
        *(
            (".5", 0.5),
            ("1E3", 1000.0),
            (".inf", math.inf),
            ("-.INF", -math.inf),
            ("3e563", math.inf),
        ),
        *(("1_000", "1_000"), ("on", "on"), ("Yes", "Yes"), ("12:30", "12:30"), ("nan", "nan")),
        *(("2024-01-01", "2024-01-01"), ("~", None), ("", None), ("Null", None), ("TRUE", True)),
        *(("0b1", "0b1"), ("1e", "1e"), ("tRue", "tRue"), ("'010'", "010"), ("<<", "<<")),
    ],
)
def test_the_core_schema(text: str, value: Any) -> None:
    assert repr(yaml_dialect.load(f"a: {text}")) == repr({"a": value})


def test_nan_is_a_number() -> None:
    assert math.isnan(yaml_dialect.load(yaml_dialect.dump(math.nan)))


REFUSED = {
    "a: 1\nb: 2\na: 3": r"'a' is given twice, in lines 1 and 3",
    "a:\n  x: 1\n  x: 2": r"'x' is given twice, in lines 2 and 3",
    "{1: a, 1: b}": "1 is given twice",
    "a: &a [*a]": "contains itself",
    "a: !!python/object/apply:os.system [x]": "tag .*os.system is not read",
    "a: !!binary aGk=": "tag .*binary is not read",
    "a: !!timestamp 2024-01-01": "tag .*timestamp is not read",
    "a: !!int x": "no integer",
    "a: " + "9" * 5000: "no integer that can be read",
    "? [a]\n: 1": "a key is a list",
    "a: *b": "undefined alias",
    "[" * 100_000: "levels",
    "{a: " * 2_000: "levels",
    "- " * 2_000: "levels",
    "[" + "1," * 20_000 + "]": "10,000 values",
    "x" * (1 << 21): "characters",
    "a: &a [&b [" + "*b," * 2 + "]]": "contains itself",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:20]))
def test_what_is_refused_is_refused_at_once(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(yaml.YAMLError, match=REFUSED[text]):
        yaml_dialect.load(text)
    assert time.perf_counter() - began < 10  # it takes a second at most


def test_aliases_count_as_what_they_stand_for() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 9):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    with pytest.raises(yaml.YAMLError, match="each alias counts"):
        yaml_dialect.load("\n".join(lines))
    chain = ["a0: &a0 [1]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 3000))]
    with pytest.raises(yaml.YAMLError, match="levels"):
        yaml_dialect.load("\n".join(chain))
    assert yaml_dialect.load("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


def test_the_lines_and_texts_of_entries() -> None:
    value, entries = yaml_dialect.load_with_lines("# mine\na: 010\n\nb: [1]\n")
    assert value == {"a": 10, "b": [1]} and entries["a"] == (2, "010") and entries["b"][0] == 4
    _, entries = yaml_dialect.load_with_lines("a:\n\n  b:\n    - c: 1\n    -\n      d: 2\n")
    found = {path: line for path, (line, _) in entries.items()}
    assert found == {"a": 1, "a.b": 3, "a.b.0": 4, "a.b.0.c": 4, "a.b.1": 6, "a.b.1.d": 6}
