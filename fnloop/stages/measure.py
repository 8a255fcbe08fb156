"""What a loss may return, in one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fnloop._torch.tracing import compilation, tracing
from fnloop.trees.nodes import tree_map
from fnloop.trees.paths import tree_items
from fnloop.trees.show import short
from fnloop.values.metrics import Mean, Metric
from fnloop.values.state import State


class Measured(NamedTuple):
    """A loss's result.

    Attributes:
        loss: 0-d; the mean loss if `examples` is given, else the weighted sum of losses.
        examples: The number of examples that a mean is over.
        weight: float64[] on the loss's device.
        metrics: Everything reported, "loss" included, detached.
    """

    loss: Tensor
    examples: int | None
    weight: Tensor
    metrics: dict[str, Any]


def measure(result: Any, batch: Any, who: Any) -> Measured:
    """Bring the result of a loss function into one form.

    Args:
        result: A scalar tensor (the mean over the batch's examples), `fl.Mean`, or a tuple of
            either with a dict of metrics.
        batch: What the loss was computed on; its leading dimension weighs a scalar.
        who: The function, for messages.

    Raises:
        TypeError, ValueError: The result is something else.
    """
    extra: Any = {}
    if isinstance(result, tuple):
        if len(result) != 2 or not isinstance(result[1], Mapping):
            raise TypeError(
                f"The loss {_name(who)} returned a tuple of {', '.join(map(short, result))}; a "
                "loss returns a "
                "scalar or fl.Mean, or that and a dict of metrics: return loss, {'accuracy': ...}."
            )
        result, extra = result
    if isinstance(result, Mean):
        total = result.total
        if not isinstance(total, Tensor) or total.ndim:
            raise ValueError(
                f"The loss {_name(who)} returned fl.Mean with total {short(total)}; the total of "
                "a loss is a 0-d tensor: the sum of weight times loss."
            )
        weight = _as_weight(result.weight, total)
        loss = Mean(total.detach().to(torch.float64), weight)
        return Measured(total, None, weight, _reported(loss, extra, batch, who))
    if not isinstance(result, Tensor):
        raise TypeError(
            f"The loss {_name(who)} returned {type(result).__name__}; it must return a scalar "
            "tensor, or fl.Mean(total, weight), or either with a dict of metrics."
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
    count = examples(batch, who)
    weight = constant(count, result.device, torch.float64)
    loss = _mean(result, count)
    metrics = _reported(loss, extra, batch, who) if extra else {"loss": loss}
    return Measured(result, count, weight, metrics)


def measure_metrics(result: Any, batch: Any, who: Any) -> dict[str, Any]:
    """The metrics of an evaluation function: what a loss may return, or a dict of metrics alone."""
    if isinstance(result, Mapping):
        return _metrics(result, batch, who)
    return measure(result, batch, who).metrics


def examples(batch: Any, who: Any) -> int:
    """The number of examples: the common leading dimension of the batch's tensors and arrays.

    Raises:
        ValueError: They disagree, or there is none to tell.
    """
    if type(batch) is tuple and len(batch) == 2:  # (x, y): the common case, without a tree walk
        x, y = batch
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim:
            size = x.shape[0]
            if size == y.shape[0]:
                return size
    sizes = leading_sizes(batch)
    if len(sizes) > 1:
        found = ", ".join(f"{path or 'the batch'} has {size}" for size, path in sizes.items())
        raise ValueError(
            f"The loss {_name(who)} returned a scalar, whose weight is the number of examples; but "
            f"the leading dimensions of the batch's tensors disagree: {found}. Say the weight "
            "yourself: return fl.Mean(total, weight)."
        )
    unknown = [leaf for _, leaf in tree_items(batch) if not isinstance(leaf, _PLAIN)]
    if not sizes and unknown:
        raise ValueError(
            f"The loss {_name(who)} returned a scalar, whose weight is the number of examples; "
            f"but the batch is of {type(unknown[0]).__name__}, in which no tensor is seen. Give "
            "batches that are dicts or tuples of tensors, or return fl.Mean(total, weight)."
        )
    return next(iter(sizes), 1)


def leading_sizes(batch: Any) -> dict[int, str]:
    """The leading dimensions of the batch's tensors and arrays, each with the path of one."""
    sizes: dict[int, str] = {}
    for path, leaf in tree_items(batch):
        if isinstance(leaf, (Tensor, np.ndarray)) and leaf.ndim:
            sizes.setdefault(leaf.shape[0], path)
    return sizes


_PLAIN = (Tensor, np.ndarray, int, float, complex, str, bytes)


def explain(error: Exception, who: Any, state: State, batch: Any) -> None:
    """Add to an error in the user's function where it happened, and on what."""
    error.add_note(
        f"fnloop: this happened in {_name(who)}, called with the model {state.skeleton} and the "
        f"batch {short(batch)}."
    )


def constant(value: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A 0-d tensor, shared between steps: nothing in fnloop writes in place."""
    if compilation() is not None:
        return torch.full((), value, dtype=dtype, device=device)
    key = (value, device, dtype)
    found = _CONSTANTS.get(key)
    if found is None:
        found = torch.tensor(value, dtype=dtype, device=device)
        # One that was made under a transform or in inference mode must not outlive it.
        if not tracing() and not torch.is_inference_mode_enabled() and len(_CONSTANTS) < 4096:
            _CONSTANTS[key] = found
    return found


_CONSTANTS: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}


def _as_weight(weight: Any, like: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        return weight.detach().to(like.device, torch.float64)
    return constant(float(weight), like.device, torch.float64)


def _metrics(extra: Mapping[str, Any], batch: Any, who: Any) -> dict[str, Any]:
    return {str(name): _metric(name, value, batch, who) for name, value in extra.items()}


def _mean(value: Tensor, count: int) -> Mean:
    """A mean over `count` examples; on the CPU a plain number, where looking costs nothing."""
    if value.device.type == "cpu" and not tracing():
        return Mean(value.item() * count, float(count))
    weight = constant(count, value.device, torch.float64)
    return Mean(value.detach() * weight, weight)


def _reported(loss: Mean, extra: Mapping[str, Any], batch: Any, who: Any) -> dict[str, Any]:
    for name in ("loss", "skipped"):
        if name in extra:
            raise ValueError(
                f"The loss {_name(who)} reports a metric named {name!r}, which fnloop reports "
                "itself. Give it another name."
            )
    return {"loss": loss, **_metrics(extra, batch, who)}


def _metric(name: Any, value: Any, batch: Any, who: Any) -> Any:
    if isinstance(value, Mean):
        total, weight = _detached(value.total), _detached(value.weight)
        if isinstance(total, Tensor):
            total = total.to(torch.float64)
        return dataclasses.replace(value, total=total, weight=weight)
    if isinstance(value, Metric):
        return tree_map(_detached, value)
    if isinstance(value, (int, float)):
        value = torch.tensor(float(value))
    if isinstance(value, Tensor) and not value.ndim:
        return _mean(value, examples(batch, who))
    raise TypeError(
        f"The metric {name!r} of {_name(who)} is {short(value)}; a metric is a scalar (a mean "
        "over the batch's examples), or one of fl.Mean, fl.Sum, fl.Max, ... ."
    )


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _name(who: Any) -> str:
    return who if isinstance(who, str) else short(who)
