"""One dialect of YAML for all that the command line reads and writes: the core schema of YAML 1.2.

Numbers are decimal (``010`` is ten) unless they begin with ``0x`` or ``0o``; ``1e-3`` is a number;
``true``, ``false`` and ``null`` are the only words. There are no dates, no ``on`` and ``off``, no
``1_000``, no merge keys: all of them are text. Other tags are refused. What is written is quoted
where it would be read as something else.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"
LONGEST = 1 << 20  # characters
_DEEPEST, _MOST = 32, 10_000
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


_RESOLVERS = {
    first: [
        (_TAG + name, re.compile(f"^(?:{pattern})$"))
        for name, (pattern, firsts) in _SCALARS.items()
        if first in firsts
    ]
    for first in {first for _, firsts in _SCALARS.values() for first in firsts}
}


class _Refused(yaml.MarkedYAMLError):
    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS
    yaml_constructors: ClassVar[dict[Any, Any]] = {}  # pyright: ignore

    def construct_document(self, node: Any) -> Any:
        _measure(node, {})
        return super().construct_document(node)

    def read_text(self, node: Any) -> str:
        return str(node.value)

    def read_null(self, node: Any) -> None:
        return None

    def read_bool(self, node: Any) -> bool:
        return str(node.value).lower() == "true"

    def read_int(self, node: Any) -> int:
        text = str(node.value)
        try:
            return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
        except ValueError:  # Python reads at most 4300 digits; or the tag is written out
            raise _Refused(f"{text[:40]} is no integer that can be read", node.start_mark) from None

    def read_float(self, node: Any) -> float:
        text = str(node.value)
        try:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _Refused(f"{text[:40]} is no number", node.start_mark) from None

    def read_list(self, node: Any) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def read_mapping(self, node: Any) -> dict[Any, Any]:
        found, lines = dict[Any, Any](), dict[Any, int]()
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _Refused("a key is a list or a mapping", mark)
            if key in lines:
                both = f"lines {lines[key]} and {mark.line + 1}"
                raise _Refused(f"{key!r} is given twice, in {both}", mark)
            lines[key] = mark.line + 1
            found[key] = self.construct_object(value_node, deep=True)
        return found

    def read_unknown(self, node: Any) -> Any:
        raise _Refused(f"the tag {node.tag} is not read", node.start_mark)


for _tag, _read in {
    _TAG + "str": _Loader.read_text,
    _TAG + "null": _Loader.read_null,
    _TAG + "bool": _Loader.read_bool,
    _TAG + "int": _Loader.read_int,
    _TAG + "float": _Loader.read_float,
    _TAG + "seq": _Loader.read_list,
    _TAG + "map": _Loader.read_mapping,
    None: _Loader.read_unknown,
}.items():
    _Loader.add_constructor(_tag, _read)  # type: ignore[type-var]  # pyright: ignore


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def write_text(self, text: str) -> Any:
        # PyYAML folds line separators of Unicode away, unless the text is in double quotes.
        return self.represent_scalar(_TAG + "str", text, None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.write_text)


def load(text: str) -> Any:
    """The value of a document.

    Raises:
        yaml.YAMLError: It is malformed; a mapping has a key twice; a tag is unknown; or it is too
            large or too deep, also through aliases.
    """
    return _loaded(text)[0]


def load_flag(text: str) -> Any:
    """The value that a text has on the command line: what is not one value as a whole is text.

    So is what begins with ``#`` or ends in a comment, and what `load` refuses. Nothing is written
    ``null``, and in no other way.

    >>> load_flag("5"), load_flag("null"), load_flag("[1, null]"), load_flag("[1")
    (5, None, [1, None], '[1')
    >>> load_flag("#7"), load_flag("5 # c"), load_flag("~"), load_flag("")
    ('#7', '5 # c', '~', '')
    """
    try:
        value, node = _loaded(text)
    except yaml.YAMLError:
        return text
    if isinstance(node, yaml.CollectionNode):
        return value
    whole = text.strip()
    if value is None:
        return None if whole == "null" else text
    return value if node.value == whole else text


def load_with_lines(text: str) -> tuple[Any, dict[str, tuple[int, str]]]:
    """The value of a document; and for each entry in it the line and what is written there.

    Entries go by their paths, items of lists by their numbers: ``model.widths.0``. Nothing but a
    number, a word or a text is written in so many words.

    Raises:
        yaml.YAMLError: As `load`.
    """
    value, node = _loaded(text)
    return value, dict(_entries(node))


def dump(value: Any) -> str:
    """A document of plain values that `load` reads back as they are.

    Raises:
        yaml.YAMLError: A value is not plain.
    """
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=1 << 20,
    )


def _entries(node: Any, before: str = "") -> Iterator[tuple[str, tuple[int, str]]]:
    below = list[tuple[str, Any, Any]]()
    if isinstance(node, yaml.MappingNode):
        below = [(str(key.value), key, entry) for key, entry in node.value]
    elif isinstance(node, yaml.SequenceNode):
        below = [(str(i), item, item) for i, item in enumerate(node.value)]
    for name, first, entry in below:
        written = entry.value if isinstance(entry, yaml.ScalarNode) else ""
        yield before + name, (first.start_mark.line + 1, str(written))
        yield from _entries(entry, f"{before}{name}.")


def _loaded(text: str) -> tuple[Any, Any]:
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text):,} characters, and {LONGEST:,} are read at most")
    _check_events(text)
    loader = _Loader(text)
    try:
        node: Any = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    finally:
        loader.dispose()


def _check_events(text: str) -> None:
    """Check depth and size before anything is built: building nests as deeply as the document."""
    depth = count = 0
    events: Any = yaml.parse(text, Loader=_Loader)
    for event in events:
        count += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or count > _MOST:
            raise _too_large(event.start_mark)


def _measure(node: Any, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Number and depth of the values below a node, each alias counted as what it stands for."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _Refused("it contains itself, through an alias", node.start_mark)
        return found
    known[id(node)] = None
    below: Any = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
    measured = [_measure(part, known) for part in parts]
    size, depth = 1 + sum(s for s, _ in measured), 1 + max((d for _, d in measured), default=-1)
    if size > _MOST or depth > _DEEPEST:
        raise _too_large(node.start_mark)
    known[id(node)] = size, depth
    return size, depth


def _too_large(mark: Any) -> _Refused:
    return _Refused(
        f"it has more than {_MOST:,} values (each alias counts as what it stands for), or more "
        f"than {_DEEPEST} levels",
        mark,
    )
