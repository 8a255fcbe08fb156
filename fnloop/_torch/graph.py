"""Trace a Python function into one FX graph, transform it, and compile it."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import (
    disable_proxy_modes_tracing,
    get_proxy_mode,
    make_fx,
    track_tensor_tree,
)

from fnloop._torch import libraries

_aten: Any = torch.ops.aten

DATA_DEPENDENT = (DataDependentOutputException,)
DYNAMIC_SHAPE = (DynamicOutputShapeException,)
NO_META = (UnsupportedOperatorException,)
"""What an operation raises that cannot be traced with fake tensors."""


def packet_name(error: Any) -> str:
    """The name of the operation that raised one of `DYNAMIC_SHAPE`, without its overload."""
    return error.func.overloadpacket.__name__


Runnable = Callable[[list[Tensor]], Sequence[Any]]
"""A function from a list of tensors, which it may empty, to the results."""


def record(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    mode: AbstractContextManager[Any],
    members: int = 1,
) -> GraphModule:
    """Trace ``function(*inputs)``, including its backward pass, into one graph.

    Args:
        function: Takes tensors and returns a list of tensors. Those of `another_input` become
            inputs of the graph after these, sorted by their place.
        inputs: Fake tensors of `mode`.
        mode: Their mode, and whatever else the function is to run in.
        members: Number of steps vmapped into one; a scalar of each member is then a tensor of this
            size.
    """
    with mode:
        graph = make_fx(
            function,
            tracing_mode="real",  # the inputs are fake already
            decomposition_table={_aten.addmm.default: _addmm},
            _allow_non_fake_inputs=True,
        )(*inputs)
    _inputs_first(graph, len(inputs))
    _keep_scalars(graph, members)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def another_input(place: Any, make: Callable[[], Tensor]) -> Tensor:
    """A tensor that the graph that is being recorded is to be given.

    Args:
        place: Where it is among all of these.
        make: Makes a tensor like it, without values.
    """
    tracer: Any = get_proxy_mode().tracer  # type: ignore[union-attr]
    with disable_proxy_modes_tracing():
        tensor = make()
    name = f"given_{len(tracer.graph.nodes)}"
    proxy = tracer.create_proxy("placeholder", name, (), {})
    proxy.node.meta["place"] = place
    return track_tensor_tree(tensor, proxy, constant=None, tracer=tracer)


def _inputs_first(graph: GraphModule, count: int) -> None:
    """Put the inputs that were found on the way after the first `count`, by their place."""
    inputs = graph.graph.find_nodes(op="placeholder")
    last = inputs[count - 1]
    for node in sorted(inputs[count:], key=lambda node: node.meta["place"]):
        last.append(node)
        last = node


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


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep torch from logging errors that fnloop explains, and which operation it calls by name."""
    logs = [logging.getLogger(name) for name in ("torch._subclasses.fake_tensor", _LOWERING)]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    try:
        yield
    finally:
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


_LOWERING = "torch._inductor.ir"


