"""Precisions of parameters and batch, against loops written by hand in torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fnloop as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 3)
        self.register_buffer("shift", torch.zeros(16))

    def forward(self, x):
        return self.head(F.relu(self.norm(self.first(x)) + self.shift))


def net():
    torch.manual_seed(0)
    return Net()


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batches(n):
    generator = torch.Generator().manual_seed(1)
    for _ in range(n):
        x = torch.randn(8, 6, generator=generator)
        yield x, torch.randint(0, 3, (8,), generator=generator)


TRUE = {"bf16-true": torch.bfloat16, "fp16-true": torch.float16, "fp64": torch.float64}


@pytest.mark.parametrize(
    ("name", "compiled"), [*((name, False) for name in TRUE), ("bf16-true", True)]
)
def test_the_model_computes_in_the_dtype_that_it_is_stored_in(name, compiled):
    step = fl.pipe(loss, fl.grad, fl.amp(name), fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    model, seen = net(), set()
    for layer in (model.first, model.norm, model.head):
        layer.register_forward_hook(lambda _, x, y: seen.update((x[0].dtype, y.dtype)))
    state = step.init(model)
    for batch in batches(2):
        state, _ = step(state, batch)
    assert seen == {TRUE[name]}
    assert {p.dtype for p in state.params.values()} == {TRUE[name]}
    assert state.buffers["norm.running_mean"].dtype == TRUE[name]
    assert state.buffers["norm.num_batches_tracked"].dtype == torch.int64
    wide = torch.float64 if name == "fp64" else torch.float32
    assert state["update"]["adamw"]["mu"]["head.weight"].dtype == wide
    assert state["ema"]["head.weight"].dtype == wide
    assert {p.dtype for p in fl.to_module(state).parameters()} == {TRUE[name]}
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "the user's model stays"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.lightning("T5", "P3")
def test_double_is_the_loop_in_double(optimizer):
    kinds = {
        "sgd": (fl.optim.sgd(0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        "adamw": (fl.optim.adamw(1e-2), torch.optim.AdamW, {"lr": 1e-2}),
    }
    own, theirs, settings = kinds[optimizer]
    step = fl.pipe(loss, fl.grad, fl.amp("fp64"), fl.update(own))
    state, reference = step.init(net()), net().double()
    memory = theirs(reference.parameters(), **settings)
    for x, y in batches(20):
        state, metrics = step(state, (x, y))
        memory.zero_grad()
        value = loss(reference, (x.double(), y))
        value.backward()
        memory.step()
        assert abs(float(metrics["loss"]) - value.item()) < 1e-12
    for name, p in reference.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-12, atol=1e-12)
    for name, b in reference.named_buffers():
        torch.testing.assert_close(state.buffers[name], b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["bf16-true", "fp16-true"])
@pytest.mark.lightning("T5", "P3")
def test_true_half_is_the_loop_in_half_with_its_memory_in_float32(name):
    """torch's own AdamW keeps its moments in half: in float16 their squares are zero, and nan."""
    step = fl.pipe(loss, fl.grad, fl.amp(name), fl.update(fl.optim.adamw(1e-2)))
    state, reference = step.init(net()), net().to(TRUE[name])
    wide = {k: nn.Parameter(p.detach().float()) for k, p in reference.named_parameters()}
    memory = torch.optim.AdamW(wide.values(), lr=1e-2)
    for x, y in batches(10):
        state, _ = step(state, (x, y))
        reference.zero_grad()
        loss(reference, (x.to(TRUE[name]), y)).backward()
        for k, p in reference.named_parameters():
            wide[k].grad = p.grad.float()
        memory.step()
        for k, p in reference.named_parameters():
            p.data.copy_(wide[k])
            wide[k].data.copy_(p)
    for k, p in reference.named_parameters():
        assert torch.equal(state.params[k], p.detach()), k


def test_what_is_no_float_stays_and_weights_of_whole_numbers_are_exact():
    def counting(model, batch):
        kept, x, count = batch["kept"], batch["x"], batch["count"]
        assert (kept.dtype, x.dtype, count.dtype) == (torch.bool, torch.bfloat16, torch.int64)
        return fl.Mean((model(x).squeeze(1) * kept).sum(), kept.sum())

    step = fl.pipe(counting, fl.grad, fl.accumulate(3), fl.amp("bf16-true"))
    batch = {"x": torch.ones(1001, 2), "kept": torch.ones(1001) > 0, "count": torch.arange(1001)}
    _, grads = step(step.init(nn.Linear(2, 1)), batch)
    assert int(grads.weight) == 1001  # no bfloat16
    assert {g.dtype for g in grads.mean.values()} == {torch.float32}


