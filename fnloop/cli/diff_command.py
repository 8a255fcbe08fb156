"""``fnloop diff``: what differs between two checkpoints, leaf by leaf."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from torch import Tensor

from fnloop.cli.messages import printable, shown, usage
from fnloop.cli.show_command import Opened, all_leaves, cell, locate, of_member, opened
from fnloop.cli.sweep_members import metrics_of
from fnloop.store.manifest import read_manifest
from fnloop.trees.equal import table, tree_equal
from fnloop.trees.paths import split
from fnloop.trees.show import short

_HEADER = ("", "a", "b", "norm of a", "norm of b", "norm of b-a", "largest", "relative", "")


class Difference(NamedTuple):
    """The difference of a leaf in two checkpoints, a and b.

    Norms are Euclidean, over finite values (finite in both, for b - a).

    Attributes:
        norms: Norms of a, b and b - a; nan if undefined.
        largest: The largest absolute value of b - a.
        remark: Other differences, as text.
    """

    norms: tuple[float, float, float]
    largest: float
    remark: str = ""

    @property
    def relative(self) -> float:
        """The norm of the difference over the norm of a."""
        a, _, change = self.norms
        return change / a if a else math.nan


def run_diff(arguments: Namespace) -> int:
    """``fnloop diff A B``."""
    paths = Path(arguments.a), Path(arguments.b)
    asked = _members(getattr(arguments, "member", None), paths)
    sides = list(map(opened, paths, asked))
    for name, side in zip("ab", sides, strict=True):
        print(", ".join(filter(None, [f"{name}  {shown(side.checkpoint)}", side.about])))
    for part, of in (("config", _config), ("metrics", _metrics)):
        left, right = map(of, sides)
        names = dict.fromkeys([*left, *right])
        rows = [(name, cell(left, name), cell(right, name)) for name in names]
        rows = [row for row in rows if row[1] != row[2]]
        if rows:
            print(printable(f"\n{table((part, 'a', 'b'), rows)}"))
    print(f"\n{leaves_table(*map(_leaves, sides))}")
    return 0


def _members(asked: str | None, paths: Iterable[Path]) -> list[str | None]:
    """What is asked for of each side: ``--member I`` is for those that have members."""
    if asked is None:  # without a look into the manifests, which are read later
        return [None for _ in paths]
    if "," in asked:
        each = asked.split(",")
        if len(each) != 2:
            raise usage(f"--member {asked}: expected one, of a and b, or two: of a, then of b.")
        return [*each]
    have = [bool(read_manifest(locate(path))["leaves"]["step"]["shape"]) for path in paths]
    return [asked if has or not any(have) else None for has in have]


def _config(side: Opened) -> Mapping[str, Any]:
    return side.manifest["config"]


def _metrics(side: Opened) -> Mapping[str, Any]:
    found = side.manifest["metrics"]
    return found if side.member is None else metrics_of(found, side.member)


def _leaves(side: Opened) -> dict[str, Tensor]:
    found = all_leaves(side.checkpoint, side.manifest)
    return found if side.member is None else of_member(found, side.member)


def leaves_table(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """A table of the leaves that differ, by group, and the relative change of all parameters.

    >>> w = torch.tensor([3.0, 4.0])
    >>> print(leaves_table({"params/w": w, "step": w}, {"params/w": 2 * w, "step": w}))
              a       b       norm of a  norm of b  norm of b-a  largest  relative
    params/w  f32[2]  f32[2]  5          10         5            4        1
    <BLANKLINE>
    1 of 2 leaves differ; the parameters by 1 of their norm
    """
    paths = dict.fromkeys([*a, *b])
    groups: dict[str, list[tuple[str, ...]]] = {}
    for path in paths:
        if path in a and path in b and tree_equal(a[path], b[path]):
            continue
        groups.setdefault(_group(path), []).append(_row(path, a.get(path), b.get(path)))
    count = sum(map(len, groups.values()))
    if not count:
        return "The states are the same, to the bit."
    order = sorted(groups, key=lambda group: _ORDER.get(group.partition("/")[0], 0))
    # An empty line between groups.
    rows = [row for group in order for row in [("",) * len(_HEADER), *groups[group]]][1:]
    return f"{table(_HEADER, rows)}\n\n{count} of {len(paths)} leaves differ{_in_all(a, b)}"


_ORDER = {"params": 1, "buffers": 2, "slots": 3}


def difference(a: Tensor, b: Tensor) -> Difference:
    """The difference of two leaves, which may have different shapes and dtypes."""
    remarks: list[str] = []
    for name, leaf in (("a", a), ("b", b)):
        bad = int((~leaf.isfinite()).sum())
        if bad:
            remarks.append(f"{bad:,} of {leaf.numel():,} not finite in {name}")
    if a.shape != b.shape:
        return Difference((_norm(a), _norm(b), math.nan), math.nan, "; ".join([*remarks, "shape"]))
    if a.dtype != b.dtype:
        remarks.append("dtype")
    change = _wide(b) - _wide(a)
    change = change[change.isfinite()]
    largest = float(change.abs().max()) if change.numel() else 0.0
    if not largest and not remarks:
        remarks.append("bits only (nan or -0.0)")
    return Difference((_norm(a), _norm(b), _norm(change)), largest, "; ".join(remarks))


def _row(path: str, a: Tensor | None, b: Tensor | None) -> tuple[str, ...]:
    if a is None or b is None:
        there = a if b is None else b
        assert there is not None
        norm = _number(_norm(there))
        sides = (short(there), "-", norm, "-") if b is None else ("-", short(there), "-", norm)
        return (path, *sides, "-", "-", "-", "only in a" if b is None else "only in b")
    if _counts(a) and _counts(b):
        text = f"{a.tolist()} and {b.tolist()}"
        return (path, short(a), short(b), *["-"] * 5, text)
    found = difference(a, b)
    numbers = (*found.norms, found.largest, found.relative)
    return (path, short(a), short(b), *map(_number, numbers), found.remark)


def _counts(leaf: Tensor) -> bool:
    """Whether it is a few integers, which are better shown than their norm."""
    return not (leaf.is_floating_point() or leaf.is_complex()) and leaf.numel() <= 4


def _group(path: str) -> str:
    parts = split(path)
    return "/".join(parts[: 2 if parts[0] == "slots" else 1]) if len(parts) > 1 else ""


def _in_all(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """The relative change of all parameters that both have, together."""
    there = {path for path in (*a, *b) if path.startswith("params/")}
    both = [p for p in sorted(there) if p in a and p in b and a[p].shape == b[p].shape]
    if all(tree_equal(a[path], b[path]) for path in both):
        return "; no parameter does" if both else ""
    found = [difference(a[path], b[path]).norms for path in both]
    norm = _root(norms[0] for norms in found)
    change = _root(norms[2] for norms in found)
    which = "" if len(both) == len(there) else " of one shape"
    return f"; the parameters{which} by {_number(change / norm)} of their norm" if norm else ""


def _root(values: Iterable[float]) -> float:
    return math.hypot(*values)


def _norm(leaf: Tensor) -> float:
    values = _wide(leaf)
    return float(torch.linalg.vector_norm(values[values.isfinite()]))


def _wide(leaf: Tensor) -> Tensor:
    return leaf.detach().to(torch.complex128 if leaf.is_complex() else torch.float64)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
