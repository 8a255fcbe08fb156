"""What Python files define, read without running them."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

_DEEPEST = 12  # modules and base classes that are followed, which may go in a circle


class Argument(NamedTuple):
    """An argument of a function or class.

    Attributes:
        name: Its name.
        file: The file that it is in.
        kind: Its annotation.
        default: Its default.
    """

    name: str
    file: Path
    kind: ast.expr | None
    default: ast.expr | None


class Definition(NamedTuple):
    """A class or function in a file."""

    file: Path
    node: ast.ClassDef | ast.FunctionDef


@cache
def find(file: Path, dotted: str, depth: int = 0) -> Definition | None:
    """The class or function that a file knows by a dotted name."""
    first, _, rest = dotted.partition(".")
    for node in _body(file) if depth < _DEEPEST else ():
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == dotted:
            return Definition(file, node)
        for module, name in _imported(file, node, first):
            below = ".".join(filter(None, (name, rest if name != "*" else dotted)))
            found = _find_in(file, module, below.removeprefix("*."), depth + 1)
            if found is not None:
                return found
    return _find_in(file, first, rest, depth + 1) if rest and not depth else None


def arguments(found: Definition, depth: int = 0) -> list[Argument]:
    """The arguments of a class or function; the fields of a dataclass."""
    file, node = found
    if isinstance(node, ast.FunctionDef):
        return list(_parameters(file, node))
    own = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    made = next((each for each in own if each.name == "__init__"), None)
    if made is not None:
        return list(_parameters(file, made))[1:]
    above = [find(file, ast.unparse(base)) for base in node.bases] if depth < _DEEPEST else []
    inherited = [a for each in above if each is not None for a in arguments(each, depth + 1)]
    fields = [
        Argument(each.target.id, file, each.annotation, each.value)
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]
    fields = [each for each in fields if node.decorator_list and _is_argument(each)]
    return list({each.name: each for each in [*inherited, *fields]}.values())


def classes(file: Path) -> list[str]:
    """The names of the classes that a file defines."""
    return [node.name for node in _body(file) if isinstance(node, ast.ClassDef)]


@cache
def derives(found: Definition, base: Definition, depth: int = 0) -> bool:
    """Whether a class is below another one."""
    if found.node is base.node or not isinstance(found.node, ast.ClassDef) or depth > _DEEPEST:
        return found.node is base.node
    above = [find(found.file, ast.unparse(each)) for each in found.node.bases]
    return any(derives(each, base, depth + 1) for each in above if each is not None)


def names_in(file: Path, module: str, depth: int = 0) -> list[str]:
    """The public names of a module, as a file would import it."""
    where = _file_of(file, module)
    found = list[str]()
    for node in _body(where) if where is not None and depth < _DEEPEST else ():
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found.append(node.name)
        elif isinstance(node, ast.ImportFrom) and where is not None:
            for alias in node.names:
                star = alias.name == "*"
                inner = _absolute(where, node)
                found += names_in(where, inner, depth + 1) if star else [alias.asname or alias.name]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(each) for each in ast.literal_eval(node.value)]
    return sorted({name for name in found if name[:1] != "_"})


def module_of(file: Path, name: str) -> str | None:
    """The module that a file has imported by a name: ``torch.nn`` for ``nn``."""
    for node in _body(file):
        for module, each in _imported(file, node, name):
            if each != "*":
                return ".".join(filter(None, (module, each)))
    return None


def _body(file: Path | None) -> list[ast.stmt]:
    return [] if file is None else _parsed(file)


@cache
def _parsed(file: Path) -> list[ast.stmt]:
    try:
        return ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []


def _imported(file: Path, node: ast.stmt, name: str) -> Iterator[tuple[str, str]]:
    """The modules from which a statement imports a name, and what it is called there."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.asname == name:
                yield alias.name, ""
            elif alias.asname is None and alias.name.partition(".")[0] == name:
                yield name, ""
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            if alias.name == "*" or (alias.asname or alias.name) == name:
                yield _absolute(file, node), alias.name


def _absolute(file: Path, node: ast.ImportFrom) -> str:
    """The module of an import; a relative one by the path of its folder."""
    if not node.level:
        return node.module or ""
    folder = file.parents[node.level - 1]
    return f"{folder}/{(node.module or '').replace('.', '/')}".rstrip("/")


def _find_in(file: Path, module: str, dotted: str, depth: int) -> Definition | None:
    where = _file_of(file, module)
    found = find(where, dotted, depth) if where is not None and dotted else None
    if found is not None or "." not in dotted:
        return found
    first, _, rest = dotted.partition(".")
    return _find_in(file, f"{module}.{first}", rest, depth + 1) if depth < _DEEPEST else None


@cache
def _file_of(file: Path, module: str) -> Path | None:
    """The file of a module: beside `file`, or among those that are installed."""
    if module.startswith("/"):
        return _existing(Path(module))
    top, *parts = module.split(".")
    if (own := _existing(file.parent.joinpath(top, *parts))) is not None:
        return own
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin)
    is_package = spec.submodule_search_locations is not None
    return _existing(origin.parent.joinpath(*parts)) if is_package or parts else origin


def _existing(path: Path) -> Path | None:
    """The file of a module or package at a path; its stub, which says more where names are lazy."""
    package = [path / "__init__.pyi", path / "__init__.py"]
    places = [*package, path.with_suffix(".pyi"), path.with_suffix(".py")]
    return next((place for place in places if place.is_file()), None)


def _is_argument(field: Argument) -> bool:
    """Whether a field of a dataclass is an argument."""
    kind, default = (ast.unparse(each) if each else "" for each in (field.kind, field.default))
    return field.name[:1] != "_" and "ClassVar" not in kind and "init=False" not in default


def _parameters(file: Path, node: ast.FunctionDef) -> Iterator[Argument]:
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(plain) - len(node.args.defaults)), *node.args.defaults]
    pairs = [*zip(plain, defaults, strict=True)]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    for each, default in pairs:
        yield Argument(each.arg, file, each.annotation, default)
