"""Recurrent layers by oneDNN, where that is the faster library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from fnloop._torch.tracing import transformed


@contextlib.contextmanager
def by_products() -> Generator[None]:
    """A context manager inside which an LSTM on the CPU is composed of matrix products.

    Otherwise it is one kernel of oneDNN, which is for one length and one number of rows, and is
    called in the mode that `mode_for` says.
    """
    before = torch._C._get_mkldnn_enabled()  # pyright: ignore
    torch._C._set_mkldnn_enabled(False)  # pyright: ignore
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)  # pyright: ignore


class transformed_by_products(TorchFunctionMode):
    """A context manager: under a transform, an LSTM is composed of matrix products.

    ``vmap`` would call the kernel of oneDNN for one member after the other. Products have batching
    rules: a population of 16 takes half of the time.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        apart = func is torch.lstm and transformed()
        with by_products() if apart else contextlib.nullcontext():
            return func(*args, **(kwargs or {}))


def mode_for(graph: GraphModule) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Makes a context manager in which a recorded graph is to be called.

    The kernel of oneDNN keeps what its backward pass needs only where gradients are enabled,
    whatever its arguments are.
    """
    kernel: Any = torch.ops.aten.mkldnn_rnn_layer.default
    used = bool(graph.graph.find_nodes(op="call_function", target=kernel))
    return torch.enable_grad if used else contextlib.nullcontext
