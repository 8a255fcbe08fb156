from __future__ import annotations

import pytest
import torch

from fnloop._torch import foreach

XS = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[4.0]])]
YS = [torch.tensor([3.0, 5.0, 7.0]), torch.tensor([[2.0]])]

OPERATIONS = {
    "add": (lambda xs: foreach.add(xs, YS, alpha=2.0), lambda x, y: x + 2.0 * y),
    "add scalar": (lambda xs: foreach.add(xs, torch.tensor(2.0).double()), lambda x, y: x + 2),
    "sub": (lambda xs: foreach.sub(xs, YS), lambda x, y: x - y),
    "mul": (lambda xs: foreach.mul(xs, torch.tensor(3.0).double()), lambda x, y: x * 3),
    "div": (lambda xs: foreach.div(xs, YS), lambda x, y: x / y),
    "maximum": (lambda xs: foreach.maximum(xs, YS), torch.maximum),
    "sign": (foreach.sign, lambda x, y: torch.sign(x)),
    "abs": (foreach.abs, lambda x, y: torch.abs(x)),
    "sqrt": (lambda xs: foreach.sqrt(foreach.abs(xs)), lambda x, y: x.abs().sqrt()),
    "lerp": (lambda xs: foreach.lerp(xs, YS, 0.25), lambda x, y: 0.75 * x + 0.25 * y),
    "clamp": (lambda xs: foreach.clamp(xs, -1.0, 2.0), lambda x, y: x.clamp(-1, 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_many_at_once_one_by_one_and_under_vmap(name):
    operation, reference = OPERATIONS[name]
    expected = [reference(x, y) for x, y in zip(XS, YS, strict=True)]
    plain = operation(XS)
    recorded = operation([x.clone().requires_grad_() for x in XS])
    mapped = torch.func.vmap(lambda xs: operation(xs))([x[None] for x in XS])
    for got in (plain, [r.detach() for r in recorded], [m[0] for m in mapped]):
        torch.testing.assert_close(got, expected)
    assert all(r.requires_grad for r in recorded) == (name != "sign" or recorded[0].requires_grad)
    assert operation([]) == [] if name in ("sign", "abs", "clone", "clamp") else True


def test_sqrt_has_a_derivative_of_zero_at_zero_and_keeps_nan():
    x = torch.tensor([4.0, 0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(foreach.sqrt([x])[0].sum(), x)
    assert slope.tolist() == [0.25, 0.0]
    slope = torch.func.grad(lambda x: foreach.sqrt([x])[0].sum())(x.detach())
    assert slope.tolist() == [0.25, 0.0]
    value = torch.tensor([torch.nan, -1.0, 0.0], requires_grad=True)
    assert foreach.sqrt([value])[0].isnan().tolist() == [True, True, False]


def test_the_scalar_alone_can_be_differentiated():
    # torch's own kernels raise "inconsistent range for TensorList output" here.
    scalar = torch.tensor(3.0, requires_grad=True)
    total = sum(x.sum() for x in foreach.mul(XS, scalar))
    assert float(torch.autograd.grad(total, scalar)[0]) == 3.0


def test_norm_of_half_precision_is_taken_in_float32():
    xs = [torch.full((300,), 300.0, dtype=torch.float16)]
    assert foreach.norm(xs).dtype == torch.float32
    assert float(foreach.norm(xs)) == pytest.approx(300.0 * 300**0.5, rel=1e-6)


def test_numbers_keep_dtypes_whatever_the_shapes():
    # A 0-d tensor in place of the number would widen what is 0-d itself, and round half precision.
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        xs = [torch.full((3,), 3.0, dtype=dtype), torch.tensor(7.0, dtype=dtype)]
        for mixed in (xs, [*xs, torch.ones(2, dtype=torch.float64)]):
            for got in (foreach.mul(mixed, 0.1), foreach.div(mixed, 0.1)):
                assert [g.dtype for g in got] == [x.dtype for x in mixed]
            assert all(map(torch.equal, foreach.mul(mixed, 0.1), [x * 0.1 for x in mixed]))
            assert all(map(torch.equal, foreach.div(mixed, 0.1), [x / 0.1 for x in mixed]))


def test_lerp_by_a_tensor_is_lerp_by_its_value():
    got = foreach.lerp(XS, YS, torch.tensor(0.25, dtype=torch.float64))
    assert all(map(torch.equal, got, [torch.lerp(x, y, 0.25) for x, y in zip(XS, YS, strict=True)]))


def test_complex_values_are_searched_too():
    xs = [torch.ones(2), torch.ones(2, dtype=torch.complex64)]
    assert foreach.all_finite(xs)
    xs[1][1] = complex(1.0, torch.inf)
    assert not foreach.all_finite(xs)
