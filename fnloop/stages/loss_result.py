"""Normalize and check the results of loss and evaluation functions."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fnloop._torch.constants import constant
from fnloop.stages.remedies import remedy
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.looking import look
from fnloop.values.metrics import Mean, Metric, as_tensor, check_metrics, exact
from fnloop.values.micro import Micro
from fnloop.values.packed_rows import PackedRows
from fnloop.values.padded import Padded
from fnloop.values.rows import UnclearRows, rows
from fnloop.values.state import State


class LossResult(NamedTuple):
    """The normalized result of a loss function.

    Attributes:
        loss: 0-d float; the mean loss if `examples` is not None, else the weighted sum of losses.
            None if the loss says that the batch is skipped, without a tensor to differentiate.
        examples: The number of examples in the mean, or None.
        weight: int64[] or float64[] on the loss's device.
        metrics: All reported metrics, including "loss".
    """

    loss: Tensor | None
    examples: int | None
    weight: Tensor
    metrics: dict[str, Any]


def read_loss(result: Any, batch: Any, who: Any, detach: bool = True) -> LossResult:
    """Normalize the result of a loss function.

    Args:
        result: A scalar tensor (the mean over the batch's examples), `fl.Mean`, or a tuple of
            either with a dict of metrics.
        batch: The batch; its leading dimension is the weight of a scalar.
        who: The function, for messages.
        detach: Whether to detach the reported metrics.

    Raises:
        TypeError: The result has another type.
        ValueError: The loss is not 0-d; it reports a metric "loss" or "skipped"; or the number of
            examples is unknown.
    """
    extra: Any = {}
    if isinstance(result, tuple):
        if len(result) != 2 or not isinstance(result[1], Mapping):
            raise TypeError(
                f"The loss {_name(who)} returned a tuple of {', '.join(map(short, result))}; a "
                "loss returns a scalar or fl.Mean, optionally with a dict of metrics: return "
                "loss, {'accuracy': ...}."
            )
        result, extra = result
    if isinstance(result, Mean):
        total = result.total
        if _is_number(total) and _is_number(result.weight) and not result.weight:
            none = as_tensor(0, _device(batch))
            loss = Mean(none.double(), none)
            return LossResult(None, None, none, _reported(loss, extra, batch, who, detach))
        if not isinstance(total, Tensor) or total.ndim:
            raise ValueError(
                f"The loss {_name(who)} returned fl.Mean with total {short(total)}; the total of "
                "a loss is a 0-d tensor: the sum of weight times loss."
            )
        weight = _weight(result.weight, total.device, who)
        if detach:
            weight = weight.detach()
        # A total of weight zero counts for nothing, as in the gradient, even if it is nan.
        total_ = as_tensor(total.detach() if detach else total, total.device)
        loss = Mean(torch.where(weight == 0, 0.0, total_), weight)
        return LossResult(total, None, weight, _reported(loss, extra, batch, who, detach))
    if not isinstance(result, Tensor):
        raise TypeError(
            f"The loss {_name(who)} returned {type(result).__name__}; it must return a scalar "
            "tensor, or fl.Mean(total, weight), or either with a dict of metrics. To skip a batch, "
            "return fl.Mean(0, 0), a loss of weight zero."
        )
    if result.ndim:
        raise ValueError(
            f"The loss {_name(who)} returned a tensor of shape {list(result.shape)}; a loss is "
            "one number. Return its mean, loss.mean(); or, for a weighted mean, "
            "fl.Mean(total=(weight * loss).sum(), weight=weight.sum())."
        )
    if not result.is_floating_point():
        raise TypeError(
            f"The loss {_name(who)} returned {short(result)}, which has no gradient; return a "
            "float tensor."
        )
    count, device, value = examples(batch, who), result.device, look(result, detach)
    weight = constant(count, torch.int64, device)
    if isinstance(value, Tensor):
        value = exact(value)
    # The mean of no examples is nan, and must count for nothing.
    loss = Mean(as_tensor(value * count if count else 0.0, device), weight)
    metrics = _reported(loss, extra, batch, who, detach) if extra else {"loss": loss}
    return LossResult(result, count, weight, metrics)


def read_metrics(result: Any, batch: Any, who: Any) -> dict[str, Any]:
    """The metrics of an evaluation function, which returns a loss result or a dict of metrics."""
    if isinstance(result, Mapping):
        return {str(name): _metric(name, value, batch, who) for name, value in result.items()}
    return read_loss(result, batch, who).metrics


def examples(batch: Any, who: Any) -> int:
    """The number of examples, as by `rows`; 1 if the batch has only single values.

    Those of an `fl.data.Micro` are those of its parts.

    Raises:
        ValueError: It is unclear, or the batch has leaves of unknown types only; or it is padded.
    """
    if isinstance(batch, Micro):
        return sum([examples(part, who) for part in batch.parts])
    if isinstance(batch, Padded):
        raise ValueError(
            f"{_name(who)} returned a scalar, which is the mean over the batch's examples; but "
            "the batch is an fl.data.Padded, in which examples of weight zero may stand. Weigh "
            "them: fl.Mean((weight * losses).sum(), weight.sum()), with the weight in the batch "
            "and one loss for each example. The same for a metric."
        )
    if isinstance(batch, PackedRows):
        raise ValueError(
            f"{_name(who)} returned a scalar, which is the mean over the batch's rows; but the "
            "batch is an fl.data.PackedRows, which have unequally many tokens. Weigh the tokens: "
            "fl.Mean((weight * losses).sum(), weight.sum()), with weight = batch.continues() for a "
            "causal language model, else batch.document > 0. The same for a metric."
        )
    try:
        size = rows(batch)
    except UnclearRows as unclear:
        raise ValueError(
            f"{_name(who)} returned a scalar, which is the mean over the batch's examples; but how "
            f"many those are is unclear: {unclear}. Return the weight too: fl.Mean(total, weight)."
            + (_SINGLE if _may_be_one(batch) else "")
        ) from None
    if size is not None:
        return size
    unknown = [leaf for _, leaf in tree_items(batch) if not isinstance(leaf, _PLAIN)]
    if unknown:
        raise ValueError(
            f"The loss {_name(who)} returned a scalar, whose weight is the number of examples; "
            f"but no tensor was found in the batch of type {type(unknown[0]).__name__}. Use "
            "batches that are dicts or tuples of tensors, or return fl.Mean(total, weight)."
        )
    return 1


_SINGLE = (
    " If the data gives single examples, make batches of them first: fl.Batches(dataset, "
    "batch_size=32), or a DataLoader with a batch_size."
)


def _may_be_one(batch: Any) -> bool:
    """Whether no tensor has a dimension for examples besides one of its own."""
    return all([leaf.ndim < 2 for _, leaf in tree_items(batch) if isinstance(leaf, _ARRAYS)])


_ARRAYS = (Tensor, np.ndarray)
_PLAIN = (Tensor, np.ndarray, np.generic, int, float, complex, str, bytes)


def explain(error: Exception, who: Any, state: State, batch: Any) -> None:
    """Add notes to an error from the user's function: function, model and batch, and a remedy."""
    with contextlib.suppress(Exception):  # an exception class may not allow notes
        error.add_note(
            f"fnloop: this happened in {_name(who)}, called with the model {state.skeleton} and "
            f"the batch {short(batch)}."
        )
        if helps := remedy(error, state, batch):
            error.add_note(f"fnloop: {helps}")


def _reported(
    loss: Mean, extra: Mapping[str, Any], batch: Any, who: Any, detach: bool
) -> dict[str, Any]:
    for name in ("loss", "skipped"):
        if name in extra:
            raise ValueError(
                f"The loss {_name(who)} reports a metric named {name!r}, which fnloop reports "
                "itself. Give it another name."
            )
    if not extra:
        return {"loss": loss}
    others = {str(name): _metric(name, value, batch, who) for name, value in extra.items()}
    return {"loss": loss, **(tree_map(_detach, others) if detach else others)}


def _metric(name: Any, value: Any, batch: Any, who: Any) -> Any:
    if isinstance(value, Metric):
        check_metrics({name: value}, _name(who))
        return tree_map(functools.partial(as_tensor, device=_device(batch)), value)
    single = isinstance(value, (Tensor, np.generic, np.ndarray)) and not value.ndim
    number = as_tensor(value, _device(batch)) if single or _is_number(value) else None
    if isinstance(number, Tensor) and not number.is_complex():
        count = examples(batch, who)
        total = number * count if count else torch.zeros_like(number)
        return Mean(total, as_tensor(count, number.device))
    raise TypeError(
        f"The metric {name!r} of {_name(who)} is {short(value)}; a metric is a real number "
        "(a mean over the batch's examples), or one of fl.Mean, fl.Sum, fl.Max, ... ."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, torch.SymInt, torch.SymFloat))


def _weight(weight: Any, device: torch.device, who: Any) -> Tensor:
    """The weight of a loss as a 0-d tensor."""
    if _is_number(weight) and not 0 <= weight < math.inf:
        raise ValueError(
            f"The loss {_name(who)} returned fl.Mean with weight {weight}; a weight is finite and "
            "at least 0, and a batch of weight 0 is skipped."
        )
    found = as_tensor(weight, device)
    if not isinstance(found, Tensor) or found.ndim or found.is_complex():
        raise ValueError(
            f"The loss {_name(who)} returned fl.Mean with weight {short(weight)}; the weight of a "
            "loss is a number or a 0-d tensor, the sum of the examples' weights: "
            "fl.Mean(total=(weight * loss).sum(), weight=weight.sum())."
        )
    return found


def _device(batch: Any) -> torch.device:
    """The device of the batch's first tensor, else the CPU. Metrics that are numbers go there."""
    for leaf in tree_leaves(batch):
        if isinstance(leaf, Tensor):
            return leaf.device
    return torch.device("cpu")


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _name(who: Any) -> str:
    return who if isinstance(who, str) else short(who)
