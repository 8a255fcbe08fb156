"""``config.yaml``: a run's recipe file and the values of its flags."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fnloop.cli import yaml_dialect
from fnloop.cli.messages import Problem, did_you_mean, shown, usage

NAME = "config.yaml"
REFERENCE = re.compile(r"(\\?)\$\{([^{}]*)\}")
"""A reference to another flag, ``${model.width}``; with a backslash before it, this text itself."""


class Config:
    """A configuration file, checked as far as is possible without the recipe.

    Attributes:
        path: The file.
        values: Its entries, as YAML gives them.
        lines: The line of each entry, by its path as flags have it: ``model.width``.
        texts: What is written there for a number, a word or a text; else nothing.

    Raises:
        Problem: It cannot be read, is no YAML, or no mapping.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            if size > yaml_dialect.LONGEST:
                most = f"at most {yaml_dialect.LONGEST:,} are read"
                raise usage(f"{shown(path)} cannot be read: it has {size:,} bytes, and {most}.")
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise usage(f"There is no configuration file {shown(path)}.") from None
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise usage(f"The configuration {shown(path)} cannot be read: {why}.") from None
        try:
            values, entries = yaml_dialect.load_with_lines(text)
        except yaml.YAMLError as error:
            raise usage(_malformed(path, error)) from None
        if not isinstance(values, dict | None):
            raise usage(
                f"{shown(path)} is no configuration: it holds a {type(values).__name__}; expected "
                "lines such as\n  lr: 0.001"
            )
        self.values: dict[str, Any] = {str(key): value for key, value in (values or {}).items()}
        self.lines = {short(path): line for path, (line, _) in entries.items()}
        self.texts = {short(path): text for path, (_, text) in entries.items()}

    @property
    def plain(self) -> dict[str, Any]:
        """Its entries as flags have them, if it was written by `write`: nothing is referred to."""
        return {name: _each_text(value, _literal) for name, value in self.values.items()}

    def where(self, path: str) -> str:
        """The position of an entry, or of what it would be in, ``file:line``."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return f"{shown(self.path)}:{self.lines.get(path, 1)}"

    def recipe(self) -> Path | None:
        """The recipe file that it names, relative to its own folder; None if it names none."""
        named = self.values.get("recipe")
        return None if named is None else Path(os.path.normpath(self.path.parent / str(named)))

    def check_keys(self, flags: Iterable[str], who: str) -> None:
        """Check that each entry is a flag of the recipe.

        Raises:
            Problem: An entry is none.
        """
        known = [*flags, "recipe"]
        for key in self.values:
            if key not in known:
                hint = did_you_mean(key, known, repr)
                raise usage(
                    f"{self.where(key)}: {who} has no flag {key!r}.{hint} It has: "
                    f"{', '.join(known[:-1]) or 'none'}."
                )


def short(path: str) -> str:
    """A path as flags have it, ``model.width`` for ``model.init_args.width``."""
    return path.replace(".init_args.", ".")


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The entries, those of a class or an options object under names such as ``model.width``.

    >>> list(flat({"lr": 0.1, "model": {"class_path": "Net", "init_args": {"width": 4}}}))
    [('lr', 0.1), ('model', 'Net'), ('model.width', 4)]
    >>> list(flat({"sgd": {"lr": 0.1, "momentum": 0.9}}))
    [('sgd.lr', 0.1), ('sgd.momentum', 0.9)]
    """
    for name, value in values.items():
        if isinstance(value, dict) and "class_path" in value:
            yield before + name, str(value["class_path"]).rpartition(".")[2]
            yield from flat(value.get("init_args") or {}, f"{before}{name}.")
        elif isinstance(value, dict) and value:
            yield from flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def placed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The entries with some of them changed, which may be within others.

    >>> placed({"lr": 0.1, "sgd": {"lr": 0.1, "momentum": 0.9}}, {"lr": 1, "sgd.lr": 2})
    {'lr': 1, 'sgd': {'lr': 2, 'momentum': 0.9}}
    """
    new = copy.deepcopy(dict(values))
    for name, value in changes.items():
        first, dot, rest = name.partition(".")
        inner = new.get(first)
        if name in new or not dot or not isinstance(inner, dict):
            new[name] = value
        elif "class_path" in inner:
            new[first] = {**inner, "init_args": placed(inner.get("init_args") or {}, {rest: value})}
        else:
            new[first] = placed(inner, {rest: value})
    return new


def dump(recipe: Path, flags: Mapping[str, Any], folder: Path) -> str:
    """The text of a configuration file for `folder`."""
    recipe, folder = recipe.resolve(), folder.resolve()
    try:
        named = Path(os.path.relpath(recipe, folder)).as_posix()
    except ValueError:  # another drive of Windows
        named = recipe.as_posix()
    entries = {"recipe": named, **_each_text(dict(flags), _escaped)}
    return yaml_dialect.dump(entries)


def write(recipe: Path, flags: Mapping[str, Any], folder: Path) -> None:
    """Write ``config.yaml`` into `folder`, which is created if missing.

    Raises:
        Problem: It cannot be written.
    """
    text = "# Written by fnloop fit. To run it again: fnloop fit --config THIS_FILE\n"
    temporary = folder / f".{NAME}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + dump(recipe, flags, folder), encoding="utf-8")
        os.replace(temporary, folder / NAME)
    except OSError as error:
        raise Problem(
            f"The run folder {shown(folder)} cannot be written ({error.strerror}). The usual cause "
            "is a read-only place, or a file where a folder should be; choose another folder."
        ) from None


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(each, change) for each in value]
    if isinstance(value, dict):
        return {name: _each_text(each, change) for name, each in value.items()}
    return value


def _escaped(text: str) -> str:
    return REFERENCE.sub(lambda match: f"{match[1]}\\${{{match[2]}}}", text)


def _literal(text: str) -> str:
    return REFERENCE.sub(lambda match: f"${{{match[2]}}}", text)


def _malformed(path: Path, error: yaml.YAMLError) -> str:
    place, problem = shown(path), str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        place += f":{error.problem_mark.line + 1}"
        problem = error.problem or problem
    expected = "Expected lines such as\n  lr: 0.001"
    if isinstance(error, yaml.MarkedYAMLError) and "flow mapping" in str(error.context):
        expected = 'A reference within braces stands in quotes: {width: "${model.width}"}'
    return f"{place}: this is not YAML that fnloop reads: {problem}. {expected}"
