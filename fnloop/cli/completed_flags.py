"""What a shell offers for a recipe's flags, read without running the recipe."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from fnloop.cli import static
from fnloop.cli.config import NAME, Config
from fnloop.cli.messages import Problem

_HELP = "help"
_READ = 40  # classes


class CompletedFlags:
    """The flags of the recipe among the words of a command line.

    Args:
        words: Those before the one that is typed.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._configs = list(_configs(words))
        files = [Path(word) for word in words if word.endswith(".py")]
        named = [config.recipe() for config in reversed(self._configs)]
        self._file = next(filter(None, [*files, *named]), Path()).absolute()
        made = static.find(self._file, "recipe")
        self._flags = {each.name: each for each in static.arguments(made)} if made else {}

    def options(self, last: str) -> Iterator[tuple[str, str]]:
        """The flags, and after ``--model.`` the arguments of its class."""
        for name, flag in self._flags.items():
            kind = _text(flag.kind)
            yield f"--{name}", kind
            if kind == "bool":
                yield f"--no-{name}", kind
        above = last.removeprefix("--").rpartition(".")[0] if "." in last else last[2:]
        if above.partition(".")[0] in self._flags:
            for each in self._arguments(above.split(".")):
                yield f"--{above}.{each.name}", _text(each.kind)
            if self._classes_of(self._argument(above.split("."))):
                yield f"--{above}.{_HELP}", "the arguments of a class"

    def values(self, option: str, last: str) -> Iterator[tuple[str, str]]:
        """Values of a flag: words of a literal or an enumeration, or names of classes."""
        place = option.removeprefix("--").rstrip("+").split(".")
        if place[-1] in (_HELP, "class_path"):
            place = place[:-1]
        flag = self._argument(place)
        if flag is None or flag.kind is None:
            return
        for node in ast.walk(flag.kind):
            if isinstance(node, ast.Subscript) and _text(node.value).endswith("Literal"):
                values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
                yield from [(str(ast.literal_eval(value)), "") for value in values]
        for dotted, found in self._classes_of(flag):
            if members := list(_members(found)):
                yield from [(member, "") for member in members]
            else:
                yield from [(name, "") for name in self._names(flag, dotted, last)]

    def _argument(self, place: Sequence[str]) -> static.Argument | None:
        *above, last = place
        known = {each.name: each for each in self._arguments(above)} if above else self._flags
        return known.get(last)

    def _arguments(self, place: Sequence[str]) -> list[static.Argument]:
        """The arguments of the class that is chosen at a path of flags."""
        chosen = self._chosen(place)
        return [] if chosen is None else static.arguments(chosen)

    def _chosen(self, place: Sequence[str]) -> static.Definition | None:
        flag = self._argument(place)
        if flag is None:
            return None
        option = f"--{'.'.join(place)}"
        given = [v for o, v in _pairs(self._words) if o in (option, f"{option}+")]
        given += [v for config in self._configs if (v := _class_path(config.values, place))]
        if given:
            return static.find(self._file, given[-1]) or self._short(flag, given[-1])
        default = flag.default.func if isinstance(flag.default, ast.Call) else flag.default
        return None if default is None else static.find(flag.file, _text(default))

    def _short(self, flag: static.Argument, name: str) -> static.Definition | None:
        """A class that is chosen by its name alone, among those of the flag's type."""
        names = [each for dotted, _ in self._classes_of(flag) for each in self._names(flag, dotted)]
        whole = next((each for each in names if each.rpartition(".")[2] == name), None)
        return None if whole is None else static.find(self._file, whole)

    def _classes_of(self, flag: static.Argument | None) -> list[tuple[str, static.Definition]]:
        """The classes that a flag's annotation names."""
        if flag is None or flag.kind is None:
            return []
        nodes = [n for n in ast.walk(flag.kind) if isinstance(n, (ast.Name, ast.Attribute))]
        dotted = [_text(node) for node in nodes]
        inner = {text.rpartition(".")[0] for text in dotted}
        found = {text: static.find(flag.file, text) for text in dotted if text not in inner}
        return [
            (text, each)
            for text, each in found.items()
            if each is not None
            and isinstance(each.node, ast.ClassDef)
            and each.file.parent.name not in ("typing", "collections")
            and text.rpartition(".")[2] not in ("Callable", "Optional", "Sequence", "Mapping")
        ]

    def _names(self, flag: static.Argument, dotted: str, last: str = "") -> list[str]:
        """The classes below one, as the recipe's file calls them: its own, and those beside it.

        Of very many, those beside it are all, as to read their files takes seconds.
        """
        base = static.find(flag.file, dotted)
        above = dotted.rpartition(".")[0]
        first, *parts = above.split(".")
        module = static.module_of(flag.file, first) if above else None
        beside = static.names_in(flag.file, ".".join([module, *parts])) if module else []
        names = [name for each in beside if (name := f"{above}.{each}").startswith(last)]
        asked = [*static.classes(self._file), *(names if len(names) <= _READ else ())]
        found = {name: static.find(self._file, name) for name in asked if name != dotted}
        fit = [n for n, each in found.items() if each and base and static.derives(each, base)]
        return fit if len(names) <= _READ else [*fit, *names]


def _configs(words: Sequence[str]) -> Iterator[Config]:
    """The configurations on the line, and that of the run that ``resume`` goes on with."""
    files = [Path(value) for option, value in _pairs(words) if option == "--config"]
    for file in [Path(words[0]) / NAME, *files] if words else []:
        try:
            if file.is_file():
                yield Config(file)
        except Problem:
            continue


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, after in zip(words, [*words[1:], ""], strict=False):
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            yield option, value if equals else after


def _class_path(values: object, place: Sequence[str]) -> str | None:
    """The class that a configuration chooses at a path of flags."""
    for part in place:
        inner = values.get("init_args", values) if isinstance(values, dict) else {}
        values = inner.get(part) if isinstance(inner, dict) else None
    path = values.get("class_path") if isinstance(values, dict) else values
    return path if isinstance(path, str) else None


def _members(found: static.Definition) -> Iterator[str]:
    """The names of an enumeration."""
    if isinstance(found.node, ast.ClassDef) and any("Enum" in _text(b) for b in found.node.bases):
        for node in found.node.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id


def _text(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return "" if node is None else ast.unparse(node)
