"""Folds: the properties that scikit-learn's have."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl


def counts(rows, labels, classes):
    return torch.bincount(labels[rows], minlength=classes)


@pytest.mark.parametrize("n, k", [(2, 2), (7, 3), (20, 20), (101, 5), (1000, 7)])
@pytest.mark.parametrize("stratified", [False, True])
def test_each_example_is_held_out_once_and_else_trained_on(n, k, stratified):
    labels = torch.arange(n) % 3 if stratified else None
    found = fl.data.folds(n, k, labels=labels)
    assert len(found) == k
    for rows, held_out in found:
        assert torch.equal(torch.cat([rows, held_out]).sort().values, torch.arange(n))
        assert torch.equal(rows, rows.sort().values)
        assert torch.equal(held_out, held_out.sort().values)
    assert torch.equal(torch.cat([held for _, held in found]).sort().values, torch.arange(n))
    sizes = [len(held) for _, held in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_classes_have_the_same_proportion_as_in_scikit_learn(seed):
    selection = pytest.importorskip("sklearn.model_selection")
    labels = torch.multinomial(
        torch.tensor([0.5, 0.3, 0.12, 0.08]),
        317,
        replacement=True,
        generator=torch.Generator().manual_seed(seed),
    )
    parts = [counts(held, labels, 4) for _, held in fl.data.folds(317, 6, labels, seed)]
    spread = torch.stack(parts).max(0).values - torch.stack(parts).min(0).values
    assert spread.max() <= 1
    theirs = selection.StratifiedKFold(6, shuffle=True, random_state=seed)
    other = [counts(held, labels, 4) for _, held in theirs.split(labels, labels)]
    for mine, reference in zip(torch.stack(parts).T, torch.stack(other).T, strict=True):
        assert sorted(mine.tolist()) == sorted(reference.tolist())


def test_a_seed_is_an_order_and_another_seed_another():
    held = [fl.data.folds(50, 5, seed=seed)[0][1].tolist() for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert held[0] != list(range(10)), "shuffled"


def test_misuse():
    for arguments, error, message in (
        ((5, 6), ValueError, "there are 5 examples, and each of 6 folds"),
        ((5, 1), ValueError, "at least 2"),
        ((5, 2.0), TypeError, "whole number"),
        ((5, 2, [0, 1]), ValueError, "2 labels for 5 examples"),
        ((5, 2, torch.rand(5)), TypeError, "the class of each example"),
    ):
        with pytest.raises(error, match=message):
            fl.data.folds(*arguments)
    with pytest.raises(AttributeError, match=r"fl\.data\.folds"):
        fl.StratifiedKFold  # noqa: B018
