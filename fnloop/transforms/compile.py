"""``compile``: a whole step as one graph."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from fnloop._torch.graph import quiet
from fnloop._torch.inference import outside_inference
from fnloop._torch.tracing import opaque, recording
from fnloop.distributed.gates import gate
from fnloop.distributed.mesh import Mesh
from fnloop.effects.activity import Activity, watchers
from fnloop.effects.screens import screen
from fnloop.names.arguments import bounded
from fnloop.names.keywords import explained
from fnloop.optim.patterns import is_function
from fnloop.stages.base import Kind, Stage, mesh_of, piped
from fnloop.stages.grad import INFERENCE
from fnloop.stages.lift import stage
from fnloop.stages.step_given import check_is_step
from fnloop.transforms.cache import Cache
from fnloop.transforms.compile_errors import (
    CompileError,
    add_remedy,
    check_dense,
    check_leaf,
    check_observed,
    translated,
)
from fnloop.transforms.kept import Kept
from fnloop.transforms.kinds import ambient, kind_but_sizes, orders_of
from fnloop.transforms.program import Program
from fnloop.transforms.recorded import Inputs
from fnloop.transforms.series import Series
from fnloop.transforms.several import NOTE, check_batches
from fnloop.transforms.varying import Form, Varying
from fnloop.trees.named import by_name
from fnloop.trees.nodes import static, tree
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.donated import newest
from fnloop.values.error_state import attach
from fnloop.values.state import State

_log = logging.getLogger("fnloop.compile")

MANY = 8
"""Number of graphs of one step at which a warning says that the batch shapes vary."""


@tree
class Compiled(Stage):
    """The stage that `compile` makes.

    Attributes:
        inner: The step.
        donate, steps, mode, backend, dynamic, memory: As in `compile`.
    """

    outermost: ClassVar[bool] = True
    label: ClassVar[str] = "compile"
    inner: Any
    donate: bool = False
    steps: int = 1
    mode: str = "default"
    backend: Any = static(default="inductor")
    dynamic: bool = False
    memory: float = static(default=1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", as_count(self.steps, "compile(steps=...)", 1))

    @property
    def kind(self) -> Kind:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.kind

    @property
    def slot(self) -> str | None:
        return None

    @property
    def graphs(self) -> int:
        """Number of graphs so far."""
        return self._cache.graphs

    def stages(self) -> Iterator[Stage]:
        yield from self.inner.stages()

    def init(self, model: Any, seed: int = 0) -> State:
        state = self.inner.init(model, seed)
        if not isinstance(model, State):  # the tensors are new: they can be repacked in place
            with outside_inference():
                Kept.repack(state, self._cache.plans)
        return state

    def __call__(self, state: State, x: Any) -> tuple[State, Any]:
        if opaque():
            return self._inside(state, x)
        if self._mesh is not None:  # within the graph nobody could tell of a failure
            gate(self._mesh, "a compiled step")
        if self.steps > 1:
            return self._several(state, x)
        series = self.series(state)
        metrics = series(x)
        return series.state, metrics

    def series(self, state: State) -> Series:
        """Steps from `state` on, one batch at a time."""
        return Series(state, self._cache, self.donate, self._program)

    def begin(self) -> None:
        """Look at what the step finds outside in the next call, the first of a run."""
        self._cache.outside.begin()

    @functools.cached_property
    def _mesh(self) -> Mesh | None:
        return mesh_of(self.inner)

    @property
    def uncompiled(self) -> Stage:
        return self.inner

    def donating(self) -> Compiled:
        """The same step, donating; both share the compiled graphs."""
        return self if self.donate else self._donating

    def describe(self) -> str:
        options = [
            short(getattr(self, field.name))
            if field.name == "inner"
            else f"{field.name}={short(getattr(self, field.name))}"
            for field in dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
            if field.name != "inner" and getattr(self, field.name) != field.default
        ]
        return f"compile({', '.join(options)})" if options else "compile"

    def __repr__(self) -> str:
        return piped([*self.inner.script(), self.describe()])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cache", "_donating")}

    @functools.cached_property
    def _cache(self) -> Cache:
        return Cache(self.inner)

    @functools.cached_property
    def _donating(self) -> Compiled:
        twin: Any = dataclasses.replace(self, donate=True)  # pyright: ignore[reportArgumentType]
        twin.__dict__["_cache"] = self._cache
        return twin

    def _several(self, state: State, batches: Any) -> tuple[State, list[Any]]:
        check_batches(batches, self.steps)
        series, metrics = self.series(state), []
        try:
            for batch in batches:
                metrics.append(series(batch))
        except BaseException as error:
            attach(error, "state", newest(series.state))
            if not metrics:
                error.add_note(NOTE.format(steps=self.steps, first=short(batches[0])))
            raise
        return series.state, metrics

    def _inside(self, state: State, x: Any) -> tuple[State, Any]:
        if recording() is not None:  # a part of what is being compiled
            if self.steps > 1:
                raise CompileError(
                    f"A step compiled with steps={self.steps} cannot be a part of another that is "
                    "compiled: call step.uncompiled in it, for each batch."
                )
            return self.inner(state, x)
        raise CompileError(
            "A compiled step cannot be transformed by torch.func: fl.compile goes outermost, as in "
            'fl.compile(fl.stage(torch.func.vmap(step, in_dims=(0, None)), "step")).'
        )

    def _say(self, line: str) -> None:
        """Show a line where somebody looks, above the progress if there is one."""
        if shown := watchers():
            for watcher in shown:
                watcher.says(line)
        elif seen := screen():
            seen.keep(line)

    def _program(self, inputs: Inputs, x: Any) -> Program:
        """The program for a new batch shape; with `dynamic` perhaps one that is there already."""
        leaves, structure = inputs.batch
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        sparse = any([t.layout is not torch.strided for t in tensors])  # `_compile` refuses it
        if sparse or not self.dynamic or inputs.state.step.device.type != "cpu":
            return self._compile(inputs, x)
        forms, shapes = tuple(map(Form.of, tensors)), tuple([tuple(t.shape) for t in tensors])
        kinds, orders = tuple(map(kind_but_sizes, leaves)), orders_of(by_name(x))
        answers = self._cache.answers(inputs.state)
        alike = (inputs.kept.plan, structure, kinds, orders, forms, self.donate, ambient(), answers)
        family = self._cache.families[alike]
        program = family.known(shapes)
        if program is None:
            build = functools.partial(self._compile, inputs, x)
            program = family.make(shapes, forms, build) or build()
            family.saw(shapes)
        return program

    def _compile(self, inputs: Inputs, x: Any, varying: Varying | None = None) -> Program:
        if torch.is_inference_mode_enabled():
            raise RuntimeError(INFERENCE)
        if torch.is_anomaly_enabled():
            raise CompileError(_ANOMALY)
        for path, leaf in [*tree_items(x), *tree_items(self.inner)]:
            check_leaf(path, leaf)
        for path, leaf in tree_items(inputs.state):
            check_dense(path, leaf)
        check_observed(inputs.state)
        batch = short(x)
        which = "once for this shape" if varying is None else f"for all sizes of {varying}"
        self._say(f"fl.compile: compiling the step for a batch of {batch}, {which}")
        build = functools.partial(
            Program, inputs, self.donate, self.mode, self.backend, self.memory, varying
        )
        start = time.perf_counter()
        try:
            with quiet(), Activity("compiling"):
                program = build()
        except Exception as error:
            if varying is not None:
                raise
            add_remedy(error, inputs.state, x)
            translation = translated(error, build)
            if translation is error:
                raise
            raise translation from error
        seconds = time.perf_counter() - start
        _log.info("One graph of %d operations, in %.1f s.", program.operations, seconds)
        self._say(f"fl.compile: one graph of {program.operations} operations, in {seconds:.1f} s")
        self._cache.outside.note(program.outside)
        self._cache.graphs += 1
        if self.graphs == MANY:
            warnings.warn(
                f"fl.compile has made {MANY} graphs of one step, the last for a batch of {batch}"
                ": every new shape, and every new number that is not in a tensor, takes one more. "
                f"{_FEWER[self.dynamic]}, and give numbers as tensors.",
                stacklevel=5,
            )
        return program


_FEWER = {
    False: "Pad the batches to a few shapes, or compile with dynamic=True",
    True: "The log fnloop.compile says why there is none for all sizes. Pad the batches to a few",
}

_ANOMALY = (
    "Anomaly detection follows a backward pass operation by operation, and a compiled step is one "
    "graph without any. Leave torch.autograd.detect_anomaly(), or call the step without fl.compile "
    "in it: step.uncompiled. To find where a nan arises in a step of a saved run: fnloop replay."
)


@explained
def compile(
    step: Any,
    donate: bool = False,
    steps: int = 1,
    mode: Literal["default", "max-autotune"] = "default",
    backend: Any = "inductor",
    dynamic: bool = False,
    memory: Annotated[float, bounded(0, 1, tensors=False)] = 1.0,
) -> Any:
    """Make one graph of a whole step: forward, backward, clipping, optimizer, averages, metrics.

    The step is recorded at its first call and for each new batch shape (the short last batch of an
    epoch takes one more graph), and compiled by Inductor, which caches its results on disk: the
    next start of the same program is quick. Parameters, and moments and averages of their shapes,
    are packed into a few long tensors (`fl.Tensors`); ``state.params["w"]`` is a view of one.
    Random numbers equal those of the uncompiled step to the bit; the rest agrees to rounding
    (law 7).

    Code that cannot be recorded raises an error that names its line; nothing silently runs
    uncompiled.

    Args:
        step: A training step, another stage, or a function ``(state, batch) -> (state, metrics)``.
        donate: Write the new state into the old one's memory. Reading the old state is then an
            error. Tensors, or dicts of them, that were taken out of it stay valid, at the cost of
            a copy. `fl.fit` turns this on for the states that it makes.
        steps: Steps in one call, at most. With more than one, ``step(state, [batch, ...])`` takes a
            list of 1 to `steps` batches, and returns the last state and a list of the metrics of
            each step. They have the bits of one call for each, in one graph as before: what is
            saved is Python between them. In `fl.run` and `fl.fit` such a step is given one batch
            after the other, and the call ends where a callback or an effect needs the state
            (`Callback.needs_state`, `Effect.needs_state`), with an epoch, at a limit or an
            interrupt.
        mode: "max-autotune" also tries several kernels for each matrix product.
        backend: Another backend of ``torch.compile``, by name: ``"aot_eager"`` only records, which
            is quick and enough for a test.
        dynamic: On the CPU, make the graph for the second shape for all sizes of the dimensions
            that have varied, where that can be. Which graph a batch gets then depends on the
            batches before it, so that a resumed run equals the other to rounding, not to the bit.
        memory: The share, from 0 to 1, of the memory of forward and backward pass that the step may
            take at the peak. Below 1, activations are computed again in the backward pass: what is
            cheap first, matrix products and convolutions if that is not enough. With 0, or if
            there is no way to the share, the step needs as little as can be. Random numbers are
            the same, and so are the results but for rounding (to the bit with ``"aot_eager"``).

    Raises:
        ValueError: `memory` is not from 0 to 1.
        CompileError: At the first call, if the step reads a tensor's value, or if the shape of a
            result or of random numbers depends on values.

    >>> import torch
    >>> import fnloop as fl
    >>> loss = lambda model, batch: model(batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)))
    >>> fast = compile(step, backend="aot_eager")
    >>> state, batch = step.init(torch.nn.Linear(2, 1)), torch.ones(3, 2)
    >>> a, b = step(state, batch)[0], fast(state, batch)[0]
    >>> torch.allclose(a.params["weight"], b.params["weight"]), fast.graphs
    (True, 1)

    Several steps in one call:

    >>> many = compile(step, steps=3, backend="aot_eager")
    >>> c, metrics = many(state, [batch, batch, batch])
    >>> int(c.step), [f"{float(reported['loss']):.2f}" for reported in metrics] == [
    ...     f"{float(fast(s, batch)[1]['loss']):.2f}" for s in (state, b, fast(b, batch)[0])]
    (3, True)

    One graph for all numbers of rows, from the second one on:

    >>> varying = compile(step, backend="aot_eager", dynamic=True)
    >>> for rows in (3, 4, 5, 6):
    ...     _ = varying(state, torch.ones(rows, 2))
    >>> varying.graphs
    2

    Half of the memory for activations, for up to one more forward pass:

    >>> less = compile(step, backend="aot_eager", memory=0.5)
    >>> fl.tree_equal(less(state, batch)[0].params, b.params)
    True
    """
    if not isinstance(backend, str) and not is_function(backend):
        raise TypeError(f'compile(backend=...) takes a name: "inductor"; got {short(backend)}.')
    if isinstance(step, Compiled):
        raise TypeError("This step is compiled already.")
    if isinstance(step, functools.partial) and isinstance(step.func, type):
        raise TypeError(
            f"compile takes a whole step, and was given {step.func.__name__.lower()}(...), which "
            "still waits for the stage that it wraps: fl.compile(fl.pipe(loss, fl.grad, ...))."
        )
    if not isinstance(step, Stage):
        check_is_step(step, "compile")
        step = stage(step, "step")
    if step.kind == "callback":
        raise TypeError(
            f"compile takes a step; {step.describe()} is a callback, whose work is on numbers."
        )
    return Compiled(step, donate, steps, mode, backend, dynamic, memory)
