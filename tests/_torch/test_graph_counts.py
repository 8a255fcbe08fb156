"""The counts of Dynamo are where they are read."""

from __future__ import annotations

import sys

import torch

from fnloop._torch.graph_counts import graph_counts


def test_graphs_and_breaks_are_counted():
    def f(x):
        y = x + 1
        torch._dynamo.graph_break()
        return y * 2

    before = graph_counts()
    torch.compile(f, backend="eager")(torch.ones(3))
    now = graph_counts()
    assert now.graphs - before.graphs == 2 and now.breaks - before.breaks == 1


def test_without_dynamo_there_are_none(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo.utils", raising=False)
    assert graph_counts() == (0, 0)