def test_an_old_state_is_converted_and_a_state_of_another_dtype_is_refused():
    plain = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    half = fl.pipe(loss, fl.grad, fl.amp("bf16-true"), fl.update(fl.optim.adamw(1e-2)))
    old, _ = plain(plain.init(net()), next(batches(1)))
    with pytest.raises(TypeError, match=r"in bfloat16.* are float32.*step\.init\(state\)"):
        half(old, next(batches(1)))
    new = half.init(old)
    assert {p.dtype for p in new.params.values()} == {torch.bfloat16}
    assert new["update"] == old["update"] and half.init(new) == new
    half(new, next(batches(1)))
    with pytest.raises(RuntimeError) as caught:
        plain(new, next(batches(1)))
    assert 'fl.amp("bf16-true")(loss)' in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize(("theirs", "ours"), [("16-mixed", "fp16"), ("64-true", "fp64")])
@pytest.mark.lightning("T5")
def test_precisions_of_lightning_say_which_one_is_meant(theirs, ours):
    with pytest.raises(ValueError, match=rf'got {theirs!r} \(str\)\. Did you mean "{ours}"'):
        fl.amp(theirs)(fl.grad(loss))
    with pytest.raises(TypeError, match=r'got 16 .* Did you mean "fp16"'):
        fl.amp(16)(fl.grad(loss))


def test_fp32_turns_an_outer_autocast_off():
    step = fl.pipe(loss, fl.grad, fl.amp("fp32"), fl.update(fl.optim.sgd(0.1)))
    plain = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, batch = step.init(net()), next(batches(1))
    expected, _ = plain(state, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert step(state, batch)[0] == expected
        assert plain(state, batch)[0] != expected


class Spy(TorchDispatchMode):
    """Notes the setting for matrix products at each of them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("compiled", [False, True])
def test_tf32_is_allowed_where_products_run_and_nowhere_else(compiled):
    step = fl.pipe(loss, fl.grad, fl.amp("tf32"), fl.update(fl.optim.sgd(0.1)))
    plain = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    if compiled:
        step, plain = (fl.compile(s, backend="aot_eager") for s in (step, plain))
    state, batch = step.init(net()), next(batches(1))
    expected, got = plain(state, batch), step(state, batch)
    assert fl.tree_diff(expected, got) == "", "on the CPU it changes nothing"
    with Spy() as spy:
        step(state, batch)
    assert len(spy.seen) >= 4 and set(spy.seen) == {"high"}  # forward and backward
    assert torch.get_float32_matmul_precision() == "highest"
    with Spy() as spy:
        plain(state, batch)
    assert set(spy.seen) == {"highest"}


def test_tf32_is_put_back_after_an_error():
    def failing(model, batch):
        assert torch.get_float32_matmul_precision() == "high"
        raise KeyError("here")

    step = fl.pipe(failing, fl.grad, fl.amp("tf32"))
    with pytest.raises(KeyError):
        step(step.init(net()), next(batches(1)))
    assert torch.get_float32_matmul_precision() == "highest"


def test_an_ensemble_in_double_is_its_members():
    step = fl.pipe(loss, fl.grad, fl.amp("fp64"), fl.update(fl.optim.sgd(0.1)))
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(step.init(nn.Linear(6, 3)))
    fl.testing.check_vmaps(step, states, next(batches(1)))


def test_parts_of_a_sequence_share_the_dtype():
    step = fl.sequence(
        first=fl.pipe(loss, fl.grad(only="first"), fl.amp("fp64"), fl.update(fl.optim.sgd(0.1))),
        head=fl.pipe(loss, fl.grad(only="head"), fl.amp("fp64"), fl.update(fl.optim.sgd(0.1))),
    )
    state, metrics = step(step.init(copy.deepcopy(net())), next(batches(1)))
    assert {p.dtype for p in state.params.values()} == {torch.float64}
    assert float(metrics["head/loss"]) < float(metrics["first/loss"])
