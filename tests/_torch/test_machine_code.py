"""What a recorded graph is compiled with, and what of."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from torch import nn

from fnloop._torch import fakes, graph, machine_code


@pytest.mark.parametrize(
    "layers, asked",
    [
        ([nn.Conv2d(3, 4, 3)], None),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], False),
        ([nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)], False),
        ([nn.Conv2d(3, 4, 3), nn.LayerNorm([4, 6, 6])], None),
    ],
)
def test_convolutions_that_are_normalized_keep_their_layout(layers, asked):
    net, mode = nn.Sequential(*layers), fakes.fake_mode()
    (x,) = fakes.without_values([torch.randn(2, 3, 8, 8)], mode)
    with mode:
        net = net.to_empty(device="cpu")
        recorded = graph.record(lambda x: [net(x)], [x], mode)
    found = machine_code.options(torch.device("cpu"), "default", graph.operations_of(recorded), 1.0)
    assert found.get("layout_optimization") is asked


def test_a_chain_as_long_as_the_graph_may_be_followed_by_recursion():
    def depth(n):
        return n and 1 + depth(n - 1)

    before = sys.getrecursionlimit()
    with machine_code._room_for(before):
        assert depth(2 * before) == 2 * before
    assert sys.getrecursionlimit() == before
    with pytest.raises(RecursionError):
        depth(2 * before)


def viewed(x):
    """A view that exists of PyTorch's result, and not of Inductor's, which has other strides."""
    joined = torch.cat([x.new_empty(0), x.transpose(1, 2)], 1)
    return [joined.view(-1, 3) * 2]


def written(x):
    rows = x * 2
    rows.view(-1)[1:].add_(1)
    return [rows]


def test_inductor_may_give_other_strides_to_what_is_viewed():
    x, mode = torch.randn(4, 3, 5), fakes.fake_mode()
    (fake,) = fakes.without_values([x], mode)
    recorded = graph.record(viewed, [fake], mode)
    run = machine_code.build(
        recorded, [fake], "inductor", machine_code.options(x.device, "default", Counter(), 1.0)
    )
    assert torch.equal(run([x])[0], viewed(x)[0])


def test_a_view_that_is_written_to_stays_one():
    mode = fakes.fake_mode()
    (fake,) = fakes.without_values([torch.randn(4, 3, 5)], mode)
    for function, kept in ((viewed, 0), (written, 1)):
        recorded = graph.record(function, [fake], mode)
        machine_code._reshape_views(recorded)
        names = [node.target for node in recorded.graph.nodes]
        assert names.count(torch.ops.aten.view.default) == kept
