"""``folds``: the rows of k-fold cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fnloop.data.permutation import permute
from fnloop.data.whole import whole_numbers
from fnloop.names.keywords import explained
from fnloop.values.counts import as_count


@explained
def folds(
    n: int, k: int, labels: Sequence[int] | Tensor | None = None, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Cut `n` examples into `k` parts, each of which is held out once.

    The examples are shuffled and dealt out, as cards are: parts differ by one example at most. With
    `labels` they are dealt out class by class, so that the parts differ by one example at most in
    each class, too.

    Args:
        n: Number of examples.
        k: Number of folds, from 2 to `n`.
        labels: The class of each example, a whole number, for folds with all classes in the same
            proportion (stratified).
        seed: Of the shuffle, any integer.

    Returns:
        For each fold the rows to train on and the rows that are held out, ascending: int64.

    Raises:
        TypeError: `labels` are no whole numbers.
        ValueError: `k` is out of bounds, or there are more or fewer labels than examples.

    >>> for rows, held_out in folds(7, 3):
    ...     rows.tolist(), held_out.tolist()
    ([2, 3, 5, 6], [0, 1, 4])
    ([0, 1, 2, 3, 4], [5, 6])
    ([0, 1, 4, 5, 6], [2, 3])
    """
    n = as_count(n, "folds(n)", 2)
    k = as_count(k, "folds(n, k)", 2)
    if k > n:
        raise ValueError(
            f"folds({n}, {k}): there are {n} examples, and each of {k} folds holds out one at "
            "least. Give the number of examples first, then that of folds."
        )
    order = permute(torch.arange(n, device="cpu"), n, as_count(seed, "seed", least=None))
    if labels is not None:
        order = order[_checked(labels, n)[order].argsort(stable=True)]
    fold_of = torch.empty(n, dtype=torch.int64, device="cpu")
    fold_of[order] = torch.arange(n, device="cpu") % k
    return [((fold_of != i).nonzero()[:, 0], (fold_of == i).nonzero()[:, 0]) for i in range(k)]


def _checked(labels: Any, n: int) -> Tensor:
    found = whole_numbers(labels, "folds(labels=...)", "the class of each example")
    if len(found) != n:
        raise ValueError(
            f"folds({n}, ...): there are {len(found)} labels for {n} examples. Give each example "
            "its class, in the order of the data."
        )
    return found
