"""Writes to given memory are refused before they happen."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fnloop._torch.read_only import ReadOnly


def clamp(w, x):
    w.clamp_(max=0)


def by_data(w, x):
    w.data *= 2


def assign_to_view(w, x):
    w.detach().t()[0] = 1


def copy(w, x):
    w.view(-1).data[1:].copy_(torch.zeros(5))


def out(w, x):
    torch.add(x, 1, out=w)


def foreach(w, x):
    torch._foreach_mul_([x, w], 2.0)


def renormalize(w, x):
    F.embedding(torch.tensor([0]), w, max_norm=0.1)


def exchange(w, x):
    w.set_(x)


@pytest.mark.parametrize(
    "write", [clamp, by_data, assign_to_view, copy, out, foreach, renormalize, exchange]
)
@torch.no_grad()
def test_writes_of_every_kind(write):
    w, x = torch.ones(2, 3), torch.ones(2, 3)
    with pytest.raises(KeyError, match="w"), ReadOnly({"other": x.clone(), "w": w}, KeyError):
        write(w, x)
    assert torch.equal(w, torch.ones(2, 3)) and torch.equal(x, torch.ones(2, 3))


def test_reading_and_writing_elsewhere():
    w = torch.ones(2, 3, requires_grad=True)
    with ReadOnly({"w": w}, KeyError):
        y = w.clone().mul_(2).relu_()
        y.sum().backward()
        F.batch_norm(w, torch.zeros(3), torch.ones(3), training=True)
    assert w.grad is not None


def test_of_tensors_in_one_storage_the_right_one_is_named():
    whole = torch.zeros(10)
    parts = {"a": whole[:4], "b": whole[4:7], "c": whole[7:]}
    for i, name in ((0, "a"), (3, "a"), (4, "b"), (9, "c")):
        with pytest.raises(KeyError, match=name), ReadOnly(parts, KeyError):
            whole[i] = 1
    assert not whole.any()


def test_under_transforms():
    w = torch.ones(2, 3)

    def f(w, x):
        w.detach().mul_(2)
        return (w * x).sum()

    with pytest.raises(KeyError, match="w"), ReadOnly({"w": w}, KeyError):
        torch.func.vmap(torch.func.grad(f))(w, torch.ones(2, 3))


def test_other_tensors_if_they_are_part_of_something():
    other = torch.ones(2)

    def owner(tensor):
        return "whole" if tensor.data_ptr() == other.data_ptr() else None

    with pytest.raises(KeyError, match="whole"), ReadOnly({}, KeyError, owner):
        other.data.add_(1)
    with ReadOnly({}, KeyError, owner):
        torch.ones(2).add_(other)


def test_tensors_without_memory_of_their_own():
    sparse = torch.eye(2).to_sparse()
    with ReadOnly({"sparse": sparse}, KeyError):
        torch.sparse.mm(sparse, torch.ones(2, 2)).add_(1)


def test_the_conjugate_of_a_number_is_no_view_of_a_tensor():
    w = torch.ones(2, dtype=torch.complex64, requires_grad=True)
    with ReadOnly({"w": w}, KeyError):
        (w * 1j).abs().sum().backward()
    assert w.grad is not None
