"""Products of float32 matrices by oneDNN, in compiled steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop._torch import products

SETTING = torch.backends.mkldnn.matmul


def loss(model, x):
    return model(x).square().mean()


def compiled(width, backend):
    step = fl.compile(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(1.0))), backend=backend)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    return step, step.init(model), torch.randn(64, width)


def looking(found, error=None):
    """A backend that notes the setting of products where a graph runs."""

    def backend(graph, inputs):
        def run(*given):
            found.append(SETTING.fp32_precision)
            if error is not None:
                raise error
            return graph(*given)

        return run

    return backend


@pytest.fixture(autouse=True)
def unset():
    """Tests before these may have chosen one; "highest" in PyTorch's older interface is one."""
    before, SETTING.fp32_precision = SETTING.fp32_precision, "none"
    yield
    SETTING.fp32_precision = before


@pytest.fixture
def faster(monkeypatch):
    """As on a processor where oneDNN is faster: whether it is matters for no setting."""
    monkeypatch.setattr(products, "available", lambda: True)


@pytest.mark.parametrize(("width", "setting"), [(8, "none"), (64, "none"), (512, "bf16")])
@pytest.mark.usefixtures("faster")
def test_onednn_computes_large_products_only(width, setting):
    found: list[str] = []
    step, state, x = compiled(width, looking(found))
    step(state, x)
    assert found == [setting] and SETTING.fp32_precision == "none"


@pytest.mark.usefixtures("faster")
def test_members_of_a_population_are_one_product():
    found: list[str] = []
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(1.0)))
    models = [nn.Linear(64, 64) for _ in range(64)]
    state = fl.tree_map(lambda *leaves: torch.stack(leaves), *map(step.init, models))
    mapped = fl.stage(torch.func.vmap(step, in_dims=(0, None)), "step")
    fl.compile(mapped, backend=looking(found))(state, torch.ones(64, 64))
    assert found == ["bf16"]


def test_it_is_not_used_where_it_would_round(monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(products, "available", lambda: False)
    step, state, x = compiled(512, looking(found))
    step(state, x)
    assert found == ["none"]


@pytest.mark.usefixtures("faster")
def test_an_error_in_the_graph_leaves_the_setting_as_it_was():
    found: list[str] = []
    step, state, x = compiled(512, looking(found, RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        step(state, x)
    assert found == ["bf16"] and SETTING.fp32_precision == "none"


@pytest.mark.parametrize(("chosen", "within"), [("ieee", "bf16"), ("tf32", "tf32")])
@pytest.mark.parametrize("where", [SETTING, torch.backends.mkldnn])
@pytest.mark.usefixtures("faster")
def test_a_chosen_precision_stays(chosen, within, where):
    """What rounds nothing may be computed by oneDNN, too."""
    found: list[str] = []
    step, state, x = compiled(512, looking(found))
    where.fp32_precision = chosen
    try:
        step(state, x)
        assert found == [within] and SETTING.fp32_precision == chosen
    finally:
        where.fp32_precision = "none"
    assert SETTING.fp32_precision == "none"


def test_a_large_step_is_as_exact_as_an_eager_one():
    step, state, x = compiled(512, "aot_eager")
    after, _ = step(state, x)
    eager, _ = step.inner(state, x)
    double = fl.tree_map(lambda t: t.double() if t.is_floating_point() else t, state)
    exact, _ = step.inner(double, x.double())
    for name, parameter in exact.params.items():
        error = (after.params[name] - parameter).abs().max()
        assert error <= 2 * (eager.params[name] - parameter).abs().max() + 1e-7


def attending(keys, size, found):
    """A compiled step with causal attention; it notes which operation computes it."""

    def loss(model, x):
        q = k = v = model(x)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).square().mean()

    def backend(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return lambda *given: graph(*given)

    step = fl.compile(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(1.0))), backend=backend)
    torch.manual_seed(0)
    return step, step.init(nn.Linear(size, size)), torch.randn(2, 2, keys, size)


@pytest.mark.parametrize(("keys", "size", "fused"), [(64, 16, False), (65, 16, True)])
@pytest.mark.usefixtures("faster")
def test_attention_to_few_keys_is_two_products(keys, size, fused):
    found: list[str] = []
    step, state, x = attending(keys, size, found)
    after, metrics = step(state, x)
    assert any(["attention" in name for name in found]) is fused
    assert any(["bmm" in name for name in found]) is not fused
    expected, eager = step.inner(state, x)
    torch.testing.assert_close(metrics["loss"].value(), eager["loss"].value())
    torch.testing.assert_close(dict(after.params), dict(expected.params))


@pytest.mark.parametrize(("keys", "faster"), [(128, False), (2048, True)])
def test_the_products_of_attention_count(keys, faster):
    """Of few queries at a time they are small, and oneDNN would take longer."""
    q = torch.empty(2, 2, keys, 64)
    graph = torch.fx.symbolic_trace(
        lambda q: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(q, q, q)
    )
    for node in graph.graph.nodes:
        node.meta["val"] = q
    assert (products.gain(graph) > 0) is faster


def test_whether_it_is_faster_is_found_out_anywhere():
    expected = products.available.__wrapped__()
    fakes = torch._subclasses.FakeTensorMode()
    with torch.autocast("cpu", dtype=torch.bfloat16), fakes, torch.device("meta"):
        assert products.available.__wrapped__() is expected
