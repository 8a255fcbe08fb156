from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fnloop._torch import fused

P, G = [torch.full((2,), 2.0), torch.ones(3)], [torch.full((2,), 0.5), torch.full((3,), -1.0)]
ONE = torch.tensor(1.0)


def sgd(params=P, grads=G, finite=True, quick=False, momentum=0.9, lr=0.1, memory=None):
    memory = [[torch.ones_like(p) for p in params]] if memory is None else memory
    kernel = fused.sgd(
        params, grads, memory, finite, quick, lr=lr, momentum=momentum, weight_decay=0.1,
        nesterov=False, maximize=False,
    )  # fmt: skip
    return kernel and kernel.on_copies()


def adam(params=P, grads=G, finite=True, quick=False, decoupled=True, weight_decay=0.1, lr=0.1):
    memory = [[torch.full_like(p, m) for p in params] for m in (3.0, 4.0)]
    kernel = fused.adam(
        params, grads, memory, ONE, finite, quick, decoupled=decoupled, lr=lr, betas=(0.9, 0.99),
        eps=1e-8, weight_decay=weight_decay, maximize=False,
    )  # fmt: skip
    return kernel and kernel.on_copies()


def adagrad(params=P, grads=G, finite=True, quick=False, lr=0.1):
    memory = [[torch.full_like(p, 3.0) for p in params]]
    kernel = fused.adagrad(
        params, grads, memory, ONE, finite, quick, lr=lr, lr_decay=0.0, weight_decay=0.1, eps=1e-8,
        maximize=False,
    )  # fmt: skip
    return kernel and kernel.on_copies()


every = pytest.mark.parametrize("kernel", [sgd, adam, adagrad])


def double(tensors):
    return [t.double() for t in tensors]


@every
def test_used_where_the_kernels_are(kernel):
    assert kernel() is not None
    assert kernel(quick=True) is not None
    assert kernel(lr=torch.tensor(0.1)) is not None
    assert kernel(double(P), double(G)) is not None
    with torch.no_grad():
        recorded = [p.clone().requires_grad_() for p in P]
        assert kernel(recorded) is not None
        assert kernel(lr=torch.tensor(0.1, requires_grad=True)) is not None


@every
def test_not_used_elsewhere(kernel):
    assert kernel(P, [g.bfloat16() for g in G]) is None
    assert kernel([P[0], P[1].double()], G) is None
    assert kernel(lr=torch.tensor(0.1, requires_grad=True)) is None
    assert kernel([], []) is None and kernel([], [], quick=True) is None
    assert kernel(quick=True, lr=torch.tensor(0.1, requires_grad=True)) is None
    assert kernel(P, [G[0], torch.ones(1)]) is None
    seen = []
    torch.func.vmap(lambda x: seen.append([kernel(), kernel(quick=True)]) or x)(torch.ones(2))
    assert seen == [[None, None]]


def test_memory_of_other_shapes_is_an_error_where_a_kernel_would_read_beyond_it():
    with pytest.raises(ValueError, match="other shapes than the parameters"):
        sgd(memory=[[torch.ones(1), torch.ones(3)]])


def test_a_momentum_of_zero_with_memory_is_not_for_the_kernel():
    assert sgd(momentum=0.0) is None
    assert sgd(momentum=0.0, memory=[]) is not None


def test_gradients_that_lie_otherwise_are_not_read_as_if_they_did_not():
    params, grads = [torch.randn(3, 4)], [torch.randn(4, 3).t()]
    assert sgd(params, grads) is None
    params = [torch.randn(4, 3).t()]
    (new,), _ = sgd(params, grads)
    torch.testing.assert_close(new, params[0] - 0.1 * (0.9 + grads[0] + 0.1 * params[0]))


@every
def test_what_is_made_is_fresh_and_in_groups(kernel):
    before = [t.clone() for t in [*P, *G]]
    made = kernel()
    assert all([t.shape for t in part] == [(2,), (3,)] for part in made)
    addresses = {t.data_ptr() for part in made for t in part}
    assert not addresses & {t.data_ptr() for t in [*P, *G]}
    assert len(addresses) == 2 * len(made)
    assert all(map(torch.equal, [*P, *G], before))


@every
def test_the_quick_way_is_the_same_way(kernel):
    for slow, quick in zip(kernel(), kernel(quick=True), strict=True):
        assert all(map(torch.equal, slow, quick))


@every
def test_the_flag_stops_every_kernel(kernel):
    for plain, flagged in zip(kernel(), kernel(finite=torch.tensor(True)), strict=True):
        assert all(map(torch.equal, plain, flagged))
    bad = [torch.full_like(g, torch.nan) for g in G]
    kept = kernel(P, bad, finite=torch.tensor(False))
    assert all(map(torch.equal, kept[0], P))
    for part in kept[1:]:
        assert all(t.isfinite().all() and t.unique().numel() == 1 for t in part)
        assert float(part[0][0]) in (1.0, 3.0, 4.0)


@pytest.mark.parametrize("finite", [True, torch.tensor(True), torch.tensor(False)], ids=str)
def test_a_decay_that_is_a_tensor_is_taken_apart(finite):
    number = adam(finite=finite)
    for part, expected in zip(
        adam(finite=finite, weight_decay=torch.tensor(0.1)), number, strict=True
    ):
        torch.testing.assert_close(part, expected)
    if finite is not True and not finite:
        kept = adam(finite=finite, weight_decay=torch.tensor(0.1))
        assert all(map(torch.equal, kept[0], P))


class Calls(TorchDispatchMode):
    """The arguments of fused kernels, by name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_fused" in str(func):
            self.seen.append(kwargs)
            return None
        return func(*args, **(kwargs or {}))


@every
def test_a_learning_rate_elsewhere_than_on_the_cpu_is_float32(kernel):
    """The kernels for CUDA read its memory as such."""
    far = lambda tensors: [t.to("meta") for t in tensors]  # noqa: E731
    with Calls() as calls:
        rate = torch.tensor(0.1, dtype=torch.float64, device="meta")
        kernel(far(P), far(G), quick=True, lr=rate)
    assert [call["lr"].dtype for call in calls.seen] == [torch.float32]
