"""The private PyTorch and optree APIs that fnloop uses: fails when a new release moves one."""

from __future__ import annotations

import inspect
import sys

import optree
import torch
from torch import nn

from fnloop._torch import autograd, foreach, fused, graph, pytree, random, tracing
from fnloop.data.prefetch import prefetch


def test_trees_can_be_registered_everywhere():
    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

    pytree.register(
        Pair,
        ("a",),
        lambda p: (p.a,),
        lambda p: (p.b,),
        lambda static, children: Pair(*children, *static),
    )
    assert optree.tree_leaves(Pair(1, 2)) == torch.utils._pytree.tree_leaves(Pair(1, 2)) == [1]


def test_transforms_are_seen():
    seen = []
    f = lambda x: (seen.append(tracing.tracing()), x.sum())[1]  # noqa: E731
    f(torch.ones(2))
    torch.func.grad(f)(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2, 2))
    assert seen == [False, True, True]


def test_seeding_is_undone():
    before = torch.get_rng_state()
    with random.seeded(3):
        a = torch.rand(4)
    with random.seeded(3):
        assert torch.equal(a, torch.rand(4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_the_engine_gives_what_autograd_grad_gives():
    model = nn.Linear(3, 2)
    x, unused = torch.randn(4, 3), torch.ones(2, requires_grad=True)
    inputs, seed = [*model.parameters(), unused], torch.tensor(3.0)
    loss = lambda: model(x).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(), inputs, seed, materialize_grads=True)
    for a, b in zip(autograd.gradients(loss(), inputs, seed), expected, strict=True):
        assert torch.equal(a, b)


def test_unscaling_finds_what_is_not_finite():
    xs = [torch.ones(3), torch.full((2,), 4.0)]
    assert foreach.unscale_(xs, torch.tensor(0.5)).item() == 0
    assert xs[1].tolist() == [2, 2]
    for bad in (torch.inf, -torch.inf, torch.nan):
        assert (
            foreach.unscale_([torch.ones(3), torch.tensor([1.0, bad])], torch.tensor(1.0)).item()
            == 1
        )


def test_foreach_agrees_with_one_by_one():
    xs = [torch.randn(3), torch.randn(2, 2)]
    ys = [torch.randn(3), torch.randn(2, 2)]
    eager = (
        foreach.add(xs, ys, alpha=2.0),
        foreach.lerp(xs, ys, 0.3),
        foreach.div(xs, 3.0),
        foreach.sqrt(foreach.abs(xs)),
    )

    def traced(x0):
        xs_ = [x0, xs[1]]
        return (
            foreach.add(xs_, ys, alpha=2.0),
            foreach.lerp(xs_, ys, 0.3),
            foreach.div(xs_, 3.0),
            foreach.sqrt(foreach.abs(xs_)),
        )

    batched = torch.func.vmap(traced, out_dims=0)(xs[0][None])
    for a, b in zip(eager, batched, strict=True):
        torch.testing.assert_close(a[0], b[0][0])
    whole = torch.linalg.vector_norm(torch.cat([x.flatten() for x in xs]))
    torch.testing.assert_close(foreach.norm(xs), whole)  # in another order, so to rounding
    assert foreach.norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]) == 5  # exact
    assert bool(foreach.all_finite(xs)) and not bool(
        foreach.all_finite([torch.tensor([torch.nan])])
    )


def test_fused_kernels_are_there():
    for name in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_"):
        assert hasattr(torch, name)
    assert fused is not None


def test_data_drawn_ahead_does_not_disturb_a_seeded_block():
    def noise(epoch):
        while True:
            yield torch.rand(10)

    def draw():
        with random.seeded(1):
            return [torch.rand(200).sum().item() for _ in range(10)]

    expected = draw()
    for i, _ in enumerate(prefetch(noise, depth=4).iterate()):
        assert draw() == expected
        if i == 100:
            break


def test_a_step_is_recorded_without_values_and_built():
    from torch._dynamo import lookup_backend
    from torch._functorch import config
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty_strided((3, 2), (1, 3), dtype=torch.float64)
        real = torch.arange(3.0, dtype=torch.float64)  # in the mode, so without values as well
        found = make_fx(
            lambda x: [x.t() * real, torch.ones(2)],
            tracing_mode="real",
            decomposition_table={},
            _allow_non_fake_inputs=True,
        )(x)
    assert (x.shape, x.stride(), type(x).__name__) == ((3, 2), (1, 3), "FakeTensor")
    assert next(iter(found.graph.nodes)).op == "placeholder"
    values = [node.meta["val"].shape for node in found.graph.nodes if "val" in node.meta]
    assert (2, 3) in values
    assert callable(lookup_backend("aot_eager"))
    assert hasattr(config, "enable_autograd_cache")
    inductor = graph.inductor()
    parameters = set(inspect.signature(inductor.compile_fx).parameters)
    assert {"inner_compile", "config_patches"} <= parameters
    parameters = set(inspect.signature(inductor.compile_fx_inner).parameters)
    assert {"gm", "example_inputs"} <= parameters


def test_what_inductor_builds_takes_a_list_and_is_called_directly():
    mode = graph.fake_mode()
    x = torch.arange(4.0)
    (fake,) = graph.without_values([x], mode)
    recorded = graph.record(lambda x: [x + 1, x.sum()], [fake], mode)
    run = graph.build(recorded, [fake], "inductor", graph.options(x.device, "default", 2))
    assert type(run).__name__ == "CompiledFxGraph", "the wrapper of AOTAutograd is back"
    more, total = run([x])
    assert torch.equal(more, x + 1) and float(total) == 6.0


def test_a_storage_counts_its_users():
    x = torch.zeros(3)
    count = torch._C._storage_Use_Count
    before = count(x.untyped_storage()._cdata)
    view = x[1:]
    assert count(x.untyped_storage()._cdata) == before + 1
    del view
    assert count(x.untyped_storage()._cdata) == before


def test_tensors_count_their_references():
    x = torch.zeros(3)
    before = sys.getrefcount(x)
    held = {"x": x}
    assert sys.getrefcount(x) == before + 1
    assert held["x"] is x


def test_random_operations_are_tagged():
    for operation in (torch.ops.aten.rand_like.default, torch.ops.aten.bernoulli_.float):
        assert torch.Tag.nondeterministic_seeded in operation.tags
    assert torch.Tag.nondeterministic_seeded not in torch.ops.aten.add.Tensor.tags


def test_onednn_can_be_turned_off_and_on():
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    assert torch._C._get_mkldnn_enabled() is False
    torch._C._set_mkldnn_enabled(before)
    assert torch._C._get_mkldnn_enabled() == before


def test_inductor_has_the_options_that_are_asked_of_it():
    from torch._inductor import config

    for mode in ("default", "max-autotune"):
        for device in ("cpu", "cuda"):
            for name in graph.options(torch.device(device), mode, graph.LARGE):
                assert name in config._config, name
