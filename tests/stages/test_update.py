"""The training step against a hand-written loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)
    )


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batch(i=0):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)


@pytest.mark.lightning("P1", "H2")
def test_a_hundred_steps_are_those_of_a_hand_written_loop():
    model = net()
    schedule = fl.schedules.cosine(1e-2, steps=100, warmup=10)
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.adamw(schedule))),
    )
    state = step.init(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for i in range(100):
        optimizer.zero_grad()
        value = loss(model, batch(i))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        state, metrics = step(state, batch(i))
        assert float(metrics["loss"]) == pytest.approx(value.item(), rel=1e-4)
        assert float(metrics["adamw.lr"]) == pytest.approx(scheduler.get_last_lr()[0])
        scheduler.step()
    trained = fl.to_module(state)
    for a, b in zip(trained.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_tensor_path_agrees_with_the_eager_one():
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(fl.optim.chain(fl.optim.clip_by_norm(0.5), fl.optim.adamw(1e-2))),
        fl.ema(0.9),
    )
    state = step.init(net())
    eager, metrics = step(state, batch())
    many = torch.utils._pytree.tree_map(lambda leaf: torch.stack([leaf, leaf]), state)
    x, y = batch()
    xs = torch.stack([x, x * float("nan")])
    traced, traced_metrics = torch.func.vmap(lambda s, x: step(s, (x, y)))(many, xs)
    for name, p in eager.params.items():
        torch.testing.assert_close(traced.params[name][0], p)
        assert torch.equal(traced.params[name][1], state.params[name])  # skipped
        torch.testing.assert_close(traced["ema"][name][0], eager["ema"][name])
        assert torch.equal(traced["ema"][name][1], state["ema"][name])
    assert traced.step.tolist() == [1, 0]
    assert traced_metrics["skipped"].value().tolist() == [0, 1]
    assert float(traced_metrics["loss"].total[0]) == pytest.approx(float(metrics["loss"].total))
    assert traced_metrics["loss"].weight.tolist() == [8, 0]
    for name, b in state.buffers.items():
        assert torch.equal(traced.buffers[name][1], b)


def test_a_skipped_step_weighs_nothing_in_the_metrics():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(net())
    x, y = batch()
    _, bad = step(state, (x * float("nan"), y))
    _, good = step(state, (x, y))
    merged = fl.metrics.merge([bad, good, bad])
    assert float(merged["loss"]) == pytest.approx(float(good["loss"]))
    assert float(merged["skipped"]) == 2


@pytest.mark.lightning("C13")
def test_scale_changes_the_learning_rate_and_zero_freezes():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    state, _ = step(step.init(net()), batch())
    frozen, metrics = step(fl.scale(state, "adamw.lr", 0.0), batch(1))
    assert fl.tree_equal(frozen.params, state.params)
    assert float(metrics["adamw.lr"]) == 0
    assert fl.tree_equal(frozen["update"]["adamw"], state["update"]["adamw"])
    assert int(frozen.step) == int(state.step) + 1
    many = torch.utils._pytree.tree_map(lambda leaf: leaf[None], fl.scale(state, "adamw.lr", 0.0))
    data = batch(1)
    traced, _ = torch.func.vmap(lambda s: step(s, data))(many)
    assert fl.tree_equal(
        traced["update"]["adamw"]["mu"]["3.weight"][0], state["update"]["adamw"]["mu"]["3.weight"]
    )
    half = fl.scale(fl.scale(state, "adamw.lr", 0.25), "adamw.lr", 2.0)
    _, metrics = step(half, batch(1))
    assert float(metrics["adamw.lr"]) == pytest.approx(5e-3)
    _, metrics = step(fl.scale(half, "adamw.lr", to=1.0), batch(1))
    assert float(metrics["adamw.lr"]) == pytest.approx(1e-2)
    with pytest.raises(TypeError, match="one of the two"):
        fl.scale(state, "adamw.lr")
    with pytest.raises(KeyError, match=r"there are: adamw\.lr"):
        fl.scale(state, "sgd.lr", 0.5)


@pytest.mark.lightning("C13")
def test_one_label_is_frozen_and_the_other_goes_on():
    by_label = fl.optim.by_label(
        {"head": fl.optim.adamw(1e-2), "body": fl.optim.adamw(1e-2)},
        lambda name, p: "head" if name.startswith("3.") else "body",
    )
    step = fl.pipe(loss, fl.grad, fl.update(by_label))
    state, _ = step(step.init(net()), batch())
    after, metrics = step(fl.scale(state, "body.adamw.lr", 0.0), batch(1))
    assert torch.equal(after.params["0.weight"], state.params["0.weight"])
    assert not torch.equal(after.params["3.weight"], state.params["3.weight"])
    assert fl.tree_equal(after["update"]["body.adamw"], state["update"]["body.adamw"])
    assert float(metrics["head.adamw.lr"]) == pytest.approx(1e-2)


@pytest.mark.lightning("H12")
def test_frozen_parameters_are_left_alone():
    model = net()
    model[0].requires_grad_(False)
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    state = step.init(model)
    after, _ = step(state, batch())
    assert torch.equal(after.params["0.weight"], state.params["0.weight"])
    assert not torch.equal(after.params["3.weight"], state.params["3.weight"])
    assert "0.weight" not in state["update"]["adamw"]["mu"]
    assert fl.to_module(after)[0].weight.requires_grad is False


def test_shared_gradients_are_not_divided_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return (x * (self.a + self.b)).sum(1)  # both get one and the same gradient tensor

    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(1.0)))
    state, _ = step(step.init(Twice()), torch.ones(4, 3))
    assert torch.equal(state.params["a"], -torch.ones(3)) and torch.equal(
        state.params["b"], -torch.ones(3)
    )


def test_memory_of_another_model_is_explained():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    other = step.init(nn.Linear(6, 3))
    state = step.init(net())
    with pytest.raises(Exception) as caught:
        step(state.put("update", other["update"]), batch())
    assert "does not fit the model's parameters" in "".join(caught.value.__notes__)
    wider = nn.Sequential(
        nn.Linear(6, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)
    )
    # As many tensors, of other shapes: a kernel that does not look would read past their ends.
    with pytest.raises(ValueError, match="other shapes") as caught:
        step(state.put("update", step.init(wider)["update"]), batch())
    assert "slots/update/adamw/mu/0.weight" in "".join(caught.value.__notes__)
    with pytest.raises(ValueError, match=r"slots/update/adamw/mu/0\.weight"):
        step.init(
            state.replace(**{k: getattr(step.init(wider), k) for k in ("params", "skeleton")})
        )


def test_wrong_order_is_refused_when_the_pipeline_is_built():
    adamw = fl.optim.adamw(1e-3)
    with pytest.raises(TypeError, match=r"amp wraps a gradient stage.*before the update"):
        fl.pipe(loss, fl.grad, fl.update(adamw), fl.amp("bf16"))
    with pytest.raises(TypeError, match=r"ema wraps a training step.*after the update"):
        fl.pipe(loss, fl.grad, fl.ema(0.9), fl.update(adamw))
    with pytest.raises(TypeError, match=r"fl\.pipe\(loss, fl\.grad"):
        fl.pipe(loss, fl.update(adamw))
    with pytest.raises(TypeError, match="one update"):
        fl.pipe(loss, fl.grad, fl.update(adamw), fl.update(adamw))
    with pytest.raises(TypeError, match=r"makes no update from them.*fl\.optim\.chain"):
        fl.pipe(loss, fl.grad, fl.update(fl.optim.clip_by_norm(1.0)))
    with pytest.raises(TypeError, match=r"from_torch\(torch\.optim"):
        fl.pipe(loss, fl.grad, fl.update(torch.optim.AdamW))
    with pytest.raises(ValueError, match=r"'ema'.*name="):
        fl.pipe(loss, fl.grad, fl.update(adamw), fl.ema(0.9), fl.ema(0.99))


@pytest.mark.lightning("H11")
def test_pipelines_print_as_themselves_and_compare_by_value():
    def build(lr=0.1):
        return fl.pipe(
            loss,
            fl.grad,
            fl.accumulate(4),
            fl.amp("bf16"),
            fl.update(fl.optim.sgd(lr)),
            fl.ema(0.99),
        )

    assert build() == build() and build() != build(0.2)
    assert repr(build()).splitlines() == [
        "pipe(",
        "    loss,",
        "    grad,",
        "    accumulate(4),",
        "    amp('bf16'),",
        "    update(sgd(lr=0.1)),",
        "    ema(0.99),",
        ")",
    ]
    faster = fl.tree_at(lambda s: s.inner.optimizer.lr, build(), 0.5)
    assert faster == build(0.5)


def test_gradients_are_named_tensors():
    def as_dict(state, batch):
        grads = fl.Grads({}, torch.tensor(1), torch.tensor(True), {})
        return state, grads

    step = fl.pipe(fl.stage(as_dict, "grad"), fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(TypeError, match=r"Grads\.mean is dict and must be fl\.Tensors"):
        step(step.init(nn.Linear(2, 1)), torch.ones(3, 2))


def test_a_metric_of_the_loss_does_not_hide_behind_a_hyperparameter():
    def reports(model, batch):
        return loss(model, batch), {"sgd.lr": 1.0}

    step = fl.pipe(reports, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(ValueError, match=r"metric named 'sgd.lr', which fl.update reports itself"):
        step(step.init(net()), batch())


def test_a_negative_learning_rate_is_refused_as_torch_does():
    with pytest.raises(ValueError, match=r"sgd\(lr=.*at least 0.*got -0\.1"):
        fl.update(fl.optim.sgd(-0.1))(fl.grad(loss))
    with pytest.raises(ValueError, match="Invalid learning rate"):
        torch.optim.SGD(net().parameters(), lr=-0.1)


@fl.tree
class Decaying(fl.optim.Optimizer):
    """A power by the step, as a bias correction is."""

    name: str = "decaying"

    def update(self, grads, memory, params, step):
        return grads.scale(-0.1 * (1 - 0.9 ** (step + 1))), memory


@pytest.mark.parametrize("how", ["compiled", "vmapped"])
def test_powers_by_the_step_have_the_precision_of_the_eager_ones(how):
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(Decaying()))
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    alone = many = step.init(nn.Linear(2, 1).double())
    fast = fl.compile(step, backend="aot_eager")
    if how == "vmapped":
        many = fl.tree_map(lambda leaf: leaf[None], many)
        fast = torch.func.vmap(step, (0, None), randomness="different")
    for _ in range(3):
        alone, _ = step(alone, x)
        many, _ = fast(many, x)
    for name, value in alone.params.items():
        assert torch.allclose(many.params[name].reshape(value.shape), value, rtol=1e-13, atol=0)
