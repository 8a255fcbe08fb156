"""Record a Python function as one FX graph, and change the graph."""

from __future__ import annotations

import contextlib
import logging
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

from fnloop._torch import outer_products

_aten: Any = torch.ops.aten

DATA_DEPENDENT = (DataDependentOutputException,)
DYNAMIC_SHAPE = (DynamicOutputShapeException,)
NO_META = (UnsupportedOperatorException,)
"""What an operation raises that cannot be traced with fake tensors."""


def packet_name(error: Any) -> str:
    """The name of the operation that raised one of `DYNAMIC_SHAPE`, without its overload."""
    return error.func.overloadpacket.__name__


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
            decomposition_table={
                _aten.addmm.default: _addmm,
                _aten.bmm.default: outer_products.bmm,
            },
            _allow_non_fake_inputs=True,
        )(*inputs)
    _inputs_first(graph, len(inputs))
    outer_products.rewrite(graph)
    _keep_scalars(graph, members)
    graph.graph.eliminate_dead_code()
    _detach_constants(graph)
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


def _detach_constants(graph: GraphModule) -> None:
    """Let no tensor from outside require gradients, for which a backend would differentiate.

    The backward pass is in the graph already. The memory stays that of the tensor outside.
    """
    for name, constant in constants(graph).items():
        if constant.requires_grad:
            delattr(graph, name)
            graph.register_buffer(name, constant.detach())


def constants(graph: GraphModule) -> dict[str, Tensor]:
    """The tensors that a graph contains, by the attribute that holds each."""
    names = [str(node.target) for node in graph.graph.find_nodes(op="get_attr")]
    found = {name: getattr(graph, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


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
            view = _cut_out(graph, inputs, vector, inputs[place].meta["val"], cut)
            for user in late:
                user.replace_input_with(inputs[place], view)


def _cut_out(graph: GraphModule, inputs: list[Node], vector: int, like: Tensor, cut: Any) -> Node:
    """A view of an input, with that shape, those strides and that offset; `like` another tensor."""
    complex_in_pairs = like.is_complex() and not inputs[vector].meta["val"].is_complex()
    if complex_in_pairs:
        shape, strides, offset = cut
        cut = ((*shape, 2), (*[2 * stride for stride in strides], 1), 2 * offset)
    with graph.graph.inserting_after(inputs[-1]):
        view = graph.graph.call_function(_aten.as_strided.default, (inputs[vector], *cut))
    view.meta["val"] = torch.view_as_real(like) if complex_in_pairs else like
    if not complex_in_pairs:
        return view
    with graph.graph.inserting_after(view):
        whole = graph.graph.call_function(_aten.view_as_complex.default, (view,))
    whole.meta["val"] = like
    return whole


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


def operations_of(graph: GraphModule) -> Counter[Any]:
    """How often each operation is in the graph."""
    return Counter([node.target for node in graph.graph.nodes if node.op == "call_function"])
