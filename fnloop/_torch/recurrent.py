"""Recurrent layers by oneDNN, where that is the faster library."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fnloop._torch.tracing import transformed


class lstm_by_products(TorchFunctionMode):
    """A context manager: under a transform, an LSTM is composed of matrix products.

    On the CPU it is one kernel of oneDNN, forward and backward, which ``vmap`` calls for one member
    after the other. Products have batching rules: a population of 16 takes half of the time.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.lstm or not transformed():
            return func(*args, **(kwargs or {}))
        before = torch._C._get_mkldnn_enabled()  # pyright: ignore
        torch._C._set_mkldnn_enabled(False)  # pyright: ignore
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch._C._set_mkldnn_enabled(before)  # pyright: ignore
