"""Every method of `Tensors` is what plain torch does name by name, in every layout."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import fnloop as fl
from fnloop.trees.paths import tree_paths
from fnloop.values.layouts import Group, Packed, Separate
from fnloop.values.tensors import Tensors

SHAPES = {"w": (3, 4), "s": (), "b": (4,), "v": (2, 4), "t": (), "k": (2, 2, 3)}
KINDS = {
    "float32": dict.fromkeys(SHAPES, torch.float32),
    "float64": dict.fromkeys(SHAPES, torch.float64),
    "bfloat16": dict.fromkeys(SHAPES, torch.bfloat16),
    "complex64": dict.fromkeys(SHAPES, torch.complex64),
    "mixed": {
        "w": torch.float32, "s": torch.complex64, "b": torch.bfloat16, "v": torch.float32,
        "t": torch.float64, "k": torch.complex64,
    },
}  # fmt: skip
LAYOUTS = ("separate", "packed")
HALF = (torch.bfloat16, torch.float16)


def group(*names):
    rows = tuple([SHAPES[name][0] if SHAPES[name] else None for name in names])
    return Group(names, rows, max(0, len(SHAPES[names[0]]) - 1))


def layout(kind, how):
    pairs = [name for name, dtype in KINDS[kind].items() if dtype.is_complex]
    if how == "separate":
        return Separate(SHAPES, pairs)
    if kind == "complex64":  # a trailing dimension of two
        joined = Group(("v", "w"), (2, 3), 2)
        return Packed([joined, *map(group, "sbtk")], SHAPES, pairs)
    if kind == "mixed":
        return Packed([group("v", "w"), *map(group, "sbtk")], SHAPES, pairs)
    return Packed([group("v", "w"), group("t", "b", "s"), group("k")], SHAPES)


def named(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            shape, generator=generator, dtype=torch.promote_types(d, torch.float32)
        ).to(d)
        for (name, shape), d in zip(SHAPES.items(), KINDS[kind].values(), strict=True)
    }


def stored(kind, how, seed=0):
    arranged = layout(kind, how)
    return Tensors.of(arranged, arranged.join(named(kind, seed)))


def real(t):
    return torch.view_as_real(t) if t.is_complex() else t


def back(t, like):
    return torch.view_as_complex(t) if like.is_complex() else t


def by_parts(function):
    """A function of named tensors: value by value, of the real and imaginary parts."""

    def run(*many):
        return {
            name: back(function(*[real(one[name]) for one in many]), t)
            for name, t in many[0].items()
        }

    return run


NUMBER = torch.tensor(0.375, dtype=torch.float64)  # exact in every dtype
YES, NO = torch.tensor(True), torch.tensor(False)

# Of two named tensors of one kind: our method, and torch's.
METHODS = {
    "add": (lambda a, b: a.add(b), by_parts(lambda x, y: x + y)),
    "add a number": (lambda a, b: a.add(0.375), by_parts(lambda x, y: x + 0.375)),
    "add a tensor": (lambda a, b: a.add(NUMBER), by_parts(lambda x, y: x + 0.375)),
    "sub": (lambda a, b: a.sub(b), by_parts(lambda x, y: x - y)),
    "sub a number": (lambda a, b: a.sub(0.375), by_parts(lambda x, y: x - 0.375)),
    "mul": (lambda a, b: a.mul(b), by_parts(lambda x, y: x * y)),
    "scale": (lambda a, b: a.scale(0.375), by_parts(lambda x, y: x * 0.375)),
    "scale by an integer": (lambda a, b: a.scale(3), by_parts(lambda x, y: x * 3)),
    "scale by a tensor": (lambda a, b: a.scale(NUMBER), by_parts(lambda x, y: x * 0.375)),
    "div": (lambda a, b: a.div(b), by_parts(lambda x, y: x / y)),
    "div by a number": (lambda a, b: a.div(0.375), by_parts(lambda x, y: x / 0.375)),
    "div by a tensor": (lambda a, b: a.div(NUMBER), by_parts(lambda x, y: x / 0.375)),
    "maximum": (lambda a, b: a.maximum(b), by_parts(torch.maximum)),
    "lerp": (lambda a, b: a.lerp(b, 0.375), by_parts(lambda x, y: torch.lerp(x, y, 0.375))),
    "lerp by a tensor": (
        lambda a, b: a.lerp(b, NUMBER),
        by_parts(lambda x, y: torch.lerp(x, y, 0.375)),
    ),
    "sqrt": (lambda a, b: a.mul(a).sqrt(), by_parts(lambda x, y: (x * x).sqrt())),
    "abs": (lambda a, b: a.abs(), by_parts(lambda x, y: x.abs())),
    "sign": (lambda a, b: a.sign(), by_parts(lambda x, y: x.sign())),
    "clamp": (lambda a, b: a.clamp(-0.375, 0.5), by_parts(lambda x, y: x.clamp(-0.375, 0.5))),
    "clamp by tensors": (
        lambda a, b: a.clamp(-NUMBER, NUMBER),
        by_parts(lambda x, y: x.clamp(-0.375, 0.375)),
    ),
    "where true": (lambda a, b: a.where(True, b), by_parts(lambda x, y: x)),
    "where false": (lambda a, b: a.where(False, b), by_parts(lambda x, y: y)),
    "where a tensor is true": (lambda a, b: a.where(YES, b), by_parts(lambda x, y: x)),
    "where a tensor is false": (lambda a, b: a.where(NO, b), by_parts(lambda x, y: y)),
    "zip_map": (
        lambda a, b: a.zip_map(lambda x, y: x.exp() * y, b),
        by_parts(lambda x, y: x.exp() * y),
    ),
    "map_named": (
        lambda a, b: a.map_named(lambda x, y: x * y.sum() / (1 + x.numel()), b),
        lambda a, b: {n: a[n] * b[n].sum() / (1 + a[n].numel()) for n in a},
    ),
    "zeros": (
        lambda a, b: a.zeros(),
        lambda a, b: {
            n: torch.zeros_like(t, dtype=torch.float32 if t.dtype in HALF else t.dtype)
            for n, t in a.items()
        },
    ),
    "wide": (
        lambda a, b: a.wide(),
        lambda a, b: {n: t.float() if t.dtype in HALF else t for n, t in a.items()},
    ),
    "wide and back": (
        lambda a, b: a.wide().scale(3.0).cast(a),
        by_parts(lambda x, y: x * 3 if x.dtype not in HALF else (x.float() * 3).to(x.dtype)),
    ),
    "add what is wider": (
        lambda a, b: a.add(b.wide()),
        by_parts(
            lambda x, y: x + y if x.dtype not in HALF else (x.float() + y.float()).to(x.dtype)
        ),
    ),
    "lerp to what is wider": (
        lambda a, b: a.lerp(b.wide(), 0.375),
        by_parts(lambda x, y: torch.lerp(x, y, 0.375)),
    ),
    "clone": (lambda a, b: a.clone(), lambda a, b: a),
    "detach": (lambda a, b: a.detach(), lambda a, b: {n: t.detach() for n, t in a.items()}),
    "to": (lambda a, b: a.to("cpu"), lambda a, b: a),
    "like": (lambda a, b: a.like(dict(b.items())), lambda a, b: b),
    "select": (
        lambda a, b: a.select(["t", "w", "v"]),
        lambda a, b: {name: a[name] for name in "twv"},
    ),
    "select what is cut": (
        lambda a, b: a.select(["w", "s"]),
        lambda a, b: {name: a[name] for name in "ws"},
    ),
    "updated": (
        lambda a, b: a.updated(b.select(["v", "w"])),
        lambda a, b: {**a, "v": b["v"], "w": b["w"]},
    ),
    "updated by a part of a group": (
        lambda a, b: a.updated(b.select(["s", "v"])),
        lambda a, b: {**a, "s": b["s"], "v": b["v"]},
    ),
    "updated by all": (lambda a, b: a.updated(b), lambda a, b: b),
    "updated by nothing": (lambda a, b: a.updated(Tensors({})), lambda a, b: a),
}
methods = pytest.mark.parametrize("method", METHODS)
kinds = pytest.mark.parametrize("kind", KINDS)
layouts = pytest.mark.parametrize("how", LAYOUTS)


def check(got, expected):
    assert got.names == tuple(expected)
    for name, t in expected.items():
        assert (got[name].dtype, got[name].shape) == (t.dtype, t.shape), name
    torch.testing.assert_close(dict(got), expected)


@methods
@kinds
@layouts
def test_a_method_is_plain_torch_name_by_name(method, kind, how):
    ours, theirs = METHODS[method]
    a, b = stored(kind, how), stored(kind, how, 1)
    before = fl.tree_map(torch.clone, (a, b))
    check(ours(a, b), theirs(named(kind), named(kind, 1)))
    assert fl.tree_equal(before, (a, b))


@methods
@kinds
def test_layouts_agree_and_may_be_mixed(method, kind):
    ours, theirs = METHODS[method]
    expected = theirs(named(kind), named(kind, 1))
    for first, second in (("separate", "packed"), ("packed", "separate")):
        a, b = stored(kind, first), stored(kind, second, 1)
        got = ours(a, b)
        check(got, expected)
        if len(got) == len(a) and "where" not in method:
            assert got.layout is a.layout


@methods
@pytest.mark.parametrize("kind", ["float32", "complex64", "bfloat16"])
@layouts
def test_a_method_under_vmap(method, kind, how):
    ours, theirs = METHODS[method]
    many = [(stored(kind, how, i), stored(kind, how, i + 5)) for i in range(3)]
    stacked = fl.tree_map(lambda *leaves: torch.stack(leaves), *many)
    together = torch.func.vmap(lambda pair: ours(*pair))(stacked)
    assert isinstance(together, Tensors)
    for i in range(3):
        member = fl.tree_map(lambda leaf, i=i: leaf[i], together)
        check(member, theirs(named(kind, i), named(kind, i + 5)))


@methods
@pytest.mark.parametrize("kind", ["float64", "complex64"])
@layouts
@pytest.mark.parametrize("engine", ["autograd", "func"])
def test_a_method_is_differentiated_as_plain_torch_is(method, kind, how, engine):
    ours, theirs = METHODS[method]

    def total(made):
        return sum((real(t) * (i + 1)).sum() for i, t in enumerate(dict(made.items()).values()))

    plain = {n: t.requires_grad_() for n, t in named(kind).items()}
    other = {n: t.requires_grad_() for n, t in named(kind, 1).items()}
    loss = total(theirs(plain, other))
    leaves = [*plain.values(), *other.values()]
    if not loss.requires_grad:
        expected = [torch.zeros_like(t) for t in leaves]
    else:
        expected = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    a, b = stored(kind, how), stored(kind, how, 1)
    if engine == "func":
        slopes = torch.func.grad(lambda pair: total(ours(*pair)))((a, b))
    else:
        pair = fl.tree_map(lambda s: s.clone().requires_grad_(), (a, b))
        storages = fl.tree_leaves(pair)
        loss = total(ours(*pair))
        found = [torch.zeros_like(s) for s in storages]
        if loss.requires_grad:
            found = torch.autograd.grad(loss, storages, allow_unused=True, materialize_grads=True)
        found = iter(found)
        slopes = fl.tree_map(lambda _: next(found), (a, b))
    got = [t for side in slopes for t in side.values()]
    torch.testing.assert_close(got, list(expected))


@kinds
@layouts
def test_norm_is_that_of_all_values_together(kind, how):
    a = stored(kind, how)
    values = torch.cat([real(t).double().flatten() for t in named(kind).values()])
    expected = torch.linalg.vector_norm(values)
    wide = torch.float64 if torch.float64 in a.dtypes else torch.float32
    for norm in (a.norm(), a.norm(), torch.func.vmap(lambda t: t.norm())(stacked(a))[0]):
        assert norm.ndim == 0 and norm.dtype == wide
        torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)


@kinds
@layouts
def test_dot_is_the_inner_product_of_all_values_together(kind, how):
    a, b = stored(kind, how), stored(kind, how, seed=1)
    values, others = (
        torch.cat([real(t).double().flatten() for t in named(kind, seed).values()])
        for seed in (0, 1)
    )
    wide = torch.float64 if torch.float64 in a.dtypes else torch.float32
    together = torch.func.vmap(lambda s, t: s.dot(t))(stacked(a), stacked(b))[0]
    for dot in (a.dot(b), together, a.dot(fl.Tensors(dict(b.items())))):
        assert dot.ndim == 0 and dot.dtype == wide
        torch.testing.assert_close(dot.double(), values @ others, rtol=1e-5, atol=1e-5)


def stacked(tensors):
    return fl.tree_map(lambda leaf: leaf[None], tensors)


@kinds
@layouts
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, complex(0, torch.inf)])
def test_a_value_that_is_not_finite_is_found_in_every_tensor(kind, how, bad):
    assert stored(kind, how).all_finite().dtype == torch.bool
    assert stored(kind, how).all_finite()
    for name in SHAPES:
        values = named(kind)
        if isinstance(bad, complex) and not values[name].is_complex():
            continue
        values[name].view(-1)[-1] = bad
        a = stored(kind, how).like(values)
        assert not a.all_finite()
        assert not torch.func.vmap(lambda t: t.all_finite())(stacked(a))[0]
        assert not fl.tree_map(lambda s: s.clone().requires_grad_(), a).all_finite()


@layouts
def test_a_norm_that_overflows_is_finite_all_the_same(how):
    a = stored("float32", how).zeros().add(1e30)
    assert a.norm().isinf()
    assert a.all_finite()
    assert not a.updated(Tensors({"s": torch.tensor(torch.inf)})).all_finite()
    both = stored("float32", how).zeros().add(3e38)
    assert both.all_finite() and torch.func.vmap(lambda t: t.all_finite())(stacked(both))[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_step_with_an_infinite_gradient_is_skipped_when_inductor_has_built_it():
    def loss(model, batch):
        x, factor = batch
        return model(x).sum() * factor

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    fast = fl.compile(step, backend="inductor")
    state, x = step.init(torch.nn.Linear(2, 2)), torch.ones(3, 2)
    for factor, skipped in ((torch.inf, 1), (torch.nan, 1), (1e38, 0), (1.0, 0)):
        batch = (x, torch.tensor(factor))
        after, metrics = fast(state, batch)
        plainly, reported = step(state, batch)
        assert float(metrics["skipped"]) == float(reported["skipped"]) == skipped, factor
        assert fl.tree_equal(after.params, state.params) == bool(skipped)
        torch.testing.assert_close(dict(after.params), dict(plainly.params))


def test_there_may_be_none():
    nothing = Tensors({})
    assert len(nothing) == 0 and nothing.device is None and nothing.plain
    assert float(nothing.norm()) == 0.0 and nothing.all_finite()
    for method in (METHODS[m] for m in METHODS if not m.startswith(("select", "updated"))):
        assert len(method[0](nothing, nothing)) == 0


# A mapping by name.


@kinds
@layouts
def test_it_is_a_mapping(kind, how):
    a, expected = stored(kind, how), named(kind)
    assert list(a) == list(a.keys()) == list(a.names) == list(expected) and len(a) == len(expected)
    assert "w" in a and "x" not in a and 3 not in a
    assert a.keys() & {"w", "x"} == {"w"} and a.get("x") is None
    torch.testing.assert_close(dict(a), expected)
    torch.testing.assert_close({**a}, expected)
    assert all(torch.equal(t, expected[n]) for n, t in a.items())
    assert [t.shape for t in a.values()] == list(map(torch.Size, SHAPES.values()))
    with pytest.raises(KeyError, match=r"no tensor 'x'; there are: w, s, b"):
        a["x"]
    with pytest.raises(TypeError):
        a["w"] = torch.ones(1)
    assert repr(a).startswith("Tensors(w=")


@layouts
def test_names_that_are_missing_or_unknown_are_errors(how):
    a = stored("float32", how)
    with pytest.raises(KeyError, match="no tensor for b, k"):
        a.like({name: t for name, t in a.items() if name not in "bk"})
    with pytest.raises(KeyError, match="no tensor 'x'"):
        a.select(["w", "x"])
    assert a.select(a.names) is a and a.select(a) is a and a.like(a) is a


def test_equality_is_by_name_and_bit_in_whichever_layout():
    a, b = stored("float32", "separate"), stored("float32", "packed")
    assert a == b and b == a and hash(a) == hash(b)
    assert fl.tree_equal(a, b) and fl.tree_equal({"x": (a, 1)}, {"x": (b, 1)})
    assert fl.tree_diff(a, b) == "" == fl.tree_diff(b, a)
    assert tree_paths(a) == tree_paths(b) == list(SHAPES)
    changed = b.updated(Tensors({"s": torch.tensor(9.0)}))
    assert a != changed and not fl.tree_equal(a, changed)
    assert [line.split()[0] for line in fl.tree_diff(a, changed).splitlines()] == ["path", "s"]
    assert a != dict(a) and a != a.select(["w"]) and a != a.select(list(reversed(a.names)))
    zero = Tensors({"w": torch.tensor(0.0)})
    assert zero != zero.scale(-1.0), "bitwise"


def test_a_node_is_replaced_by_name_in_whichever_layout():
    for how in LAYOUTS:
        a = stored("float32", how)
        new = fl.tree_at(lambda t: t["x"]["b"], {"x": a}, torch.zeros(4))["x"]
        assert isinstance(new, Tensors) and new.layout is a.layout
        assert new["b"].tolist() == [0] * 4
        assert new == a.updated(Tensors({"b": torch.zeros(4)}))


# A pytree.


@kinds
@layouts
def test_there_and_back_as_a_tree(kind, how):
    import optree
    from torch.utils import _pytree as torch_pytree

    a = stored(kind, how)
    for flatten, unflatten in (
        (optree.tree_flatten, lambda s, leaves: optree.tree_unflatten(s, leaves)),
        (torch_pytree.tree_flatten, lambda s, leaves: torch_pytree.tree_unflatten(leaves, s)),
    ):
        leaves, structure = flatten({"x": a})
        again = unflatten(structure, leaves)["x"]
        assert again == a and again.layout is a.layout
        assert all(x is y for x, y in zip(leaves, a.peek_storages(), strict=True))
    assert fl.tree_map(lambda leaf: leaf * 2, a) == a.scale(2.0)


@layouts
def test_transformations_may_put_anything_in_the_place_of_the_storages(how):
    marked = fl.tree_map(lambda leaf: object(), stored("float32", how))
    assert isinstance(marked, Tensors) and marked.names == tuple(SHAPES)


@kinds
@layouts
def test_copies(kind, how):
    a = stored(kind, how)
    for twin in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a)):
        assert twin == a and twin.layout is a.layout
        theirs = {s.data_ptr() for s in twin.peek_storages()}
        assert not theirs & {s.data_ptr() for s in a.peek_storages()}
    assert not {s.data_ptr() for s in a.clone().peek_storages()} & {
        s.data_ptr() for s in a.peek_storages()
    }
    assert copy.copy(a) == a


# Derivatives and what is kept.


def required(how):
    return fl.tree_map(lambda s: s.clone().requires_grad_(), stored("float32", how))


@layouts
@pytest.mark.parametrize("look", ["item", "norm", "values", "equal", "all_finite", "repr"])
def test_what_was_looked_at_under_no_grad_cuts_no_derivative_later(how, look):
    a = required(how)
    with torch.no_grad():
        {
            "item": lambda: a["w"], "norm": a.norm, "values": a.values, "equal": lambda: a == a,
            "all_finite": a.all_finite, "repr": lambda: repr(a),
        }[look]()  # fmt: skip
    for loss in (sum((t * t).sum() for t in a.values()), a.norm() ** 2):
        slopes = torch.autograd.grad(loss, a.peek_storages())
        for slope, storage in zip(slopes, a.peek_storages(), strict=True):
            torch.testing.assert_close(slope, 2 * storage.detach())


@layouts
def test_what_was_looked_at_inside_a_transform_does_not_outlive_it(how):
    a = stored("float32", how)

    def loss(t):
        t.norm(), t["w"]
        return sum((x * x).sum() for x in t.values()) + a["w"].sum()

    assert torch.func.grad(loss)(a) == a.scale(2.0)
    assert torch.func.vmap(torch.func.grad(loss))(stacked(a))["w"].shape == (1, 3, 4)
    torch.testing.assert_close(dict(a), named("float32"))
    assert float(a.norm()) > 0


@layouts
def test_a_norm_is_kept_with_the_values_it_is_of(how):
    a, b = stored("float32", how), stored("float32", how, 1)
    assert a.norm() is a.norm()
    mine = a.clone()
    before = float(mine.norm())
    merged = mine.lerped(b, 0.5, True)
    assert merged.storages[0] is mine.storages[0] and float(merged.norm()) != before
    torch.testing.assert_close(merged.norm(), a.lerp(b, 0.5).norm())
    torch.testing.assert_close(dict(merged), dict(a.lerp(b, 0.5)))
    kept = a.clone()
    assert kept.lerped(b, 0.5, False) is not kept and kept == a


def test_it_knows_whether_autograd_has_to_do_with_it():
    for how in LAYOUTS:
        a = stored("float32", how)
        assert a.plain and not required(how).plain and required(how).detach().plain
        assert a.detach() is a
        assert a.clone().plain and not required(how).clone().plain
        assert not a.add(required(how)).plain and not a.updated(required(how).select("w")).plain
        assert not a.scale(torch.tensor(2.0, requires_grad=True)).plain
        with torch.no_grad():
            assert a.add(required(how)).plain


@layouts
@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div", "maximum"])
def test_the_dtypes_of_a_result_are_known_when_the_operands_differ(operation, how):
    single, double = stored("float32", how), stored("float64", how)
    mixed = getattr(single, operation)(double)
    assert mixed.dtypes == {storage.dtype for storage in mixed.storages}
    assert mixed.cast(single).dtypes == {torch.float32}
    assert all(storage.dtype == torch.float32 for storage in mixed.cast(single).storages)
    assert single.add(double).dtypes == {torch.float32}


def test_the_dtypes_of_scaled_integers_are_known():
    half = fl.Tensors({"n": torch.tensor([1, 2])}).scale(0.5)
    assert half.dtypes == {half["n"].dtype}


def test_a_fused_kernel_does_not_get_transposed_gradients_or_other_dtypes():
    algorithm = fl.optim.adamw(0.1)
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    found = fl.pipe(loss, fl.grad)

    def transposed(state, x):
        state, g = found(state, x)
        return state, g.replace(mean=g.mean.map_named(_transposed))

    x = torch.ones(2, 3)
    plain = fl.pipe(loss, fl.grad, fl.update(algorithm))
    odd = fl.pipe(fl.stage(transposed, "grad"), fl.update(algorithm))
    state = plain.init(torch.nn.Linear(3, 4))
    torch.testing.assert_close(dict(plain(state, x)[0].params), dict(odd(state, x)[0].params))
    doubled = state.replace(params=state.params.map_named(torch.Tensor.double))
    assert plain(doubled, x.double())[0].params.dtypes == {torch.float64}


def _transposed(t):
    return t.t().contiguous().t() if t.ndim == 2 else t
