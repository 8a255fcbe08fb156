"""Who takes the state of whom: the selection rules of population-based training."""

from __future__ import annotations

import torch
from torch import Tensor


def truncation(scores: Tensor, active: Tensor, draws: Tensor, fraction: float) -> Tensor:
    """Members at the bottom take from members at the top (Jaderberg et al., 2017, section 4.1).

    Of `m` active members the worst ``fraction * m``, but at least one, draw from as many of the
    best with equal chances.

    Args:
        scores: float64[n], larger is better, and nan is worst.
        active: bool[n]; the others neither give nor take.
        draws: float64[n], uniform in [0, 1).
        fraction: Of the members at each end, above 0 and at most a half.

    Returns:
        int64[n]: whose state each takes; its own number for its own.

    >>> scores = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7], dtype=torch.float64)
    >>> everybody, draws = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.float64)
    >>> truncation(scores, everybody, draws, 0.4).tolist()
    [1, 1, 1, 3, 4]
    """
    order, rank, m = _ranked(scores, active)
    ends = (fraction * m + 1e-9).floor().clamp(min=1).minimum(m // 2)  # 0.3 * 10 is below 3
    others = order[(draws * ends).long()]
    return _better(scores, others, active & (rank >= m - ends))


def tournament(scores: Tensor, active: Tensor, draws: Tensor) -> Tensor:
    """Each takes from another, drawn with equal chances, if that is better (section 4.3).

    Args, returns:
        As for `truncation`.

    >>> scores = torch.tensor([0.3, 0.9, 0.1], dtype=torch.float64)
    >>> draws = torch.zeros(3, dtype=torch.float64)  # each draws the next in order of their scores
    >>> tournament(scores, torch.ones(3, dtype=torch.bool), draws).tolist()
    [0, 1, 1]
    """
    order, rank, m = _ranked(scores, active)
    further = 1 + (draws * (m - 1)).long()
    others = order[(rank + further) % m.clamp(min=1)]
    return _better(scores, others, active)


def _ranked(scores: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Members from the best to the worst, inactive ones last; their ranks; how many are active."""
    by_score = torch.argsort(_known(scores), descending=True, stable=True)
    order = by_score[torch.argsort(~active[by_score], stable=True)]
    return order, torch.argsort(order), active.sum()


def _better(scores: Tensor, others: Tensor, takes: Tensor) -> Tensor:
    scores = _known(scores)
    takes = takes & (scores[others] > scores)  # of equal ones each keeps its own
    return torch.where(takes, others, torch.arange(len(scores), device=scores.device))


def _known(scores: Tensor) -> Tensor:
    return torch.where(scores.isnan(), -torch.inf, scores)
