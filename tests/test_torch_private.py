"""The private PyTorch and optree APIs that fnloop uses: fails when a new release moves one."""

from __future__ import annotations

import optree
import torch
from torch import nn

from fnloop._torch import autograd, foreach, fused, pytree, random, tracing
from fnloop.data import prefetch


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
