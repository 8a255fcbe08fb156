"""The modules of a model, with what each holds and does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from fnloop.transforms.dry_run import Called
from fnloop.trees.show import short
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.state import State


class ModuleRow(NamedTuple):
    """A module of the model, with all in it; of a model that is a tree, what has a common path.

    Attributes:
        path: Its path; empty for the model.
        kind: Its class; of a tensor of a tree, dtype and shape.
        output: Dtypes and shapes of what it returned, at its first call; empty if it was not
            called.
        parameters: How many numbers its parameters have; one that is there twice counts once.
        trained: How many of them the step computes gradients of.
        bytes: Of its parameters and buffers.
        calls: How often a step calls it, without the calls of a backward pass.
        flops: Operations in these calls; of one that is not called itself, of those in it. None
            without a batch, and of a tree.
    """

    path: str
    kind: str
    output: str
    parameters: int
    trained: int
    bytes: int
    calls: int
    flops: int | None

    @property
    def depth(self) -> int:
        """In how many others it is."""
        return self.path.count(".") + 1 if self.path else 0


class Sizes(NamedTuple):
    """How many numbers some tensors have, and how many of them are trained; and their bytes."""

    parameters: int
    trained: int
    bytes: int


def model_rows(
    state: State, sizes: Mapping[str, Sizes], called: Mapping[str, Called] | None
) -> Iterator[ModuleRow]:
    """The rows of a model, each module once, under its first name.

    Args:
        state: The state; of a population, the rows are those of one member.
        sizes: Of each parameter and buffer, from `sizes_by_name`.
        called: What each module did; None if the step was not run.
    """
    skeleton = state.skeleton
    if isinstance(skeleton, ModuleSkeleton):
        held = _held_by_modules(skeleton.module)
    else:
        held, called = _held_by_paths(str(skeleton), state), None
    seen = called or {}
    for path, (kind, names) in held.items():
        own, held_here = seen.get(path), total([sizes[name] for name in dict.fromkeys(names)])
        flops = None if called is None else _flops(path, held, seen)
        calls, output = (own.calls, own.output) if own else (0, "")
        yield ModuleRow(path, kind, output, *held_here, calls, flops)


def sizes_by_name(state: State, trained: Collection[str]) -> dict[str, Sizes]:
    """How much each parameter and buffer holds; of a population, that of a member."""
    members, some = max(state.step.numel(), 1), set(trained)
    found: dict[str, Sizes] = {}
    for tensors in (state.params, state.buffers):
        for name, outline in tensors.outlines():
            numel = outline.numel() // members
            count = numel if tensors is state.params else 0
            moving = count if name in some else 0
            found[name] = Sizes(count, moving, numel * outline.element_size())
    return found


def total(parts: Iterable[Sizes]) -> Sizes:
    """The sum."""
    sums = [sum(each) for each in zip(*parts, strict=True)]
    return Sizes(*sums) if sums else Sizes(0, 0, 0)


_Held = dict[str, tuple[str, list[str]]]
"""By path: what is there, and the names of the tensors in it."""


def _held_by_modules(model: nn.Module) -> _Held:
    names: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        names[id(tensor)] = name
    return {
        path: (
            type(module).__name__,
            [names[id(t)] for t in (*module.parameters(), *module.buffers())],
        )
        for path, module in model.named_modules()
    }


def _held_by_paths(kind: str, state: State) -> _Held:
    held: _Held = {"": (kind, [])}
    for tensors in (state.params, state.buffers):
        for name, outline in tensors.outlines():
            parts = name.split(".")
            for i in range(len(parts) + 1):
                what = short(_of_member(outline, state)) if i == len(parts) else ""
                held.setdefault(".".join(parts[:i]), (what, []))[1].append(name)
    return held


def _of_member(outline: Tensor, state: State) -> Any:
    return outline[0] if state.step.ndim else outline


def _flops(path: str, held: _Held, seen: Mapping[str, Called]) -> int:
    """Operations of a module; of one that is not called, of those in it that are."""
    if path in seen:
        return seen[path].flops
    start = f"{path}." if path else ""
    inside = [p for p in held if p.startswith(start) and p != path]
    return sum(_flops(p, held, seen) for p in inside if "." not in p[len(start) :])
