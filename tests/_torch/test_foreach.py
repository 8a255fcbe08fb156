from __future__ import annotations

import pytest
import torch

import fnloop as fl
from fnloop._torch import foreach

XS = [torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[4.0]]), torch.tensor(-3.0)]
YS = [torch.tensor([3.0, 5.0, 7.0]), torch.tensor([[2.0]]), torch.tensor(0.5)]

OPERATIONS = {
    "add": (lambda xs, bulk: foreach.add(xs, YS, bulk), lambda x, y: x + y),
    "add number": (lambda xs, bulk: foreach.add(xs, 2.0, bulk), lambda x, y: x + 2),
    "sub": (lambda xs, bulk: foreach.sub(xs, YS, bulk), lambda x, y: x - y),
    "mul": (lambda xs, bulk: foreach.mul(xs, YS, bulk), lambda x, y: x * y),
    "mul number": (lambda xs, bulk: foreach.mul(xs, 3.0, bulk), lambda x, y: x * 3),
    "div": (lambda xs, bulk: foreach.div(xs, YS, bulk), lambda x, y: x / y),
    "div number": (lambda xs, bulk: foreach.div(xs, 3.0, bulk), lambda x, y: x / 3),
    "maximum": (lambda xs, bulk: foreach.maximum(xs, YS, bulk), torch.maximum),
    "sign": (foreach.sign, lambda x, y: torch.sign(x)),
    "abs": (foreach.abs, lambda x, y: torch.abs(x)),
    "clone": (foreach.clone, lambda x, y: x),
    "sqrt": (
        lambda xs, bulk: foreach.sqrt(foreach.abs(xs, bulk), bulk),
        lambda x, y: x.abs().sqrt(),
    ),
    "lerp": (lambda xs, bulk: foreach.lerp(xs, YS, 0.25, bulk), lambda x, y: 0.75 * x + 0.25 * y),
    "clamp": (lambda xs, bulk: foreach.clamp(xs, -1.0, 2.0, bulk), lambda x, y: x.clamp(-1, 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_in_bulk_one_by_one_recorded_and_under_vmap(name):
    operation, reference = OPERATIONS[name]
    expected = [reference(x, y) for x, y in zip(XS, YS, strict=True)]
    before = [x.clone() for x in XS]
    recorded = operation([x.clone().requires_grad_() for x in XS], False)
    mapped = torch.func.vmap(lambda xs: list(operation(xs, False)))([x[None] for x in XS])
    for got in (
        operation(XS, True),
        operation(XS, False),
        [r.detach() for r in recorded],
        [m[0] for m in mapped],
    ):
        torch.testing.assert_close(list(got), expected)
    assert all(map(torch.equal, XS, before)), "out of place"
    assert all(r.requires_grad for r in recorded)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bulk", [True, False])
def test_of_nothing_there_is_nothing(name, bulk, monkeypatch):
    operation, _ = OPERATIONS[name]
    monkeypatch.setitem(globals(), "YS", [])
    assert list(operation([], bulk)) == []


@pytest.mark.parametrize(
    ("operation", "reference"),
    [
        (foreach.add, torch.add),
        (foreach.sub, torch.sub),
        (foreach.mul, torch.mul),
        (foreach.div, torch.div),
    ],
)
def test_one_by_one_a_scalar_tensor_keeps_the_dtypes(operation, reference):
    scalar = torch.tensor(2.0, dtype=torch.float64)
    got = operation(XS, scalar, False)
    assert {g.dtype for g in got} == {torch.float32}
    torch.testing.assert_close(got, [reference(x, 2.0) for x in XS])


def test_sqrt_has_a_derivative_of_zero_at_zero_and_keeps_nan():
    x = torch.tensor([4.0, 0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(foreach.sqrt([x], False)[0].sum(), x)
    assert slope.tolist() == [0.25, 0.0]
    slope = torch.func.grad(lambda x: foreach.sqrt([x], False)[0].sum())(x.detach())
    assert slope.tolist() == [0.25, 0.0]
    value = torch.tensor([torch.nan, -1.0, 0.0], requires_grad=True)
    assert foreach.sqrt([value], False)[0].isnan().tolist() == [True, True, False]


def test_the_scalar_alone_can_be_differentiated():
    # torch's own kernels raise "inconsistent range for TensorList output" here.
    scalar = torch.tensor(3.0, requires_grad=True)
    total = sum(x.sum() for x in foreach.mul(XS, scalar, False))
    assert float(torch.autograd.grad(total, scalar)[0]) == 0.0 == float(sum(x.sum() for x in XS))
    total = sum(x.sum() for x in foreach.mul(YS, scalar, False))
    assert float(torch.autograd.grad(total, scalar)[0]) == 17.5


@pytest.mark.parametrize("bulk", [True, False])
def test_norm_of_half_precision_is_taken_in_float32(bulk):
    xs = [torch.full((300,), 300.0, dtype=torch.float16)]
    assert foreach.norm(xs, bulk).dtype == torch.float32
    assert float(foreach.norm(xs, bulk)) == pytest.approx(300.0 * 300**0.5, rel=1e-6)


@pytest.mark.parametrize("bulk", [True, False])
def test_norm_of_several_dtypes_is_the_widest(bulk):
    xs = [torch.tensor([3.0]), torch.tensor(4.0, dtype=torch.float64), torch.ones(0)]
    assert foreach.norm(xs, bulk).dtype == torch.float64 and float(foreach.norm(xs, bulk)) == 5.0
    assert float(foreach.norm([], bulk)) == 0.0


@pytest.mark.parametrize("n", [1, 1 << 10, 1 << 15])
def test_norm_of_small_and_of_large_tensors(n):
    xs = [torch.full((n,), 2.0), torch.full((3 * n,), 2.0)]
    for norm in (foreach.norm(xs, True), foreach.norm(xs, False), foreach.norm_of_small(xs)):
        assert float(norm) == pytest.approx(4 * n**0.5, rel=1e-6)
    assert float(fl.Tensors({"a": xs[0], "b": xs[1]}).norm()) == pytest.approx(4 * n**0.5, rel=1e-6)


def test_numbers_keep_dtypes_whatever_the_shapes():
    # A 0-d tensor in place of the number would widen what is 0-d itself, and round half precision.
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        xs = [torch.full((3,), 3.0, dtype=dtype), torch.tensor(7.0, dtype=dtype)]
        for mixed in (xs, [*xs, torch.ones(2, dtype=torch.float64)]):
            for bulk in (True, False):
                multiplied, divided = foreach.mul(mixed, 0.1, bulk), foreach.div(mixed, 0.1, bulk)
                for got in (multiplied, divided):
                    assert [g.dtype for g in got] == [x.dtype for x in mixed]
                assert all(map(torch.equal, multiplied, [x * 0.1 for x in mixed]))
                assert all(map(torch.equal, divided, [x / 0.1 for x in mixed]))


@pytest.mark.parametrize("bulk", [True, False])
def test_lerp_by_a_tensor_is_lerp_by_its_value(bulk):
    got = foreach.lerp(XS, YS, torch.tensor(0.25, dtype=torch.float64), bulk)
    assert all(map(torch.equal, got, [torch.lerp(x, y, 0.25) for x, y in zip(XS, YS, strict=True)]))


@pytest.mark.parametrize("bulk", [True, False])
def test_lerp_keeps_the_dtype_of_the_first(bulk):
    half = [x.bfloat16() for x in XS]
    for got, x, y in zip(foreach.lerp(half, YS, 0.25, bulk), half, YS, strict=True):
        assert torch.equal(got, torch.lerp(x, y.bfloat16(), 0.25))


def test_lerp_in_place_writes_over_the_first():
    xs = [x.clone() for x in XS]
    addresses = [x.data_ptr() for x in xs]
    foreach.lerp_(xs, YS, 0.25)
    assert [x.data_ptr() for x in xs] == addresses
    assert all(map(torch.equal, xs, foreach.lerp(XS, YS, 0.25, True)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_what_is_not_finite_is_found_wherever_it_is(bad, dtype):
    for place in range(2):
        xs = [torch.ones(3), torch.ones((), dtype=dtype)]
        assert foreach.all_finite(xs)
        if dtype == torch.int64:  # there is no such value
            continue
        xs[place].view(-1)[-1] = bad
        assert not foreach.all_finite(xs)
    assert foreach.all_finite([]) and foreach.all_finite([torch.ones(0)])


def test_large_values_of_both_signs_are_finite():
    xs = [torch.tensor([3e38, 3e38, -3e38]), torch.tensor([6e4, 6e4], dtype=torch.float16)]
    assert foreach.all_finite(xs)
    # one infinity of each sign: their sum would be nan, and so is each difference
    assert not foreach.all_finite([torch.tensor([torch.inf, -torch.inf])])


def test_select_takes_one_list_or_the_other():
    for flag, expected in ((True, XS), (False, YS)):
        assert all(map(torch.equal, foreach.select(torch.tensor(flag), XS, YS), expected))
