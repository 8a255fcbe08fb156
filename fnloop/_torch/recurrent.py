"""Recurrent layers by oneDNN, where that is the faster library."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch.fx import GraphModule


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


def mode_for(graph: GraphModule) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Makes a context manager in which a recorded graph is to be called.

    The kernel of oneDNN keeps what its backward pass needs only where gradients are enabled,
    whatever its arguments are.
    """
    kernel: Any = torch.ops.aten.mkldnn_rnn_layer.default
    used = bool(graph.graph.find_nodes(op="call_function", target=kernel))
    return torch.enable_grad if used else contextlib.nullcontext
