"""Gradients of single examples that a recorded graph only sums are not stored."""

from __future__ import annotations

import pytest
import torch

from fnloop._torch import fakes, graph


def recorded(function, *tensors):
    mode = fakes.fake_mode()
    return graph.record(function, fakes.without_values(tensors, mode), mode)


def tensors(n=6):
    generator = torch.Generator().manual_seed(0)
    column = torch.randn(n, 5, 1, generator=generator)
    row = torch.randn(n, 1, 4, generator=generator)
    return column, row, torch.rand(n, 1, 1, generator=generator)


def norms(column, row, factor):
    return [torch.linalg.vector_norm(torch.bmm(column, row), dim=(1, 2))]


def norms_turned(column, row, factor):
    return [torch.linalg.vector_norm(torch.bmm(column, row).transpose(1, 2), dim=(-1, -2))]


def weighted(column, row, factor):
    return [(torch.bmm(column, row) * factor).sum(0)]


def weighted_turned(column, row, factor):
    return [(torch.bmm(column, row).mT * factor).sum(0)]


def chosen(column, row, factor):
    terms = torch.bmm(column, row) * factor
    return [torch.where(factor > 0.5, terms, torch.zeros_like(terms)).sum(0)]


FOUND = (norms, norms_turned, weighted, weighted_turned, chosen)


@pytest.mark.parametrize("function", FOUND)
def test_norms_and_weighted_sums_are_made_of_columns_and_rows(function):
    found = recorded(function, *tensors())
    products = [
        node
        for node in found.graph.nodes
        if isinstance(v := node.meta.get("val"), torch.Tensor) and v.shape in ((6, 5, 4), (6, 4, 5))
    ]
    assert not products
    (result,), (expected,) = found(*tensors()), function(*tensors())
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_what_is_left_out_may_be_anything(bad):
    column, row, factor = tensors()
    factor[2] = 0.1
    column[2], row[2] = bad, bad
    (result,) = recorded(chosen, column, row, factor)(column, row, factor)
    torch.testing.assert_close(result, chosen(column, row, factor)[0])
    assert result.isfinite().all()


def maximum(column, row, factor):
    return [torch.bmm(column, row).amax(0)]


def norm_of_columns(column, row, factor):
    return [torch.linalg.vector_norm(torch.bmm(column, row), dim=1)]


def norm_of_all(column, row, factor):
    return [torch.linalg.vector_norm(torch.bmm(column, row).view(-1))]


def other_norm(column, row, factor):
    return [torch.linalg.vector_norm(torch.bmm(column, row), 1, dim=(1, 2))]


def otherwise(column, row, factor):
    terms = torch.bmm(column, row) * factor
    return [torch.where(factor > 0.5, terms, torch.ones_like(terms)).sum(0)]


def by_element(column, row, factor):
    return [(torch.bmm(column, row) * column).sum(0)]


def by_wider(column, row, factor):
    return [(torch.bmm(column, row) * factor.double()).sum(0)]


def of_longer(column, row, factor):
    return [(torch.bmm(column.mT, row.expand(6, 5, 4)) * factor).sum(0)]


OTHERS = (
    maximum,
    norm_of_columns,
    norm_of_all,
    other_norm,
    otherwise,
    by_element,
    by_wider,
    of_longer,
)


@pytest.mark.parametrize("function", OTHERS)
def test_all_else_is_what_it_was(function):
    (result,), (expected,) = recorded(function, *tensors())(*tensors()), function(*tensors())
    torch.testing.assert_close(result, expected)
