"""How many graphs ``torch.compile`` has made in this process, and how often one was broken off."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple


class GraphCounts(NamedTuple):
    """Of Dynamo, so far.

    Attributes:
        graphs: Graphs that were made.
        breaks: Places at which one was broken off.
    """

    graphs: int
    breaks: int


def graph_counts() -> GraphCounts:
    """Read the counts; zero where nothing was compiled by ``torch.compile``."""
    utils: Any = sys.modules.get("torch._dynamo.utils")  # importing it takes a second
    if utils is None:
        return GraphCounts(0, 0)
    counters = utils.counters
    return GraphCounts(
        counters["stats"].get("unique_graphs", 0), sum(counters["graph_break"].values())
    )
