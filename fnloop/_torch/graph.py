"""From a Python function to one graph of tensor operations, and from there to machine code."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

_aten: Any = torch.ops.aten

DATA_DEPENDENT = (DataDependentOutputException,)
DYNAMIC_SHAPE = (DynamicOutputShapeException,)
NO_META = (UnsupportedOperatorException,)
"""What an operation raises that cannot be recorded."""

Runnable = Callable[[list[Tensor]], Sequence[Any]]
"""From a list of tensors, which it may empty, to the results."""


def fake_mode() -> FakeTensorMode:
    """A mode in which tensors have shapes, dtypes and devices, and no values.

    Real tensors that a function brings along (class weights, a mask) become constants.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def without_values(tensors: Sequence[Tensor], mode: FakeTensorMode) -> list[Tensor]:
    """Tensors of `mode` of the same kinds; no two share memory, whatever the real ones do."""
    with mode:
        return [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
            for t in tensors
        ]


def record(
    function: Callable[..., Any], inputs: Sequence[Tensor], mode: FakeTensorMode, members: int = 1
) -> GraphModule:
    """The operations of ``function(*inputs)``, its backward pass among them, as one graph.

    Args:
        function: Takes tensors, returns a list of tensors.
        inputs: Of `mode`.
        mode: From `fake_mode`.
        members: How many steps are vmapped in one: what is a scalar for each has so many values.
    """
    with mode, _without_onednn():
        graph = make_fx(
            function,
            tracing_mode="real",  # the inputs are fake already
            decomposition_table={_aten.addmm.default: _addmm},
            _allow_non_fake_inputs=True,
        )(*inputs)
    _keep_scalars(graph, members)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def build(
    graph: GraphModule, inputs: Sequence[Tensor], backend: Any, options: dict[str, Any]
) -> Runnable:
    """Machine code for a graph.

    Args:
        graph: From `record`; inputs that it writes to are written to.
        inputs: The fake ones that it was recorded with.
        backend: ``"inductor"``, the name of another backend of ``torch.compile``, or a function
            ``(graph, inputs) -> function``.
        options: Of Inductor.
    """
    if backend == "inductor":
        return _inductor(graph, list(inputs), options)
    if isinstance(backend, str):
        from torch._dynamo import lookup_backend

        backend = lookup_backend(backend)
    run = backend(graph, list(inputs))
    return lambda given: run(*given)


def inductor() -> Any:
    """Inductor's module of compilers, imported when it is needed: that takes a second."""
    with warnings.catch_warnings():  # of what torch itself uses
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch._inductor import compile_fx

    return compile_fx


def _inductor(graph: GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Runnable:
    """What Inductor builds, called directly.

    AOTAutograd prepares the graph for it, and puts a wrapper around what it returns, for gradients
    and for outputs that share memory with inputs: a tenth of a small step's time, for nothing here.
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
        config.patch(enable_autograd_cache=False),  # it would keep the wrapper only
        _room_for(len(graph.graph.nodes)),
    ):
        wrapped = compiler.compile_fx(graph, inputs, inner_compile=keep, config_patches=options)
    (output,) = graph.graph.find_nodes(op="output")
    if [shape[:2] for shape in built] == [(len(inputs), len(output.args[0]))]:
        return built[0][2]
    return lambda given: wrapped(*given)


@contextlib.contextmanager
def _room_for(nodes: int) -> Generator[None]:
    """Let Inductor follow a chain of so many nodes (a thousand layers) by recursion."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 10 * nodes)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextlib.contextmanager
def _without_onednn() -> Generator[None]:
    """Record a recurrent layer step by step: the backward of oneDNN's cannot be recorded."""
    before = torch._C._get_mkldnn_enabled()  # pyright: ignore
    torch._C._set_mkldnn_enabled(False)  # pyright: ignore
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)  # pyright: ignore


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep torch from logging an error that is raised, and explained, anyway."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before


def storage_of(tensor: Tensor) -> Any:
    """Its storage; the same object each time, whose address is ``_cdata``."""
    return tensor.untyped_storage()


users_of: Callable[[int], int] = torch._C._storage_Use_Count  # pyright: ignore
"""How many tensors (and others) use the storage at an address: `LONE` and one for each view."""

_lone = torch.empty(1)
LONE = users_of(storage_of(_lone)._cdata)
"""What `users_of` says of a tensor's storage that nothing else shares."""

