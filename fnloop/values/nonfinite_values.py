"""Find values that are nan or infinite."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import optree
import torch
from torch import Tensor

from fnloop.trees.named import by_name
from fnloop.trees.paths import join, tree_items
from fnloop.values.state import State

Origin = Literal["state", "batch", "forward", "loss", "gradient", "update"]


@dataclasses.dataclass(frozen=True)
class Nonfinite:
    """A tensor with values that are nan or infinite.

    Attributes:
        kind: Where it was found: "state" (before the step), "batch", "forward" (a module's output),
            "loss", "gradient" or "update" (the state after the step).
        path: Path of the leaf, such as ``params/0.weight`` or ``batch/0``; or of the module, such
            as ``blocks.3.attn``, with ``[1]`` if it has several outputs.
        count: Number of non-finite values.
        size: Number of values.
        index: Index of the first non-finite value.
        rows: Indices of the first eight such rows along the leading dimension.
        about: The class of the module.
        note: Further information, as a sentence.
        masks: Whether all of them are -inf and every row has one, as in a mask.
    """

    kind: Origin
    path: str
    count: int
    size: int
    index: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()
    about: str = ""
    note: str = ""
    masks: bool = False

    @classmethod
    def of(cls, kind: Origin, path: str, value: Any, about: str = "") -> Nonfinite | None:
        """The non-finite values in a tensor; None if there are none."""
        tensor = as_numbers(value)
        if tensor is None or not _inexact(tensor):
            return None
        bad = ~tensor.isfinite()
        count = int(bad.sum())
        if not count:
            return None
        index = tuple(bad.nonzero()[0].tolist())
        masks, rows = False, ()
        if tensor.ndim:
            with_bad = bad.flatten(1).any(1) if tensor.ndim > 1 else bad
            rows = tuple(with_bad.nonzero()[:8, 0].tolist())
            masks = bool(with_bad.all())
        masks = masks and not tensor.is_complex() and bool((tensor[bad] == -torch.inf).all())
        return cls(kind, path, count, tensor.numel(), index, rows, about, "", masks)

    def __str__(self) -> str:
        if self.kind == "loss":
            return "the loss"
        values = f"{self.count:,} of {self.size:,} value{'s' * (self.size > 1)}"
        first = f", first at {list(self.index)}" if self.index else ""
        about = f" ({self.about})" if self.about else ""
        return f"{_WHAT[self.kind]} {self.path}{about}: {values}{first}"


_WHAT = {
    "state": "before the step,",
    "batch": "the leaf",
    "forward": "the output of",
    "gradient": "the gradient of",
    "update": "after the step,",
}


def as_numbers(value: Any) -> Tensor | None:
    """A leaf as a plain dense tensor; None if it is neither that nor a numeric array."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.as_tensor(value.copy(), device="cpu")
    if not isinstance(value, Tensor) or value.is_meta:
        return None
    plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided
    return value.detach() if plain and not value.is_nested else None


def in_batch(batch: Any) -> Iterator[Nonfinite]:
    """The leaves of a batch that are not finite."""
    for path, leaf in batch_items(batch):
        if found := Nonfinite.of("batch", path, leaf):
            yield found


def batch_items(batch: Any) -> list[tuple[str, Any]]:
    """The leaves of a batch by path: ``batch/0``."""
    return [(f"batch/{path}" if path else "batch", leaf) for path, leaf in tree_items(batch)]


def in_state(state: State, kind: Origin = "state") -> Iterator[Nonfinite]:
    """The leaves of a state that are not finite and should be.

    These are parameters, memory with parameters' names, and buffers with nan (an infinite buffer
    may be a mask). Other memory may start infinite, such as the best loss so far.
    """
    for name, leaf in zip(state.params.names, state.params.peek(), strict=True):
        if found := Nonfinite.of(kind, f"params/{name}", leaf):
            yield found
    for name, leaf in state.buffers.items():
        has_nan = leaf.is_floating_point() and bool(leaf.isnan().any())
        if has_nan and (found := Nonfinite.of(kind, f"buffers/{name}", leaf)):
            yield found
    paths, leaves, _ = optree.tree_flatten_with_path(by_name(state.slots))  # pyright: ignore
    for parts, leaf in zip(paths, leaves, strict=True):
        if parts[-1] in state.params and (
            found := Nonfinite.of(kind, f"slots/{join(parts)}", leaf)
        ):
            yield found


def tensors_in(output: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's output with their paths: ``[1]``; empty for a single tensor."""
    if isinstance(output, Tensor):
        yield "", output
    elif isinstance(output, Mapping):
        for name, part in output.items():
            for path, tensor in tensors_in(part):
                yield f"[{name}]{path}", tensor
    elif isinstance(output, (list, tuple)):
        for i, part in enumerate(output):
            for path, tensor in tensors_in(part):
                yield f"[{i}]{path}", tensor
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            for path, tensor in tensors_in(getattr(output, field.name)):
                yield f".{field.name}{path}", tensor


def _inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
