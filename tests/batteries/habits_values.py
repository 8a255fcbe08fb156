"""Values of tensors in Python: to check, to report, and to choose by."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .habit import habits

VALUES, habit = habits()


def loss_of(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@habit()
def assertion(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    assert torch.isfinite(loss), f"the loss is {loss}"
    return loss


@habit()
def assertion_of_the_targets(model: Any, batch: Any) -> Tensor:
    assert not batch[0].isnan().any()
    assert batch[1].min() >= 0 and batch[1].max() < 4
    return loss_of(model, batch)


@habit()
def error_for_nan(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    if torch.isnan(loss):
        raise ValueError("the loss is nan")
    return loss


@habit()
def assertion_of_torch(model: Any, batch: Any) -> Tensor:
    torch._assert((batch[1] < 4).all(), "there are four classes")
    loss = loss_of(model, batch)
    torch._assert_async(loss.isfinite())
    return loss


def _assertion_of_all(model: Any, batch: Any) -> Tensor:
    assert (batch[1] < 4).all()
    return loss_of(model, batch)


@habit(refused="assert (x < n).all() in place of", instead=_assertion_of_all)
def assertion_of_a_number(model: Any, batch: Any) -> Tensor:
    assert batch[1].max().item() < 4
    return loss_of(model, batch)


def _assertion_of_either(model: Any, batch: Any) -> Tensor:
    assert ((batch[1] < 4).all()) | (batch[1] == -100).all()
    return loss_of(model, batch)


@habit(refused="(a | b).all() in place of a or b", instead=_assertion_of_either)
def assertion_of_one_of_two(model: Any, batch: Any) -> Tensor:
    assert (batch[1] < 4).all() or (batch[1] == -100).all()
    return loss_of(model, batch)


def _reported_tensor(model: Any, batch: Any) -> Any:
    loss = loss_of(model, batch)
    return loss, {"value": loss}


@habit(refused="Report the tensor itself as a metric", instead=_reported_tensor)
def item_in_the_metrics(model: Any, batch: Any) -> Any:
    loss = loss_of(model, batch)
    return loss, {"value": loss.item()}


@habit(refused="Report the tensor itself as a metric", instead=_reported_tensor)
def list_in_the_metrics(model: Any, batch: Any) -> Any:
    loss = loss_of(model, batch)
    return loss, {"value": sum(loss.reshape(1).tolist())}


SEEN: list[float] = []


@habit(refused="report numbers as metrics", instead=_reported_tensor)
def item_for_a_log(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    SEEN.append(loss.item())
    return loss


@habit(refused="after the step, from its metrics", instead=_reported_tensor)
def array_for_a_log(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    SEEN.append(float(loss.detach().cpu().numpy()))
    return loss


@habit(refused="report numbers as metrics", instead=_reported_tensor)
def formatted_for_a_log(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    print(end=f"{loss.detach():.3f}"[:0])
    return loss


def _clipped_by_where(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    return torch.where(loss > 1, 0.5 * loss, loss)


@habit(refused="torch.where(condition, a, b)", instead=_clipped_by_where)
def if_by_a_value(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    if loss > 1:
        loss = 0.5 * loss
    return loss


def _halved_by_where(model: Any, batch: Any) -> Tensor:
    x = batch[0]
    for _ in range(8):
        x = torch.where(x.norm() > 1, x / 2, x)
    return F.cross_entropy(model(x), batch[1])


@habit(refused="for _ in range(most)", instead=_halved_by_where)
def while_by_a_value(model: Any, batch: Any) -> Tensor:
    x = batch[0]
    while x.norm() > 1:
        x = x / 2
    return F.cross_entropy(model(x), batch[1])


def _compared_as_tensor(model: Any, batch: Any) -> Tensor:
    same = ((batch[0] - batch[0].flip(0)).abs() <= 1e-5).all()
    loss = loss_of(model, batch)
    return torch.where(same, 2 * loss, loss)


@habit(refused="((a - b).abs() <= tolerance).all()", instead=_compared_as_tensor)
def allclose(model: Any, batch: Any) -> Tensor:
    same = torch.allclose(batch[0], batch[0].flip(0))
    return loss_of(model, batch) * (2 if same else 1)


def _sized_by_a_mask(model: Any, batch: Any) -> Tensor:
    w = (torch.arange(8) < batch[1].max()).float()
    return (w * model(batch[0]).square().mean(-1)).sum() / w.sum()


@habit(refused="a mask, torch.arange(size) < n", instead=_sized_by_a_mask)
def slice_of_a_size(model: Any, batch: Any) -> Tensor:
    size = int(batch[1].max())
    return model(batch[0])[:size].square().mean()


def _box_by_a_mask(model: Any, batch: Any) -> Tensor:
    inside = torch.arange(6) < torch.randint(6, (1,))
    return F.cross_entropy(model(torch.where(inside, 0.0, batch[0])), batch[1])


@habit(refused="a mask, torch.arange(size) < n", instead=_box_by_a_mask)
def cutout_of_a_size(model: Any, batch: Any) -> Tensor:
    size = torch.randint(6, (1,)).item()
    x = batch[0].clone()
    x[:, :size] = 0
    return F.cross_entropy(model(x), batch[1])


def _detached(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    return loss + model(batch[0]).square().mean() / loss.detach()


@habit(refused="use a tensor where a Python number", instead=_detached)
def weight_by_a_number(model: Any, batch: Any) -> Tensor:
    loss = loss_of(model, batch)
    return loss + model(batch[0]).square().mean() / float(loss)


def _drawn_by_torch(model: Any, batch: Any) -> Tensor:
    return torch.rand(()) * loss_of(model, batch)


@habit(refused="Draw with torch (torch.rand", instead=_drawn_by_torch, redrawn=True)
def number_drawn_by_python(model: Any, batch: Any) -> Tensor:
    return random.random() * loss_of(model, batch)


@habit(refused="Draw with torch (torch.rand", instead=_drawn_by_torch, redrawn=True)
def number_drawn_by_numpy(model: Any, batch: Any) -> Tensor:
    return float(np.random.rand()) * loss_of(model, batch)
