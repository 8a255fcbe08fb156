"""Record module outputs and gradients during one call of a step, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Generator
from contextvars import ContextVar
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from fnloop._torch.tracing import opaque
from fnloop.stages.base import GradStage
from fnloop.stages.functions import Function, in_place_of
from fnloop.trees.nodes import tree, tree_map
from fnloop.trees.paths import tree_items
from fnloop.values.grads import Grads
from fnloop.values.merging import numbers
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.nonfinite_values import Nonfinite, tensors_in
from fnloop.values.rows import UnclearRows, rows
from fnloop.values.state import State


class Call(NamedTuple):
    """One call of an `fl.grad` stage.

    Attributes:
        stage: The stage.
        state: The given state, with its context (loss scale, autocast, micro-batch).
        batch: The batch, or the micro-batch.
        offset: Examples in the micro-batches before this one; None if unknown.
    """

    stage: GradStage
    state: State
    batch: Any
    offset: int | None


class Watch:
    """The record of one call of a step; see `watched`.

    Attributes:
        outputs: Non-finite module outputs, in order of execution.
        arrived: Non-finite gradients, in the order of the backward pass: of parameters, and (kind
            "forward") of module outputs.
        finite_at: The module output with the last finite gradient before those.
        grads: Copies of the results of the outermost gradient stages.
        culprit: The first call of `fl.grad` whose loss or gradient is not finite.
        scale: The loss scale in force, if there is one.
    """

    def __init__(self) -> None:
        self.outputs: list[Nonfinite] = []
        self.arrived: list[Nonfinite] = []
        self.finite_at: str | None = None
        self.grads: list[Grads] = []
        self.culprit: Call | None = None
        self.scale: float | None = None
        self._inside = False
        self._part = ""  # which micro-batch this is, as text
        self._sizes: dict[int, int | None] = {}
        self._followed: set[int] = set()
        self._thread = threading.get_ident()

    @contextlib.contextmanager
    def watching(self, skeleton: Any) -> Generator[None]:
        """Within the block, `watched` stages report here."""
        token = _WATCH.set(self)
        try:
            with self._following(skeleton):
                yield
        finally:
            _WATCH.reset(token)

    def call(
        self, stage: GradStage, method: Callable[..., Any], state: State, batch: Any
    ) -> tuple[State, Grads]:
        """Call a gradient stage by its own method, and record the result."""
        outermost, self._inside = not self._inside, True
        self._part = f"; in micro-batch {state.context.micro + 1}" if not outermost else self._part
        try:
            with self._following(state.skeleton):
                after, grads = method(stage, state, batch)
        finally:
            self._inside = not outermost
        if isinstance(grads, Grads):  # pyright: ignore[reportUnnecessaryIsInstance]
            if stage.loss is not None:
                self._note(Call(stage, state, batch, self._offset(state, batch)), grads)
            if outermost:  # later stages may overwrite it
                self.grads.append(tree_map(_copy, grads))
        return after, grads

    def follow(self, model: Any) -> None:
        """Add hooks that record the gradients of a model's parameters."""
        if isinstance(model, nn.Module):
            items: Any = model.named_parameters()
        else:
            items = ((path.replace("/", "."), leaf) for path, leaf in tree_items(model))
        for name, leaf in items:
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(functools.partial(self._parameter_gradient, name))

    def _note(self, call: Call, grads: Grads) -> None:
        scale = call.state.context.scale
        self.scale = None if scale is None else float(scale)
        if self.culprit is None and is_bad(grads):
            self.culprit = call

    def _offset(self, state: State, batch: Any) -> int | None:
        micro = state.context.micro
        try:
            self._sizes[micro] = rows(batch)
        except UnclearRows:
            self._sizes[micro] = None
        before = [self._sizes.get(i) for i in range(micro)]
        known = [size for size in before if size is not None]
        return sum(known) if len(known) == len(before) else None

    @contextlib.contextmanager
    def _following(self, skeleton: Any) -> Generator[None]:
        """Add hooks to the state's private module, not to the user's."""
        if not isinstance(skeleton, ModuleSkeleton) or id(skeleton) in self._followed:
            yield
            return
        with contextlib.ExitStack() as hooks:
            hooks.callback(skeleton.watching().retake)  # when the hooks are gone
            self._followed.add(id(skeleton))
            hooks.callback(self._followed.discard, id(skeleton))
            for name, module in skeleton.module.named_modules():
                hook = functools.partial(self._output, name)
                handle = module.register_forward_hook(hook, with_kwargs=True)
                hooks.callback(handle.remove)
            skeleton.watching().retake()
            yield

    def _output(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if opaque() or threading.get_ident() != self._thread:
            return
        kind = type(module).__name__
        for place, tensor in tensors_in(output):
            path = (name or "model") + place
            found = Nonfinite.of("forward", path, tensor, kind)
            if found is not None:
                note = _inputs_note(args, kwargs) + self._part
                self.outputs.append(dataclasses.replace(found, note=note))
            elif tensor.requires_grad:
                tensor.register_hook(functools.partial(self._output_gradient, f"{path} ({kind})"))

    def _output_gradient(self, path: str, gradient: Tensor) -> None:
        if opaque() or threading.get_ident() != self._thread:
            return
        if found := Nonfinite.of("forward", path, gradient):
            self.arrived.append(dataclasses.replace(found, note=self._part.removeprefix("; ")))
        elif not self.arrived:
            self.finite_at = path

    def _parameter_gradient(self, name: str, gradient: Tensor) -> None:
        if opaque() or threading.get_ident() != self._thread:
            return
        if found := Nonfinite.of("gradient", f"params/{name}", gradient):
            self.arrived.append(dataclasses.replace(found, note=self._part.removeprefix("; ")))


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


def watched(step: Any) -> Any:
    """The same step, to the bit, with gradient stages that report to the active `Watch`.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state, watch = step.init(nn.Linear(2, 1)), Watch()
    >>> with watch.watching(state.skeleton):
    ...     after, metrics = watched(step)(state, torch.full((3, 2), torch.inf))
    >>> watch.outputs[0].path, watch.arrived[0].path
    ('model', 'params/bias')
    """
    return optree.tree_map(_watched, step, is_leaf=lambda node: isinstance(node, GradStage))  # pyright: ignore


def is_bad(grads: Grads) -> bool:
    """Whether the loss or a gradient is not finite; a batch of weight zero is not bad."""
    if not float(grads.weight):
        return False
    loss = numbers({"loss": grads.metrics["loss"]})["loss"] if "loss" in grads.metrics else 0.0
    whole = all(bool(mean.isfinite().all()) for mean in grads.mean.values())
    return not (whole and torch.tensor(loss).isfinite())


def _watched(leaf: Any) -> Any:
    if not isinstance(leaf, GradStage):
        return leaf
    new = object.__new__(_kind(type(leaf)))  # a subclass, so that isinstance still holds
    new.__dict__.update(vars(leaf))
    for name in type(leaf).__tree_children__:  # pyright: ignore
        new.__dict__[name] = watched(getattr(leaf, name))
    if leaf.loss is not None:
        new.__dict__["loss"] = _loss(leaf.loss)
    return new


@functools.cache
def _kind(kind: type[GradStage]) -> type[GradStage]:
    def call(self: GradStage, state: State, x: Any) -> tuple[State, Grads]:
        watch = _WATCH.get()
        if watch is None or opaque():
            return kind.__call__(self, state, x)
        return watch.call(self, kind.__call__, state, x)

    made: Any = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return tree(made)


def _loss(loss: Any) -> Function:
    def call(model: Any, *rest: Any) -> Any:
        watch = _WATCH.get()
        if watch is not None and not opaque():
            watch.follow(model)
        return loss(model, *rest)

    return in_place_of(loss, call)


def _inputs_note(*inputs: Any) -> str:
    if any(Nonfinite.of("forward", "", tensor) for _, tensor in tensors_in(inputs)):
        return "what went into it was not finite already"
    return "what went into it was finite"


def _copy(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
