"""Editing and splitting trees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fnloop as fl


@fl.tree
class Node:
    left: Any
    right: Any
    size: int = 0


def test_a_node_is_replaced_and_the_old_tree_stays():
    shared = torch.ones(2)
    old = Node(shared, {"a": shared})
    new = fl.tree_at(lambda t: t.right["a"], old, 5)
    assert new.right["a"] == 5 and new.left is shared and old.right["a"] is shared


def test_whole_subtrees_and_several_nodes():
    old = Node(Node(1, 2), (3, 4))
    assert fl.tree_at(lambda t: t.left, old, None).left is None
    assert fl.tree_at(lambda t: (t.left.left, t.right), old, (9, "x")) == Node(Node(9, 2), "x")
    assert fl.tree_at(lambda t: t.right, old, (7, 8)).right == (7, 8)


@pytest.mark.parametrize("where", [lambda t: t.size, lambda t: 3, lambda t: (t.left, 3)])
def test_what_is_no_node_is_refused(where):
    with pytest.raises(ValueError, match="must return a node"):
        fl.tree_at(where, Node(1, 2), (1, 2) if isinstance(where(Node(1, 2)), tuple) else 1)


def test_the_number_of_values_must_fit():
    with pytest.raises(ValueError, match="2 nodes, but 3 values"):
        fl.tree_at(lambda t: (t.left, t.right), Node(1, 2), (1, 2, 3))


def test_partition_and_combine_are_inverse():
    tree = Node(torch.ones(2), {"a": 1.0, "b": [2, None]})
    tensors, rest = fl.partition(tree, lambda leaf: isinstance(leaf, torch.Tensor))
    assert fl.tree_leaves(tensors) == [tree.left] and fl.tree_leaves(rest) == [1.0, 2]
    assert fl.combine(tensors, rest) == fl.combine(rest, tensors) == tree
