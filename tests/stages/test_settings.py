"""The settings of the process: steps do what they do, or say what is to be done."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

import fnloop as fl


@pytest.fixture
def doubles():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def loss(model, batch):
    x, y = batch
    return (model(x) - y).square().mean(), {"half": 0.5, "size": model(x).abs().mean()}


STEPS = {
    "plain": fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1))),
    "everything": fl.pipe(
        loss,
        fl.grad,
        fl.accumulate(2),
        fl.amp("fp16", init_scale=2.0**8, interval=5),
        fl.update(
            fl.optim.chain(
                fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(0.1, steps=9))
            )
        ),
        fl.ema(0.9),
        fl.guard(fl.rules.spike("loss"), then="rewind"),
    ),
    "sgd": fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1, momentum=0.9)), fl.ema(0.9)),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))


def batch(dtype=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float32)
    return x.to(dtype or torch.get_default_dtype()), x[:, :2].to(dtype or torch.get_default_dtype())


def after(step, model, x, steps=3):
    state = step.init(model)
    for _ in range(steps):
        state, metrics = step(state, x)
    return state, metrics


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_under_a_default_dtype_of_float64(name, compiled, doubles):
    step = fl.compile(STEPS[name], backend="aot_eager") if compiled else STEPS[name]
    state, metrics = after(step, net(), batch())
    assert {p.dtype for p in state.params.values()} == {torch.float64}
    assert int(state.step) == 3 and float(metrics["half"]) == 0.5


@pytest.mark.parametrize("name", STEPS)
def test_the_default_dtype_changes_no_bit_for_a_float32_model(name):
    step, x, model = STEPS[name], batch(), net()
    expected = after(step, model, x)
    torch.set_default_dtype(torch.float64)
    try:
        got = after(step, model, x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert fl.tree_diff(expected, got) == ""


@pytest.mark.parametrize("name", STEPS)
def test_inside_inference_mode_a_step_runs_or_says_what_to_do(name):
    step, x = STEPS[name], batch()
    state = step.init(net())
    expected = step(state, x)
    with torch.inference_mode():
        try:
            got = step(state, x)
        except RuntimeError as error:
            assert "inference_mode" in "\n".join([str(error), *getattr(error, "__notes__", [])])
            return
    assert fl.tree_diff(expected, got) == ""


@contextlib.contextmanager
def during(set, value):
    before = {"torch.use_deterministic_algorithms": False, "torch.set_warn_always": False}
    before["torch.set_float32_matmul_precision"] = "highest"
    before["torch.set_default_device"] = None
    before["torch.set_flush_denormal"] = False
    set(value)
    try:
        yield
    finally:
        set(before[f"torch.{set.__name__}"])


SAME = {
    "no_grad": torch.no_grad,
    "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
    "deterministic algorithms": lambda: during(torch.use_deterministic_algorithms, True),
    "matmul precision": lambda: during(torch.set_float32_matmul_precision, "medium"),
    "warn always": lambda: during(torch.set_warn_always, True),
    "default device": lambda: during(torch.set_default_device, "meta"),
    "device context": lambda: torch.device("meta"),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "hooks on saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda x: x, lambda x: x
    ),
    "tensors saved on the CPU": torch.autograd.graph.save_on_cpu,
    "one thread for autograd": lambda: torch.autograd.set_multithreading_enabled(False),
    "flush denormal": lambda: during(torch.set_flush_denormal, True),
}


@pytest.fixture(scope="module", params=[False, True], ids=["eager", "compiled"])
def expected(request):
    """Each step, eager or compiled, with a state and what it makes of it."""
    found = {}
    for name, step in STEPS.items():
        step = fl.compile(step, backend="aot_eager") if request.param else step
        state = step.init(net())
        found[name] = step, state, step(state, batch(torch.float32))
    return found


@pytest.mark.parametrize("setting", SAME)
@pytest.mark.parametrize("name", STEPS)
def test_a_setting_changes_no_bit(name, setting, expected):
    step, state, right = expected[name]
    x = batch(torch.float32)
    with SAME[setting]():
        first = step(state, x)
        if step is not STEPS[name] and name == "plain":  # recorded, too, inside it
            first = fl.compile(STEPS[name], backend="aot_eager")(state, x)
    assert fl.tree_diff(right, first) == ""
    assert torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_outer_autocast_is_that_of_the_loss_alone(dtype, compiled):
    """As `fl.amp` would: no cast in the backward pass, in the optimizer, nor twice."""
    plain = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    amped = fl.pipe(loss, fl.grad, fl.amp("bf16"), fl.update(fl.optim.sgd(0.1)))
    if compiled:
        plain, amped = (fl.compile(s, backend="aot_eager") for s in (plain, amped))
    state, x = plain.init(net()), batch(torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        got, _ = plain(state, x)
        inner, _ = amped(state, x)
    right, _ = amped(state, x)
    assert inner == right, "the innermost counts"
    assert (got == right) == (dtype is torch.bfloat16)
    assert got != plain(state, x)[0]


def test_a_compiled_step_is_the_same_in_and_out_of_an_outer_autocast():
    amped = fl.pipe(loss, fl.grad, fl.amp("bf16"), fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    step = fl.compile(amped, backend="aot_eager")
    state, x = step.init(net()), batch(torch.float32)
    right = step(state, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fl.tree_diff(right, step(state, x)) == ""


@pytest.mark.lightning("T32")
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", STEPS)
def test_anomaly_detection_is_for_uncompiled_steps(name, expected):
    step, state, right = expected[name]
    with torch.autograd.detect_anomaly():
        if step is STEPS[name]:
            assert fl.tree_diff(right, step(state, batch(torch.float32))) == ""
        else:
            with pytest.raises(
                fl.errors.CompileError, match=r"Anomaly detection.*without fl.compile"
            ):
                step(state, batch(torch.float32))
            step.uncompiled(state, batch(torch.float32))


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
def test_anomaly_detection_names_the_operation_whose_derivative_is_nan():
    def rooted(model, batch):
        return model(batch[0]).sub(1e3).sqrt().mean()

    step = fl.pipe(rooted, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(net())
    assert float(step(state, batch())[1]["skipped"]) == 1
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match=r"SqrtBackward0.*nan"):
        step(state, batch())


@pytest.mark.parametrize("name", STEPS)
def test_seeds_are_integers_of_whatever_kind(name):
    step = STEPS[name]
    three = step.init(net, seed=3)
    for seed in (np.int64(3), np.int32(3), np.uint8(3), torch.tensor(3)):
        assert fl.tree_diff(three, step.init(net, seed=seed)) == ""
    assert step.init(net, seed=-1).key != step.init(net, seed=2**63 - 1).key
    for wrong in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="must fit an int64"):
            step.init(net, seed=wrong)
    for wrong in (0.5, "3", None):
        with pytest.raises(TypeError, match="A seed is an integer"):
            step.init(net, seed=wrong)


@pytest.mark.parametrize(("a", "b"), [(-1, 2**63 - 1), (3, 2**32 + 3)])
def test_other_seeds_give_other_parameters(a, b):
    step = STEPS["plain"]
    first, second = (step.init(lambda: nn.Linear(3, 4), seed=seed) for seed in (a, b))
    assert first.params != second.params
