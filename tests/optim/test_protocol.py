"""What every optimizer must do, whatever it computes."""

from __future__ import annotations

import copy

import pytest
import torch

import fnloop as fl
from fnloop import optim, schedules, schemes
from fnloop.testing import check_compiles
from fnloop.trees.equal import tree_equal
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.values.tensors import Tensors

OPTIMIZERS = {
    "sgd": optim.sgd(0.1),
    "sgd momentum": optim.sgd(0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "sgd nesterov": optim.sgd(0.1, momentum=0.9, nesterov=True, maximize=True),
    "adam": optim.adam(0.1, weight_decay=0.1, amsgrad=True),
    "adamw": optim.adamw(schedules.cosine(0.1, steps=10, warmup=2)),
    "adamax": optim.adamax(0.1),
    "nadam": optim.nadam(0.1, weight_decay=0.1, decoupled=True),
    "radam": optim.radam(0.1, b2=0.9),
    "rmsprop": optim.rmsprop(0.1, momentum=0.9, centered=True),
    "adagrad": optim.adagrad(0.1, lr_decay=0.1, initial_accumulator=0.1),
    "adadelta": optim.adadelta(schedules.linear(1.0, 0.5, steps=5)),
    "adafactor": optim.adafactor(0.1, weight_decay=0.1),
    "lion": optim.lion(0.1, weight_decay=0.1),
    "lamb": optim.lamb(0.1),
    "prodigy": optim.prodigy(d0=0.1, growth=1.5, weight_decay=0.1),
    "soap": optim.soap(0.1, every=2),
    "schedule_free": optim.schedule_free(optim.adamw(0.1, b1=0.0)),
    "hypergradient": schemes.hypergradient(optim.adam(0.1), 1e-2),
    "freeze": optim.freeze(),
    "chain": optim.chain(
        optim.clip_by_norm(1.0),
        optim.add_decayed_weights(0.1),
        optim.clip_by_value(0.5),
        optim.scale_by(0.7),
        optim.adamw(0.1),
    ),
    "chain, scaled after": optim.chain(optim.adam(0.1), optim.scale_by(schedules.constant(0.5))),
    "masked": optim.masked(optim.adamw(0.1), ["w"]),
    "masked transform": optim.chain(
        optim.masked(optim.clip_by_norm(0.1), lambda name, p: p.ndim == 2), optim.sgd(0.1)
    ),
    "by_label": optim.by_label(
        {"a": optim.adamw(0.1), "b": optim.sgd(0.1, momentum=0.9)}, {"w": "a", "*": "b"}
    ),
    "muon": optim.by_label(
        {"matrix": optim.muon(0.1), "rest": optim.adamw(0.1)},
        lambda name, p: "matrix" if p.ndim == 2 else "rest",
    ),
}
BRIDGED = {"from_torch": optim.from_torch(torch.optim.RMSprop, lr=0.1, momentum=0.9)}

every = pytest.mark.parametrize("optimizer", [*OPTIMIZERS.values()], ids=[*OPTIMIZERS])
every_and_bridged = pytest.mark.parametrize(
    "optimizer", [*OPTIMIZERS.values(), *BRIDGED.values()], ids=[*OPTIMIZERS, *BRIDGED]
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def make(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"z": (3,), "w": (4, 3), "a": ()}
    drawn = {name: torch.randn(s, generator=generator) for name, s in shapes.items()}
    return Tensors({name: t.to(dtype) for name, t in drawn.items()})


def gradients(seed, dtype=torch.float32):
    return make(100 + seed, torch.float32 if dtype == torch.bfloat16 else dtype)


def warm(optimizer, dtype=torch.float32, steps=3):
    params = make(dtype=dtype)
    memory = optimizer.init(params)
    for step in range(steps):
        params, memory = optimizer.apply(gradients(step, dtype), memory, params, step, True)
    return params, memory


def versions(tree):
    return [leaf._version for leaf in tree_leaves(tree)]


@every_and_bridged
@dtypes
def test_apply_is_update_and_addition(optimizer, dtype):
    params, memory = warm(optimizer, dtype)
    grads = gradients(9, dtype)
    updates, updated_memory = optimizer.update(grads, memory, params, 3)
    applied, applied_memory = optimizer.apply(grads, memory, params, 3, True)
    assert list(applied) == list(updates) == list(params)
    rtol, atol = (1e-6, 1e-7) if dtype != torch.bfloat16 else (2**-7, 1e-3)
    torch.testing.assert_close(params.add(updates), applied, rtol=rtol, atol=atol)
    torch.testing.assert_close(updated_memory, applied_memory, rtol=1e-6, atol=1e-7)
    if not isinstance(optimizer, optim.freeze):
        assert not tree_equal(params, applied)


@every_and_bridged
@dtypes
def test_structure_shapes_and_dtypes_stay(optimizer, dtype):
    params = make(dtype=dtype)
    start = optimizer.init(params)
    new_params, memory = warm(optimizer, dtype)
    describe = lambda tree: tree_map(lambda x: (x.shape, x.dtype, x.device), tree)  # noqa: E731
    assert describe(memory) == describe(start)
    assert describe(new_params) == describe(params)
    assert set(start) == set(optimizer.names())
    half = [leaf for leaf in tree_leaves(start) if leaf.dtype == torch.bfloat16]
    assert not half, "memory of half-precision parameters is float32"


@every_and_bridged
@pytest.mark.parametrize("finite", [True, torch.tensor(True), torch.tensor(False)], ids=str)
def test_inputs_are_never_changed(optimizer, finite):
    params, memory = warm(optimizer)
    inputs = (gradients(9), memory, params)
    before, numbers = copy.deepcopy(inputs), versions(inputs)
    optimizer.update(inputs[0], memory, params, torch.tensor(3))
    optimizer.apply(inputs[0], memory, params, 3, finite)
    assert tree_equal(inputs, before)
    assert versions(inputs) == numbers


@every_and_bridged
@pytest.mark.parametrize("finite", [False, torch.tensor(False)], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_no_bit(optimizer, finite, value):
    params, memory = warm(optimizer)
    bad = params.zip_map(lambda p: torch.full_like(p, value))
    new_params, new_memory = optimizer.apply(bad, memory, params, 3, finite)
    assert tree_equal(new_params, params)
    assert tree_equal(new_memory, memory)


@every_and_bridged
def test_a_finite_flag_that_is_a_tensor_changes_nothing_else(optimizer):
    params, memory = warm(optimizer)
    plain = optimizer.apply(gradients(9), memory, params, 3, True)
    flagged = optimizer.apply(gradients(9), memory, params, 3, torch.tensor(True))
    assert tree_equal(plain, flagged)


@every
def test_under_vmap_it_is_one_by_one(optimizer):
    members = [warm(optimizer, steps=seed) for seed in range(3)]
    stack = lambda *leaves: torch.stack(leaves)  # noqa: E731
    params = tree_map(stack, *(p for p, _ in members))
    memory = tree_map(stack, *(m for _, m in members))
    grads = tree_map(stack, *(gradients(seed) for seed in range(3)))
    steps, finite = torch.arange(3), torch.tensor([True, False, True])
    together = torch.func.vmap(optimizer.apply)(grads, memory, params, steps, finite)
    for i, (p, m) in enumerate(members):
        alone = optimizer.apply(gradients(i), m, p, i, bool(finite[i]))
        member = tree_map(lambda leaf, i=i: leaf[i], together)
        rtol = 0.02 if isinstance(optimizer, optim.by_label) else 1e-5  # muon: bfloat16
        torch.testing.assert_close(member, alone, rtol=rtol, atol=1e-6)


class Holder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, value in make().items():
            self.register_parameter(name, torch.nn.Parameter(value))

    def forward(self, x):
        return (x @ self.w + self.z).tanh() * self.a


@every
def test_compiled_in_one_graph_without_recompiling(optimizer):
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    batches = [torch.randn(6, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    batches[1] = torch.full((6, 4), torch.nan)
    rtol = 0.02 if isinstance(optimizer, optim.by_label) else 1e-4  # muon: bfloat16
    check_compiles(step, step.init(Holder()), batches, rtol=rtol)


@every
def test_hyperparameters_can_be_stacked_and_swept(optimizer):
    rates = torch.tensor([0.5, 1.0, 2.0])
    names = [name for name in optimizer.hyperparameters() if name.endswith("lr")]
    params, memory = warm(optimizer)
    grads = gradients(9)

    def step(factor):
        scaled = optimizer.resolve(torch.tensor(3), dict.fromkeys(names, factor))
        return scaled.apply(grads, memory, params, torch.tensor(3), True)[0]

    together = torch.func.vmap(step)(rates) if names else None
    for i, rate in enumerate(rates if names else ()):
        alone = optimizer.resolve(3, dict.fromkeys(names, float(rate)))
        expected, _ = alone.apply(gradients(9), memory, params, 3, True)
        rtol = 0.02 if isinstance(optimizer, optim.by_label) else 1e-5
        member = {name: p[i] for name, p in together.items()}
        torch.testing.assert_close(member, dict(expected), rtol=rtol, atol=1e-6)


SMOOTH = {
    "sgd": lambda lr: optim.sgd(lr, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "adam": lambda lr: optim.adam(lr, weight_decay=0.1, amsgrad=True),
    "adamw": lambda lr: optim.adamw(schedules.cosine(lr, steps=10), weight_decay=0.1),
    "adamax": lambda lr: optim.adamax(lr),
    "nadam": lambda lr: optim.nadam(lr),
    "radam": lambda lr: optim.radam(lr, b2=0.8),
    "rmsprop": lambda lr: optim.rmsprop(lr, centered=True, momentum=0.5),
    "adagrad": lambda lr: optim.adagrad(lr, lr_decay=0.1),
    "adadelta": lambda lr: optim.adadelta(lr),
    "adafactor": lambda lr: optim.adafactor(lr),
    "lamb": lambda lr: optim.lamb(lr),
    "prodigy": lambda lr: optim.prodigy(lr, d0=0.1),
    "schedule_free": lambda lr: optim.schedule_free(optim.adamw(lr, b1=0.0)),
    "hypergradient": lambda lr: schemes.hypergradient(optim.sgd(lr, momentum=0.9), 1e-3),
    "hypergradient's rate": lambda rate: schemes.hypergradient(optim.adam(0.1), rate),
    "beta": lambda beta: optim.schedule_free(optim.sgd(0.1), beta=beta),
    "chain": lambda lr: optim.chain(optim.clip_by_norm(0.5), optim.adamw(lr)),
    "by_label": lambda lr: optim.by_label(
        {"a": optim.adamw(lr), "b": optim.sgd(lr)}, {"w": "a", "*": "b"}
    ),
    "factor": lambda lr: optim.chain(optim.scale_by(lr), optim.sgd(0.1)),
    "decay": lambda lr: optim.chain(optim.add_decayed_weights(lr), optim.sgd(0.1)),
    "b1": lambda b1: optim.adam(0.1, b1=b1),
    "momentum": lambda momentum: optim.sgd(0.1, momentum=momentum, nesterov=True),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("how", ["func", "autograd"])
def test_derivative_through_six_steps_is_that_of_finite_differences(name, how):
    start = make(dtype=torch.float64)

    def train(value):
        optimizer, params = SMOOTH[name](value), start
        memory = optimizer.init(params)
        for step in range(6):
            # of 0.5 |p|^2 + sin p
            grads = params.zip_map(lambda p: p + p.cos())
            params, memory = optimizer.apply(grads, memory, params, torch.tensor(step), True)
        return sum((p**2).sum() for p in params.values())

    value = torch.tensor(0.07, dtype=torch.float64)
    if how == "func":
        slope = torch.func.grad(train)(value)
    else:
        leaf = value.clone().requires_grad_()
        (slope,) = torch.autograd.grad(train(leaf), leaf)
    h = 1e-6
    expected = (train(value + h) - train(value - h)) / (2 * h)
    assert abs(float(expected)) > 1e-6
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make_optimizer", [optim.adamw, optim.radam, optim.rmsprop, optim.lamb])
@pytest.mark.parametrize("how", ["func", "autograd"])
def test_derivative_through_a_gradient_of_exactly_zero_is_finite(make_optimizer, how):
    params = Tensors({"w": torch.tensor([1.0, 2.0])})
    slopes = torch.tensor([1.0, 0.0])

    def train(lr):
        optimizer, p = make_optimizer(lr), params
        memory = optimizer.init(p)
        for step in range(3):
            grads = p.zip_map(lambda w: w * slopes)
            p, memory = optimizer.apply(grads, memory, p, step, True)
        return p["w"].sum()

    lr = torch.tensor(0.1, requires_grad=how == "autograd")
    slope = torch.func.grad(train)(lr) if how == "func" else torch.autograd.grad(train(lr), lr)[0]
    assert slope.isfinite() and slope < 0


@every_and_bridged
def test_no_parameters_at_all(optimizer):
    nothing = Tensors({})
    try:
        memory = optimizer.init(nothing)
    except ValueError as error:  # a pattern must fit something
        assert isinstance(optimizer, (optim.masked, optim.by_label))
        assert "fits no parameter" in str(error)
        memory = emptied(optimizer.init(make()))
    assert optimizer.apply(nothing, memory, nothing, 0, True)[0] == nothing
    assert optimizer.update(nothing, memory, nothing, 0)[0] == nothing


def emptied(memory):
    """Memory of whatever parameters, of which none is left."""
    if isinstance(memory, dict):
        return {name: emptied(inner) for name, inner in memory.items()}
    return Tensors({}) if isinstance(memory, Tensors) else memory


@every_and_bridged
def test_a_dict_is_refused(optimizer):
    with pytest.raises(TypeError, match=r"fl\.Tensors, such as state\.params, and was given dict"):
        optimizer.init(dict(make()))


@every_and_bridged
def test_entries_of_others_are_passed_on(optimizer):
    params = make()
    other = {"x": torch.ones(2)}
    memory = {**optimizer.init(params), "other": other}
    _, updated = optimizer.update(gradients(0), memory, params, 0)
    _, applied = optimizer.apply(gradients(0), memory, params, 0, torch.tensor(True))
    assert tree_equal(updated["other"], other) and tree_equal(applied["other"], other)


@every_and_bridged
def test_resolved_hyperparameters_are_numbers_times_scale(optimizer):
    for name in optimizer.hyperparameters():
        before = optimizer.resolve(4, {}).hyperparameters()
        after = optimizer.resolve(4, {name: 0.1}).hyperparameters()
        assert all(isinstance(value, (int, float)) for value in after.values())
        assert after == {**before, name: pytest.approx(before[name] * 0.1)}


@every_and_bridged
def test_it_prints_and_compares_by_value(optimizer):
    assert type(optimizer).__name__ in repr(optimizer)
    assert copy.deepcopy(optimizer) == optimizer
    assert tree_map(lambda leaf: leaf, optimizer) == optimizer
    assert hash(optimizer) == hash(copy.deepcopy(optimizer))


@pytest.mark.parametrize(
    "optimizer", [optim.sgd(0.1, momentum=0.5), optim.adagrad(0.1), optim.adam(0.1), optim.adamw()]
)
def test_tensor_hyperparameters_take_the_fused_path_to_the_same_end(optimizer):
    params, memory = warm(optimizer)
    names = optimizer.hyperparameters()
    tensors = optimizer.resolve(3, {name: torch.tensor(0.5) for name in names})
    numbers = optimizer.resolve(3, dict.fromkeys(names, 0.5))
    assert any(isinstance(value, torch.Tensor) for value in tensors.hyperparameters().values())
    for finite in (True, torch.tensor(True)):
        new = tensors.apply(gradients(9), memory, params, 3, finite)
        torch.testing.assert_close(new, numbers.apply(gradients(9), memory, params, 3, True))
    kept = tensors.apply(gradients(9), memory, params, 3, torch.tensor(False))
    assert tree_equal(kept, (params, memory))
