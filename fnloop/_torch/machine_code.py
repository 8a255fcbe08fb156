"""Compile a recorded graph: the machine code of a step."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fnloop._torch import libraries
from fnloop._torch.libraries import Runnable

_aten: Any = torch.ops.aten


def build(
    graph: GraphModule, inputs: Sequence[Tensor], backend: Any, options: dict[str, Any]
) -> Runnable:
    """Compile a graph.

    Args:
        graph: From `record`. It may write to its inputs in place.
        inputs: The fake tensors that it was traced with.
        backend: ``"inductor"``, the name of another backend of ``torch.compile``, or a function
            ``(graph, inputs) -> function``.
        options: Options of Inductor; other backends ignore them.
    """
    if backend == "inductor":
        _reshape_views(graph)
        if not options.get("cpp_wrapper"):
            return _inductor(graph, list(inputs), options)
        key = libraries.key_of(graph, inputs, options)
        return (key and libraries.found(key)) or _inductor(graph, list(inputs), options, key)
    if isinstance(backend, str):
        from torch._dynamo import lookup_backend

        backend = lookup_backend(backend)
    run = backend(graph, list(inputs))
    return lambda given: run(*given)


def inductor() -> Any:
    """Inductor's ``compile_fx`` module, imported on first use because that takes a second."""
    with warnings.catch_warnings():  # torch itself uses deprecated functions
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch._inductor import compile_fx

    return compile_fx


def _inductor(
    graph: GraphModule, inputs: list[Tensor], options: dict[str, Any], key: str | None = None
) -> Runnable:
    """Compile by Inductor, and return its code without AOTAutograd's wrapper.

    The wrapper handles gradients and outputs that alias inputs, which do not occur here; it takes a
    tenth of a small step's time.
    """
    compiler = inductor()
    built: list[tuple[int, int, Runnable]] = []

    def keep(prepared: GraphModule, examples: Sequence[Any], **how: Any) -> Any:
        (output,) = prepared.graph.find_nodes(op="output")
        code = compiler.compile_fx_inner(prepared, examples, **how)
        built.append((len(examples), len(output.args[0]), code))
        return code

    from torch._functorch import config

    with (
        config.patch(enable_autograd_cache=False),  # a cache hit returns only the wrapper
        _room_for(len(graph.graph.nodes)),
    ):
        wrapped = compiler.compile_fx(graph, inputs, inner_compile=keep, config_patches=options)
    (output,) = graph.graph.find_nodes(op="output")
    if [shape[:2] for shape in built] == [(len(inputs), len(output.args[0]))]:
        code: Any = built[0][2]
        if key:
            libraries.keep(key, code)
        # Around the machine code for a CPU is an object that looks for profilers and for kernels
        # of Triton that are being tuned, which takes 2 us.
        return code.current_callable if options.get("cpp_wrapper") else code
    return lambda given: wrapped(*given)


@contextlib.contextmanager
def _room_for(nodes: int) -> Generator[None]:
    """Raise the recursion limit: Inductor recurses along chains of nodes (a thousand layers)."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 10 * nodes)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _reshape_views(graph: GraphModule) -> None:
    """Let views be copies where Inductor gives their input other strides than PyTorch does.

    It replaces some operations by others whose result has other strides (``cat`` with an empty
    tensor), of which the recorded view need not exist. Views that are written to stay.
    """
    for node in graph.graph.find_nodes(op="call_function", target=_aten.view.default):
        if not _is_written(node):
            node.target = _aten.reshape.default
    graph.recompile()


def _is_written(node: Node) -> bool:
    """Whether an operation writes to the node's tensor, or to a view of it."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None:  # the graph's output
            continue
        if schema.is_mutable:
            return True
        if any(result.alias_info is not None for result in schema.returns) and _is_written(user):
            return True
    return False


LARGE = 1000
"""Number of operations from which the function that calls a graph's kernels is not optimized."""


def options(
    device: torch.device, mode: str, operations: Counter[Any], memory: float
) -> dict[str, Any]:
    """Inductor's options for a training step.

    Args:
        device: The device of the step.
        mode: ``"max-autotune"`` benchmarks kernels; any other value does not.
        operations: How often each operation is in the graph.
        memory: As in `fl.compile`.
    """
    # No runtime checks of shapes and strides: graphs are looked up by them.
    options: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}
    if memory < 1:
        # This moves gradients of weights to the optimizer, which reads them, and what they are
        # computed from would stay in memory until then.
        options["reorder_for_locality"] = False
    if mode == "max-autotune":
        options["max_autotune"] = True
    if device.type == "cuda":
        return {**options, "triton.cudagraphs": True}  # one launch for all kernels
    # One C++ function calls all kernels, without Python in between (except for collectives, which
    # it cannot call). Only loops that take longer than waking threads are parallelized.
    alone = not any([str(operation).startswith("_c10d_functional") for operation in operations])
    options = {**options, "cpp_wrapper": alone, "cpp.min_chunk_size": 16384}
    if any([operation in operations for operation in _NORMALIZING]):
        # Inductor would lay out what convolutions make with the channels last, and its sums over
        # the other dimensions, which normalization needs, are slow then: a step of ResNet-18 takes
        # 1.8 times as long. Without normalization that layout is the faster one.
        options["layout_optimization"] = False
    if operations.total() >= LARGE:
        # Optimizing that long function takes minutes to compile, without a measurable gain.
        options["cpp_wrapper_build_separate"] = True
        options["aot_inductor.compile_wrapper_opt_level"] = "O0"
    return options


_NORMALIZING = (_aten.native_batch_norm.default, _aten.native_group_norm.default)
