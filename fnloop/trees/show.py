"""Print pytrees as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def short(value: Any) -> str:
    """A one-line text for any value; for a tensor its dtype and shape, such as ``f32[3,4]``.

    >>> from collections import namedtuple
    >>> short(namedtuple("Batch", "x y")((torch.zeros(2, 3), "a"), None))
    "Batch(x=(f32[2,3], 'a'), y=None)"
    """
    if isinstance(value, Tensor):
        return f"{_dtype(value)}[{','.join(map(str, value.shape))}]"
    if hasattr(type(value), "__tree_children__"):
        if not getattr(type(value).__repr__, "of_tree", False):  # the class defines its own
            return repr(value)
        return short_fields(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {short(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(short, value)) + "]"
    names: Any = getattr(value, "_fields", None)
    if isinstance(value, tuple) and names is not None:
        fields = [f"{name}={short(part)}" for name, part in zip(names, value, strict=True)]
        return f"{type(value).__name__}({', '.join(fields)})"
    if type(value) is tuple:
        return "(" + ", ".join(map(short, value)) + ("," if len(value) == 1 else "") + ")"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__.rpartition("<locals>.")[2]
    return repr(value)


def short_fields(tree: Any) -> str:
    """The class of a tree and its fields, as `short`, without those that have their default."""
    fields = [
        f"{f.name}={short(getattr(tree, f.name))}"
        for f in dataclasses.fields(tree)
        if not is_default(f, getattr(tree, f.name))
    ]
    return f"{type(tree).__name__}({', '.join(fields)})"


def is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field has its default value, so that a printed tree can omit it."""
    if field.default is dataclasses.MISSING or type(value) is not type(field.default):
        return False
    return isinstance(value, (int, float, str, type(None))) and value == field.default


def tree_show(tree: Any, depth: int = 20) -> str:
    """The structure of `tree` as indented text, with dtype, shape and size of every tensor.

    Args:
        tree: Any pytree.
        depth: Levels to show; the line of a node includes the sizes of deeper levels.

    >>> print(tree_show({"w": torch.zeros(2, 3), "b": {"x": torch.zeros(3)}}, depth=1))
    dict                                9 values, 36 B
      w    f32[2,3]                     6 values, 24 B
      b    dict                         3 values, 12 B
    """
    if not isinstance(depth, int) or depth < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"tree_show(depth=...) takes a whole number of at least 0, got {depth!r}.")
    rows: list[tuple[int, str, str, str]] = []

    def visit(name: str, node: Any, level: int) -> None:
        children = _children(node)
        label = type(node).__name__ if children is not None else short(node)
        rows.append((level, name, label, _size(node)))
        for key, child in (children or {}).items() if level < depth else ():
            visit(key, child, level + 1)

    visit("", tree, 0)
    names = [("  " * level + name).rstrip() for level, name, _, _ in rows]
    width = max(map(len, names)) + 4
    lines: list[str] = []
    for text, (_, _, label, size) in zip(names, rows, strict=True):
        lines.append(f"{(text.ljust(width) if text else '') + label:<{width + 29}}{size}".rstrip())
    return "\n".join(lines)


def printable(text: str, most: int = 200) -> str:
    """Text from a file, for a message: without control characters, and of limited length.

    >>> print(printable("layer\\x1b[2J.weight"))
    layer\\x1b[2J.weight
    """
    shown = text if len(text) <= most else text[:most] + "..."
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def bytes_text(count: int) -> str:
    """Format a number of bytes.

    >>> bytes_text(36), bytes_text(3_200_000)
    ('36 B', '3.2 MB')
    """
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def numbers_text(values: Sequence[float]) -> str:
    """Numbers with four digits; of more than four the first two, the last, and how many.

    >>> numbers_text([0.1, 1 / 3]), numbers_text([1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 0.01])
    ('0.1, 0.3333', '1e-05, 3e-05, ..., 0.01 (6)')
    """
    texts = [f"{value:.4g}" for value in values]
    if len(texts) <= 4:
        return ", ".join(texts)
    return f"{texts[0]}, {texts[1]}, ..., {texts[-1]} ({len(texts)})"


def _children(node: Any) -> dict[str, Any] | None:
    if hasattr(type(node), "__tree_children__"):
        children = {name: getattr(node, name) for name in type(node).__tree_children__}
        return {name: child for name, child in children.items() if not _is_empty(child)}
    if isinstance(node, Mapping):
        return {str(key): child for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return {str(i): child for i, child in enumerate(node)}
    return None


def _is_empty(node: Any) -> bool:
    """Whether a node is None, or a tree whose children are all None."""
    if node is None:
        return True
    names = getattr(type(node), "__tree_children__", ())
    return bool(names) and all(getattr(node, name) is None for name in names)


def _size(node: Any) -> str:
    tensors = [leaf for leaf in _tensors(node)]
    if not tensors:
        return ""
    count = sum(t.numel() for t in tensors)
    return f"{count:,} values, {bytes_text(sum(t.numel() * t.element_size() for t in tensors))}"


def _tensors(node: Any) -> list[Tensor]:
    if isinstance(node, Tensor):
        return [node]
    return [t for child in (_children(node) or {}).values() for t in _tensors(child)]


def _dtype(value: Tensor) -> str:
    return _NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
