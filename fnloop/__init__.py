"""fnloop: training pipelines as pure functions."""

from fnloop.trees import combine as combine
from fnloop.trees import partition as partition
from fnloop.trees import static as static
from fnloop.trees import tree as tree
from fnloop.trees import tree_at as tree_at
from fnloop.trees import tree_diff as tree_diff
from fnloop.trees import tree_equal as tree_equal
from fnloop.trees import tree_leaves as tree_leaves
from fnloop.trees import tree_map as tree_map
from fnloop.trees import tree_show as tree_show
from fnloop.values import *  # noqa
from fnloop.stages import *
from fnloop.optim import *
