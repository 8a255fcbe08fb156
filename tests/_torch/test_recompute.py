"""What is kept for a backward pass and what is computed again, and how much memory that takes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import fnloop as fl
from fnloop._torch import lifetimes, passes
from fnloop._torch.partitioner import worth_keeping
from fnloop._torch.recompute import is_product, recompute


class Live(TorchDispatchMode):
    """Looks at the memory of all tensors that are made inside, after each operation."""

    def __init__(self):
        super().__init__()
        self.found, self.peak = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = [a.untyped_storage()._cdata for a in args if isinstance(a, Tensor)]
        for made in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in given:
                self.found.append((StorageWeakRef(made.untyped_storage()), made.nbytes))
        self.found = [(ref, size) for ref, size in self.found if not ref.expired()]
        self.peak = max(self.peak, sum(size for _, size in self.found))
        return result


def deep(layers=12, width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        *[layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.GELU())]
    )


def loss(model, batch):
    return model(batch).square().mean()


def recorded(*around, model=None, loss=loss, batch=None):
    """The graph of a step, and the inputs of its first call."""
    found = []

    def keep(graph, inputs):
        def run(*given):
            found.append([t.clone() if isinstance(t, Tensor) else t for t in given])
            return graph(*given)

        found.append(graph)
        return run

    step = fl.pipe(loss, fl.grad, *around, fl.update(fl.optim.sgd(0.1)))
    batch = torch.randn(512, 8) if batch is None else batch
    fl.compile(step, backend=keep)(step.init(model or deep(), seed=0), batch)
    return found


def run(graph, given):
    with Live() as live:
        results = graph(*given)
    return live.peak, results


def operations(graph):
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def test_the_passes_of_a_step_are_marked():
    graph, _ = recorded(fl.accumulate(3))
    found = passes.passes(graph)
    assert len(found) == 3
    for each in found:
        names = [[node.target.__name__ for node in part] for part in each]
        assert sum("gelu.default" in name for name in names[0]) == 12
        assert sum("gelu_backward.default" in name for name in names[1]) == 12
    marked = {node for each in found for part in each for node in part}
    assert 0 < len(marked) < len(operations(graph))  # the optimizer is in none


def test_nothing_is_marked_where_nothing_is_recorded():
    assert passes.begin() is None


def test_the_peak_is_that_of_a_run():
    graph, given = recorded()
    expected, _ = run(graph, given)
    assert lifetimes.peak(operations(graph), {}, {}) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("memory", [0.7, 0.4, 0.0])
@pytest.mark.parametrize("around", [(), (fl.accumulate(2),), (fl.amp("bf16"),)])
def test_less_memory_and_the_same_bits(memory, around):
    graph, given = recorded(*around)
    less = copy.deepcopy(graph)
    recompute(less, memory)
    most, expected = run(graph, given)
    peak, results = run(less, given)
    assert peak <= max(memory, 0.45) * most * 1.02
    assert fl.tree_equal(list(results), list(expected))


def test_a_whole_share_and_no_pass_change_nothing():
    graph, _ = recorded()
    before = len(operations(graph))
    recompute(graph, 1.0)
    assert len(operations(graph)) == before
    alone = torch.fx.symbolic_trace(lambda x: x + 1)
    recompute(alone, 0.0)
    assert len(operations(alone)) == 1


def test_products_are_computed_again_last():
    graph, _ = recorded(model=deep(width=64), batch=torch.randn(512, 64))
    little, much = copy.deepcopy(graph), copy.deepcopy(graph)
    recompute(little, 0.8)
    recompute(much, 0.0)

    def products(graph):
        return sum(map(is_product, operations(graph)))

    assert len(operations(little)) > len(operations(graph))
    assert products(little) == products(graph) < products(much)


def test_what_pytorchs_partitioner_keeps_is_enough_without_products():
    graph, _ = recorded()
    (each,) = passes.passes(graph)
    kept = worth_keeping(each)
    assert kept.isdisjoint(each.backward)
    known, needed = set(kept), {n for node in each.backward for n in node.all_input_nodes}
    missing = [node for node in needed if node in each.forward and node not in known]
    while missing:
        node = missing.pop()
        assert not is_product(node)
        known.add(node)
        missing += [n for n in node.all_input_nodes if n in each.forward and n not in known]


def test_a_value_that_much_later_layers_read_is_kept():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = deep()

        def forward(self, x):
            first = self.layers[:2](x)
            return self.layers[2:](first) * first

    graph, given = recorded(model=Skip())
    less = copy.deepcopy(graph)
    recompute(less, 0.5)
    most, expected = run(graph, given)
    peak, results = run(less, given)
    assert peak < 0.6 * most
    assert fl.tree_equal(list(results), list(expected))