def _addmm(bias: Tensor, x: Tensor, w: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
    # The library's addmm first copies the bias into the output. Separate, the addition fuses with
    # the loop that follows (an activation, say). Written as a difference, because Inductor would
    # fuse a sum back into an addmm.
    if (
        (beta, alpha, bias.ndim) != (1, 1, 1)
        or bias.device.type != "cpu"
        or bias.dtype is not torch.float32  # half precision would be rounded twice
    ):
        return NotImplemented
    return torch.mm(x, w) - (-bias)


def _keep_scalars(graph: GraphModule, members: int) -> None:
    """Make Inductor compute every scalar once, before the loop that uses it.

    Inductor inlines the computation of a 0-d tensor (a schedule, Adam's bias correction) into the
    innermost loop that uses it, and so computes a power for every sixteen values. An `as_strided`
    view makes it store the result. In a vmapped step, the scalars of the members are stored too.
    """
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not _is_scalar(node, members):
            continue
        if node.target is _aten.as_strided.default:
            continue
        wide = [u for u in node.users if u.op == "call_function" and not _is_scalar(u, members)]
        value = node.meta["val"]
        if not wide or value.device.type != "cpu":
            continue
        shape = (list(value.shape), list(value.stride()))
        with graph.graph.inserting_after(node):
            kept = graph.graph.call_function(_aten.as_strided.default, (node, *shape))
            kept.meta["val"] = value
        for user in wide:
            user.replace_input_with(node, kept)


def _is_scalar(node: Node, members: int) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if any([isinstance(size, torch.SymInt) for size in value.shape]):
        return False
    return value.ndim == 0 or 1 < value.numel() <= members


def copies(tensors: Sequence[Any], but: Set[int] = frozenset()) -> list[Any]:
    """Copy the results of a graph, which the next call may overwrite, except those at `but`."""
    return [
        t.clone() if isinstance(t, Tensor) and i not in but else t for i, t in enumerate(tensors)
    ]


def copy_all(to: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy `tensors` into `to` by one call, so that no Python signal handler can interrupt it."""
    torch._foreach_copy_(to, tensors)  # pyright: ignore


def read_before_writing(graph: GraphModule, vector: int, cuts: Mapping[int, Any]) -> None:
    """Make sure that views of an input are read before the input is overwritten.

    A vector and its views are separate inputs: code that reads a view is then the same for all
    layers of a kind, and is compiled once. But the compiler does not know that they alias, and may
    compute what is read again for each result that needs it. Reads by a kernel of its own that the
    vector's new value depends on happen before the write, and so do all that lead only to such
    kernels or into that value. For all other reads, replace the view by an `as_strided` of the
    vector, an alias that the compiler does know.

    Args:
        graph: From `record`.
        vector: Index of an input that the graph may overwrite, at its end.
        cuts: Shape, strides and offset of each view, by the index of its input.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    writes = [user for user in inputs[vector].users if user.target is _aten.copy_.default]
    writes = [write for write in writes if write.args[0] is inputs[vector]]
    if not writes:
        return
    in_time = _done_before(graph, writes[0])
    for place, cut in cuts.items():
        late = [user for user in inputs[place].users if user not in in_time]
        if late:
            with graph.graph.inserting_after(inputs[-1]):
                view = graph.graph.call_function(_aten.as_strided.default, (inputs[vector], *cut))
                view.meta["val"] = inputs[place].meta["val"]
            for user in late:
                user.replace_input_with(inputs[place], view)


def _ancestors(node: Node) -> set[Node]:
    found, open_ = {node}, [node]
    while open_:
        for parent in open_.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                open_.append(parent)
    return found


def _done_before(graph: GraphModule, write: Node) -> set[Node]:
    """The operations that are done before a write or in it, and never once more after it."""
    before, found = _ancestors(write.args[1]), {write}  # type: ignore[arg-type]
    for node in reversed(graph.graph.nodes):
        if node in before and (_is_kernel(node) or found.issuperset(node.users)):
            found.add(node)
    return found


def _is_kernel(node: Node) -> bool:
    """Whether an operation is always a kernel of its own: Inductor may inline some products."""
    if node.target in (_aten.mm.default, _aten.bmm.default):
        return all(size != 1 for x in node.all_input_nodes for size in x.meta["val"].shape[-2:])
    return node.target in (_aten.convolution.default, _aten.convolution_backward.default)


def take_count(graph: GraphModule, counter: int, output: int) -> int | None:
    """Remove a counter on the CPU from a graph that may run on another device.

    CUDA graphs do not support CPU tensors, and reading a counter on the device would synchronize.

    Args:
        graph: From `record`.
        counter: Index of the counter among the inputs.
        output: Index of its new value among the outputs, which becomes None.

    Returns:
        The increment; None if the graph does anything but add constants to the counter, and is left
        unchanged.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    (end,) = graph.graph.find_nodes(op="output")
    node, total = end.args[0][output], 0
    while isinstance(node, Node) and node.target is _aten.add.Tensor and type(node.args[1]) is int:
        node, total = node.args[0], total + node.args[1]
    if node is not inputs[counter]:
        return None
    results = list(end.args[0])
    results[output] = None
    end.args = (results,)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return total


def prune(graph: GraphModule) -> list[int]:
    """Remove unused inputs from the graph; return the indices of the others."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    used = [i for i, node in enumerate(places) if node.users]
    for node in places:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return used


LARGE = 1000
"""Number of operations from which the function that calls a graph's kernels is not optimized."""


def operations_of(graph: GraphModule) -> Counter[Any]:
    """How often each operation is in the graph."""
    return Counter([node.target for node in graph.graph.nodes if node.op == "call_function"])


_NORMALIZING = (_aten.native_batch_norm.default, _aten.native_group_norm.default)


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
