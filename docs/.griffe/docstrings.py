"""What the reference needs to know about fnloop's sources, which are read and not imported.

- Examples (``>>>``) become code blocks.
- A public name in backticks (`fl.run`, `fl.optim.adamw`) becomes a link.
- A class made by ``@tree`` has the signature of a dataclass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_NAME = re.compile(r"(?<!`)`fl\.((?:\w+\.)?\w+)`(?!`)")


class Docstrings(griffe.Extension):
    """See the module."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        public = _public(pkg)
        for obj in _walk(pkg):
            if obj.docstring:
                obj.docstring.value = _rewrite(obj.docstring.value, public)
            if isinstance(obj, griffe.Class) and _is_tree(obj) and "__init__" not in obj.members:
                obj.set_member("__init__", _init(obj))


def _public(pkg: griffe.Module) -> set[str]:
    """What the package and its families import: ``run``, ``optim.adamw``."""
    names = {name for name, member in pkg.members.items() if member.is_alias}
    for family, module in pkg.members.items():
        if not module.is_alias and module.is_package:
            inner = (name for name, member in module.members.items() if member.is_alias)
            names.update(f"{family}.{name}" for name in inner)
    return names


def _walk(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            yield from _walk(member)


def _rewrite(text: str, public: set[str]) -> str:
    def link(match: re.Match[str]) -> str:
        name = match[1]
        return f"[`fl.{name}`][fnloop.{name}]" if name in public else match[0]

    parts: list[str] = []
    end = 0
    for match in _EXAMPLE.finditer(text):
        parts += [_NAME.sub(link, text[end : match.start()]), f"```pycon\n{match[0]}\n```"]
        end = match.end()
    return "".join([*parts, _NAME.sub(link, text[end:])])


def _is_tree(cls: griffe.Class) -> bool:
    return any(str(decorator.value) == "tree" for decorator in cls.decorators)


def _init(cls: griffe.Class) -> griffe.Function:
    fields = [
        member
        for member in cls.members.values()
        if isinstance(member, griffe.Attribute)
        and member.annotation is not None
        and "instance-attribute" in member.labels  # no ClassVar
    ]
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [
        griffe.Parameter(
            field.name, annotation=field.annotation, kind=kind, default=_default(field)
        )
        for field in fields
    ]
    this = griffe.Parameter("self", kind=kind)
    return griffe.Function("__init__", parameters=griffe.Parameters(this, *parameters), parent=cls)


def _default(field: griffe.Attribute) -> str | griffe.Expr | None:
    """A field's default; that of ``static(x)`` is x, that of ``static()`` none."""
    value = field.value
    if isinstance(value, griffe.ExprCall) and str(value.function) == "static":
        return value.arguments[0] if value.arguments else None
    return value
