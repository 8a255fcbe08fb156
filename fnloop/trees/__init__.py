"""Frozen dataclasses that are pytrees, and functions over them. Knows nothing of training."""

from fnloop.trees.at import combine as combine
from fnloop.trees.at import partition as partition
from fnloop.trees.at import tree_at as tree_at
from fnloop.trees.equal import tree_diff as tree_diff
from fnloop.trees.equal import tree_equal as tree_equal
from fnloop.trees.paths import tree_paths as tree_paths
from fnloop.trees.show import tree_show as tree_show
from fnloop.trees.tree import is_tree as is_tree
from fnloop.trees.tree import static as static
from fnloop.trees.tree import tree as tree
from fnloop.trees.tree import tree_leaves as tree_leaves
from fnloop.trees.tree import tree_map as tree_map
