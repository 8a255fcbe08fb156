"""From a function to a graph, and to something that runs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from fnloop._torch import fakes, graph, machine_code


def recorded(function, *tensors):
    mode = fakes.fake_mode()
    return graph.record(function, fakes.without_values(tensors, mode), mode)


def operations(found):
    return [str(node.target) for node in found.graph.nodes if node.op == "call_function"]


def test_the_backward_pass_is_in_the_graph():
    def slope(w, x):
        w = w.detach().requires_grad_()
        with torch.enable_grad():
            return list(torch.autograd.grad((x @ w).tanh().sum(), [w]))

    w, x = torch.randn(3, 2), torch.randn(5, 3)
    found = recorded(slope, w, x)
    assert any("tanh_backward" in name for name in operations(found))
    torch.testing.assert_close(found(w, x)[0], slope(w, x)[0])
    other = torch.randn(5, 3)
    torch.testing.assert_close(found(w, other)[0], slope(w, other)[0])  # no value is in it


def test_tensors_from_outside_require_no_gradients_and_share_memory():
    layer = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    found = recorded(lambda x: [layer(x)], x)
    with torch.no_grad():
        layer.weight.mul_(2)
    (result,) = found(x)
    assert not result.requires_grad and list(found.parameters()) == []
    torch.testing.assert_close(result, layer(x).detach())
    assert layer.weight.requires_grad


def test_inputs_have_no_values_and_share_no_memory():
    x = torch.randn(3, 4).t()
    a, b, c = fakes.without_values([x, x, x[0]], fakes.fake_mode())
    assert (a.shape, a.stride(), a.dtype) == (x.shape, x.stride(), x.dtype)
    storages = {t.untyped_storage()._cdata for t in (a, b, c)}
    assert len(storages) == 3


def test_a_bias_is_taken_out_of_the_matrix_product_in_float32_only():
    def linear(x, w, b):
        return [nn.functional.linear(x, w, b)]

    for dtype, inside in ((torch.float32, False), (torch.float64, True), (torch.bfloat16, True)):
        x, w, b = (torch.randn(shape).to(dtype) for shape in ((5, 3), (2, 3), (2,)))
        found = recorded(linear, x, w, b)
        assert any("addmm" in name for name in operations(found)) == inside
        torch.testing.assert_close(found(x, w, b)[0], linear(x, w, b)[0])


def test_scalars_are_kept_out_of_loops():
    def decay(x, count):
        return [x * (1 - 0.9**count), count + 1]

    x, count = torch.randn(5), torch.tensor(3.0)
    found = recorded(decay, x, count)
    assert sum("as_strided" in name for name in operations(found)) == 1
    for a, b in zip(found(x, count), decay(x, count), strict=True):
        torch.testing.assert_close(a, b)


def test_prune_takes_out_what_nothing_reads():
    found = recorded(lambda a, b, c: [a + c], *[torch.randn(2)] * 3)
    assert graph.prune(found) == [0, 2]
    a, c = torch.randn(2), torch.randn(2)
    torch.testing.assert_close(found(a, c)[0], a + c)


def test_inputs_that_are_met_on_the_way_come_last_by_their_place():
    def function(x):
        late = graph.another_input((1, 0), lambda: torch.empty(3))
        early = graph.another_input((0, 5), lambda: torch.empty(3))
        return [x * late - early]

    found = recorded(function, torch.ones(3))
    x, early, late = torch.randn(3), torch.randn(3), torch.randn(3)
    assert torch.equal(found(x, early, late)[0], x * late - early)


def test_an_input_that_is_written_to_is_kept():
    def swap(a, b):
        old = a.clone()
        a.copy_(b)
        return [old]

    found = recorded(swap, torch.zeros(2), torch.zeros(2))
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    (old,) = found(a, b)
    assert a.tolist() == [3, 4] and old.tolist() == [1, 2]


def update(vector, first, second):
    """The parts of a vector are inputs beside it; some are read for its new value, some are not.

    Of what is read for it and for others too, a compiler may compute the reading twice.
    """
    both = first.sin()
    new = vector - 0.1 * torch.cat([second.flip(0), both])
    others = [(first * 3).sum(), second.exp(), both[:7].sum()]
    vector.copy_(new)  # last, as in a donated step
    return others


@pytest.mark.parametrize(
    ("backend", "size"),
    [("aot_eager", 9), ("inductor", 9), ("inductor", machine_code.LARGE)],
    ids=["aot_eager", "inductor", "inductor, large"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_parts_of_a_vector_are_read_before_it_is_written(backend, size):
    cuts = {1: ((40,), (1,), 0), 2: ((40,), (1,), 40)}
    vector = torch.randn(80, generator=torch.Generator().manual_seed(0))
    parts = [vector.as_strided(*cut) for cut in cuts.values()]
    new = vector - 0.1 * torch.cat([parts[1].flip(0), parts[0].sin()])
    others = [(parts[0] * 3).sum(), parts[1].exp(), parts[0][:7].sin().sum()]
    expected = [t.clone() for t in [new, *others]]

    mode = fakes.fake_mode()
    inputs = fakes.without_values([vector, *parts], mode)
    found = graph.record(update, inputs, mode)
    graph.read_before_writing(found, 0, cuts)
    used = graph.prune(found)
    assert used == [0, 2]  # only `second.flip(0)` is read for the new value alone
    options = machine_code.options(vector.device, "default", Counter(any=size), 1.0)
    run = machine_code.build(found, [inputs[i] for i in used], backend, options)
    results = run([[vector, *parts][i] for i in used])
    for a, b in zip([vector, *results], expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "function, kinds",
    [
        (lambda x: [x * x.sum().item()], graph.DATA_DEPENDENT),
        (lambda x: [x[x > 0]], graph.DYNAMIC_SHAPE),
        (lambda x: [torch.nonzero(x)], graph.DYNAMIC_SHAPE),
    ],
)
def test_what_cannot_be_recorded_raises_what_errors_translate(function, kinds):
    with graph.quiet(), pytest.raises(kinds):
        recorded(function, torch.ones(3))


def test_results_are_copied_except_those_that_are_copied_anyway():
    x, y = torch.ones(2), torch.ones(3)
    a, b, c = graph.copies([x, None, y], {2})
    assert a is not x and torch.equal(a, x) and b is None and c is y