holders_of: Callable[[Tensor], int] = torch.Tensor._use_count  # pyright: ignore
"""How often PyTorch holds a tensor: once for Python, once for each view of it, and so on."""


def _addmm(bias: Tensor, x: Tensor, w: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
    # A bias is added for nothing by the loop that follows (an activation, say), where the matrix
    # product of the library first copies it. As a difference, because Inductor would put a sum of a
    # product and a vector together again.
    if (
        (beta, alpha, bias.ndim) != (1, 1, 1)
        or bias.device.type != "cpu"
        or bias.dtype is not torch.float32  # half precision would be rounded twice
    ):
        return NotImplemented
    return torch.mm(x, w) - (-bias)


def _keep_scalars(graph: GraphModule, members: int) -> None:
    """Have every scalar computed once, before the loop that uses it.

    Inductor puts the computation of a 0-d tensor (a schedule, Adam's bias correction) into the
    innermost loop of what it is used for, and takes its power once for every sixteen values. A view
    by `as_strided` makes it keep the result in memory. In a vmapped step, so for the scalars of the
    members.
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
    return value.ndim == 0 or 1 < value.numel() <= members


def copies(tensors: Sequence[Any]) -> list[Any]:
    """Copies of what a graph has returned, whose own memory the next call may write over."""
    return [t.clone() if isinstance(t, Tensor) else t for t in tensors]


def copy_all(to: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy tensors to others, by one call: no signal handler of Python comes in between."""
    torch._foreach_copy_(to, tensors)  # pyright: ignore


def read_before_writing(graph: GraphModule, vector: int, cuts: Mapping[int, Any]) -> None:
    """Make sure that the parts of an input are read before it is written over.

    A vector and the views into it are inputs side by side: code that reads a view is then the same
    for all layers of a kind, and is compiled once. But a compiler cannot know that they share
    memory. What the vector's new value is computed from has been read by then; for everything else
    the view is cut out of the vector itself, which the compiler does know.

    Args:
        graph: From `record`.
        vector: The place of an input that the graph may write to, at its end.
        cuts: Shape, strides and offset of the views into it, by their places.
    """
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    writes = [user for user in inputs[vector].users if user.target is _aten.copy_.default]
    writes = [write for write in writes if write.args[0] is inputs[vector]]
    if not writes:
        return
    before = _ancestors(writes[0].args[1])
    for place, cut in cuts.items():
        late = [user for user in inputs[place].users if not _read_by(user, before)]
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


def _read_by(user: Node, before: set[Node]) -> bool:
    """Whether `user`, and whatever sees the same memory through it, is in `before`."""
    if user not in before:
        return False
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    if all(result.alias_info is None for result in schema.returns):
        return True
    return all(_read_by(further, before) for further in user.users)


def take_count(graph: GraphModule, counter: int, output: int) -> int | None:
    """Take a counter on the CPU out of a graph that may run elsewhere; what it is counted up by.

    A CUDA graph has no place for it, and whoever reads it would have to wait.

    Args:
        graph: From `record`.
        counter: The place of the input.
        output: The place of what it has become; there is None there afterwards.

    Returns:
        None if the graph does something else than add numbers to it, and is left as it is.
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
    """Take inputs that nothing reads out of the graph; the places of the others."""
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    used = [i for i, node in enumerate(places) if node.users]
    for node in places:
        if not node.users:
            graph.graph.erase_node(node)
    graph.recompile()
    return used


LARGE = 1000
"""Operations in a graph from which on the function that calls its kernels is not optimised."""


def options(device: torch.device, mode: str, operations: int) -> dict[str, Any]:
    """Inductor's options that suit a training step on `device` of so many operations."""
    # Shapes and strides need no check in the machine code: a graph is found by them.
    options: dict[str, Any] = {"size_asserts": False, "alignment_asserts": False}
    if mode == "max-autotune":
        options["max_autotune"] = True
    if device.type == "cuda":
        return {**options, "triton.cudagraphs": True}  # one launch for all kernels
    # One call into C++ for the whole graph, in place of Python between the kernels; and a loop goes
    # to several threads only where it takes longer than waking them.
    options = {**options, "cpp_wrapper": True, "cpp.min_chunk_size": 16384}
    if operations >= LARGE:
        # Optimising that one long function takes a compiler minutes, and saves no time that shows.
        options["cpp_wrapper_build_separate"] = True
        options["aot_inductor.compile_wrapper_opt_level"] = "O0"
    return options
