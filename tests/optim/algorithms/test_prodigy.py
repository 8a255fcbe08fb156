"""``prodigy`` against the authors' implementation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.optim import prodigy
from tests.optim.published import check, run

# prodigyopt 1.1.2, Prodigy, thirty steps; the last number is group["d"].
PUBLISHED = {
    "as it is": (
        prodigy(),
        {
            "w": [-0.0575778245, -1.5913111308, -0.5182109747, 2.4939346411],
            "b": [-0.3109466954, 0.4196241916, 0.4790610441, 0.7087113612],
            "k": [-0.344788745, -0.5428804296, -0.3273067344, 1.9400504571],
        },
        0.30827499682628545,
    ),
    # lr=0.7, weight_decay=0.1, d0=1e-3, d_coef=2.0, growth_rate=1.3, use_bias_correction=True
    "with growth": (
        prodigy(0.7, weight_decay=0.1, d0=1e-3, d_coef=2.0, growth=1.3, bias_correction=True),
        {
            "w": [-0.0324589693, 0.1854887551, 0.1021406134, 0.6755353162],
            "b": [0.0573280093, -0.1656882706, 0.3235743364, 0.3680209978],
            "k": [0.120230248, 0.2191603407, 0.2971285914, 0.6869326432],
        },
        0.4928918619059,
    ),
    # lr=0.5, weight_decay=0.1, decouple=False, safeguard_warmup=True, beta3=0.9
    "with an L2 penalty": (
        prodigy(0.5, weight_decay=0.1, decoupled=False, safeguard_warmup=True, b3=0.9),
        {
            "w": [0.0055271351, 0.7737734005, -0.1945083575, 1.7984628616],
            "b": [0.6434660953, 0.3180296473, -0.7412493536, 1.031814943],
            "k": [0.7011888567, -0.3892088507, -0.5833816066, 1.9445572789],
        },
        0.04915410250507817,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_the_authors(name):
    optimizer, expected, d = PUBLISHED[name]
    params, memory = run(optimizer, 30)
    check(params, expected)
    assert float(memory["prodigy"]["d"]) == pytest.approx(d, rel=1e-9)
    assert float(optimizer.measured(memory)["prodigy.d"]) == pytest.approx(d, rel=1e-9)


def test_it_finds_a_rate_where_one_was_not_given_and_reports_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    y = x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.update(prodigy(fl.schedules.cosine(1.0, steps=200))))
    state = step.init(lambda: nn.Linear(4, 1), seed=0)
    for _ in range(200):
        state, metrics = step(state, (x, y))
    assert float(metrics["loss"]) < 1e-3
    assert 0.1 < float(metrics["prodigy.d"]) < 10


def test_a_gradient_of_zero_changes_nothing():
    params = fl.Tensors({"w": torch.ones(3)})
    optimizer = prodigy()
    new, memory = optimizer.apply(params.zeros(), optimizer.init(params), params, 0, True)
    assert torch.equal(new["w"], params["w"])
    assert float(memory["prodigy"]["d"]) == 1e-6


def test_complex_parameters_count_as_pairs_of_numbers():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, generator=generator, dtype=torch.complex128)
    kinds = [fl.Tensors({"z": z}), fl.Tensors({"z": torch.view_as_real(z)})]
    made = []
    for params in kinds:
        optimizer = prodigy(d0=1e-2)
        memory = optimizer.init(params)
        for t in range(10):
            params, memory = optimizer.apply(params.scale(1 + t), memory, params, t, True)
        made.append(params["z"])
    torch.testing.assert_close(torch.view_as_real(made[0]), made[1])


def test_errors():
    with pytest.raises(ValueError, match=r"prodigy\(d0=.* above 0, got 0"):
        prodigy(d0=0.0)
    with pytest.raises(ValueError, match=r"prodigy\(growth=.* at least 1"):
        prodigy(growth=0.5)
