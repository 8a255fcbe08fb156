"""What the reference needs to know about fnloop's sources, which are read and not imported.

- Examples (``>>>``) become code blocks.
- A public name in backticks (`fl.run`) becomes a link.
- A class made by ``@tree`` has the signature of a dataclass.
- ``fnloop.run`` is the function, not the module that the function is in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
_NAME = re.compile(r"(?<!`)`fl\.(\w+)`(?!`)")


class Docstrings(griffe.Extension):
    """See the module."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        public = {name for name in pkg.members if not name.startswith("_")}
        for obj in _walk(pkg):
            if obj.docstring:
                obj.docstring.value = _rewrite(obj.docstring.value, public)
            if isinstance(obj, griffe.Class) and _is_tree(obj) and "__init__" not in obj.members:
                obj.set_member("__init__", _init(obj))
        targets = {name: _descend(pkg, name) for name in public}
        for name, target in targets.items():
            if not target.is_module:
                pkg.set_member(name, griffe.Alias(name, target, parent=pkg))


def _walk(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if isinstance(member, griffe.Object):
            yield from _walk(member)


def _descend(pkg: griffe.Module, name: str) -> griffe.Object:
    """The package's `name`, or the object in a module of that name, where it has one."""
    inner = _target(pkg.members[name])
    while inner.is_module and name in inner.members:
        inner = _target(inner.members[name])
    return inner


def _target(member: griffe.Object | griffe.Alias) -> griffe.Object:
    return member.final_target if isinstance(member, griffe.Alias) else member


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
