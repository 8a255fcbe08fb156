"""``soap`` against the authors' implementation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.optim import adamw, soap
from tests.optim.published import SHAPES, check, gradient, run, start

# github.com/nikhilvyas/SOAP at a1e5535, SOAP, 25 steps; its eigendecompositions, which it makes
# in float32, made in float64.
PUBLISHED = {
    "as it is": (
        soap(),
        {
            "w": [0.0145889158, 0.8947367094, -0.2867009437, 2.1987435336],
            "b": [0.7917196547, 0.4066466874, -0.8938538488, 1.2614104181],
            "k": [0.8576292548, -0.547381738, -0.7277059391, 2.4051823526],
        },
    ),
    # lr=0.02, betas=(0.9, 0.8), shampoo_beta=0.7, weight_decay=0.3, precondition_frequency=1
    "often": (
        soap(0.02, 0.9, 0.8, b_shampoo=0.7, weight_decay=0.3, every=1),
        {
            "w": [0.1147114267, 0.4626805985, -0.3553456783, 1.384015986],
            "b": [0.4381147381, 0.2408381025, -0.4915027084, 0.701086605],
            "k": [0.5646734556, -0.4892434344, -0.5234312833, 1.629997393],
        },
    ),
    # lr=0.05, precondition_frequency=3, max_precond_dim=3
    "short sides alone": (
        soap(0.05, every=3, max_size=3),
        {
            "w": [-0.171472784, -0.0041765274, 0.1646768303, 0.5214139153],
            "b": [0.1269016743, 0.0747973497, -0.1327963689, 0.1983268869],
            "k": [0.291030379, -0.5574450039, -0.3278975686, 1.3003679849],
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_the_authors(name):
    optimizer, expected = PUBLISHED[name]
    check(run(optimizer, 25)[0], expected, rel=1e-7)


def test_bases_are_orthonormal_and_the_first_step_moves_nothing():
    params, memory = run(soap(every=2), 1)
    for name, p in start().items():
        assert torch.equal(params[name], p)
    for steps in (1, 5):
        _, memory = run(soap(every=2), steps)
        for axis, named in memory["soap"]["basis"].items():
            for name, basis in named.items():
                n = SHAPES[name][int(axis)]
                torch.testing.assert_close(basis @ basis.T, torch.eye(n, dtype=torch.float64))


def test_without_bases_it_is_adam_a_step_later():
    """All sides are too long for one: AdamW, but for where the weight decay is taken."""
    options = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.0}
    ours, _ = run(soap(0.05, max_size=1, **options), 9)
    optimizer, params = adamw(0.05, **options), fl.Tensors(start())
    memory = optimizer.init(params)
    for t in range(1, 9):
        grads = params.map_named(lambda p, t=t: gradient(p, t))
        params, memory = optimizer.apply(grads, memory, params, t - 1, True)
    torch.testing.assert_close(dict(ours), dict(params))


def test_a_derivative_through_the_bases_is_refused():
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def after(rate):
        step = fl.pipe(loss, fl.grad, fl.update(soap(rate, every=1)))
        state = fl.unroll(step, step.init(lambda: nn.Linear(3, 2), seed=0), [x] * 4)
        return state.params.norm()

    rate = torch.tensor(0.1)
    with pytest.raises(RuntimeError, match=r"soap cannot be differentiated.*fl\.optim\.adamw"):
        torch.func.grad(after)(rate)
    with pytest.raises(RuntimeError, match="soap cannot be differentiated"):
        torch.func.jvp(after, (rate,), (torch.ones(()),))
    rate.requires_grad_()
    with pytest.raises(RuntimeError, match="soap cannot be differentiated"):
        torch.autograd.grad(after(rate), rate)


def test_errors():
    with pytest.raises(ValueError, match=r"soap\(every=\.\.\.\)"):
        soap(every=0)
    with pytest.raises(TypeError, match="soap is not defined for complex parameters"):
        soap().init(fl.Tensors({"z": torch.ones(2, dtype=torch.complex64)}))
