"""``self.log``: what a module logs, as metrics that merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnloop.lightning.metric_objects import is_metric
from fnloop.trees.nodes import tree_leaves
from fnloop.trees.show import short
from fnloop.values.metrics import Max, Mean, Metric, Min, Sum


class Log:
    """Collects what is logged, weighted by the size of the batch.

    Attributes:
        metrics: By name.
        objects: Objects of torchmetrics that were logged, by name.
        batch: What is at hand; its size is the weight of a mean.
        suffix: Added to each name: which of several loaders it is of.

    Args:
        read: What makes a metric of an object of torchmetrics when it is logged; None to keep it
            in `objects`.
    """

    def __init__(self, read: Callable[[Any], Metric] | None = None) -> None:
        self.metrics: dict[str, Metric] = {}
        self.objects: dict[str, Any] = {}
        self.batch: Any = None
        self.suffix = ""
        self._read = read

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """As ``LightningModule.log``; metrics merge, so that steps and epochs have one name."""
        name = name + self.suffix if add_dataloader_idx else name
        if is_metric(value):
            if self._read is None:
                self.objects[name] = value
            else:
                self.metrics[name] = self._read(value)
            return
        if isinstance(value, Mapping):
            raise ValueError(
                f"self.log({name!r}, ...) was given a dict; self.log_dict logs its entries by name."
            )
        number: Any = value.squeeze() if isinstance(value, Tensor) else value
        single = not number.ndim if isinstance(number, Tensor) else isinstance(number, _NUMBERS)
        if not single:
            raise ValueError(
                f"self.log({name!r}, ...) was given {short(value)}; what is logged is one number, "
                "or an object of torchmetrics."
            )
        size = batch_size_of(self.batch) if batch_size is None else batch_size
        made = _metric(number, reduce_fx, size, name)
        self.metrics[name] = self.metrics[name].merge(made) if name in self.metrics else made

    def values(self) -> dict[str, Tensor]:
        """The values so far, as ``trainer.callback_metrics`` has them."""
        return {name: torch.as_tensor(m.value()) for name, m in self.metrics.items()}


_NUMBERS = (bool, int, float, np.number)


def _metric(value: Any, reduce_fx: Any, size: int, name: str) -> Metric:
    how = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
    if how in ("mean", "avg"):
        return Mean(value * size, size)
    kinds: dict[str, Any] = {"sum": Sum, "min": Min, "max": Max, "amin": Min, "amax": Max}
    if how not in kinds:
        raise ValueError(
            f"self.log({name!r}, reduce_fx={short(reduce_fx)}): a metric is reduced by 'mean', "
            "'sum', 'min' or 'max'. What else there is, is an object of torchmetrics."
        )
    return kinds[how](value)


def batch_size_of(batch: Any) -> int:
    """The size of the first tensor in a batch, as Lightning has it; 1 without one.

    >>> batch_size_of({"x": torch.zeros(3, 2), "scale": 1.0}), batch_size_of(None)
    (3, 1)
    """
    for leaf in tree_leaves(batch):
        own = leaf if isinstance(leaf, Tensor) else _inside(leaf)
        if own is not None:
            return own.shape[0] if own.ndim else 1
    return 1


def _inside(leaf: Any) -> Tensor | None:
    """The first tensor among the attributes of an object that is a batch."""
    return next((v for v in getattr(leaf, "__dict__", {}).values() if isinstance(v, Tensor)), None)
