"""Functions that `fl.evaluate` and `fl.predict` call, in another precision."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fnloop.stages.functions import Function, as_loss
from fnloop.stages.module_precisions import within
from fnloop.stages.precisions import PRECISIONS, cast
from fnloop.trees.nodes import static, tree, tree_leaves
from fnloop.trees.show import short
from fnloop.values.context import casting


@tree
class InPrecision(Function):
    """What `amp` makes of a function of a model and a batch.

    Attributes:
        call: The function.
        precision, modules: As in `amp`.
    """

    only_evaluates: ClassVar[bool] = True
    precision: str
    modules: Any = static(default=None)

    def __post_init__(self) -> None:
        as_loss(self.call, "fn(model, batch)")

    def __call__(self, *args: Any) -> Any:
        model, batch, *state = args
        device, own = _device(model, batch), PRECISIONS[self.precision]
        if own.stored is not None:
            batch = cast(batch, own.stored)
        with own.running(), within(self.modules, model, device), casting(own.autocast, device):
            return self.call(model, batch, *state)

    def __repr__(self) -> str:
        own = "" if self.modules is None else f", modules={self.modules!r}"
        return f"amp({self.precision!r}{own})({short(self.call)})"


def _device(model: Any, batch: Any) -> torch.device:
    """Where the model is; without parameters, where the batch is."""
    of_module = isinstance(model, nn.Module)
    own = itertools.chain(model.parameters(), model.buffers()) if of_module else ()
    leaves = itertools.chain(own, tree_leaves((model, batch)))
    return next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))
