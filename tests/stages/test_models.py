"""Models that are hard to be pure with."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import fnloop as fl
from fnloop import testing


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batch(n=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


class Checkpointed(nn.Module):
    """Activations are computed again in the backward pass."""

    def __init__(self, on=True):
        super().__init__()
        self.on = on
        self.block = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 5))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        hidden = checkpoint(self.block, x, use_reentrant=False) if self.on else self.block(x)
        return self.head(hidden)


def test_activation_checkpointing():
    torch.manual_seed(0)
    model = Checkpointed()
    plain = copy.deepcopy(model)
    plain.on = False
    stage = fl.grad(loss)
    _, grads = stage(stage.init(model, seed=1), batch())
    _, expected = stage(stage.init(plain, seed=1), batch())
    for name, g in expected.mean.items():
        torch.testing.assert_close(grads.mean[name], g)


class Writes(nn.Module):
    """Keeps what it computed on itself."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.calls = 0
        self.last = None

    def forward(self, x):
        self.calls += 1
        self.last = self.hidden = self.linear(x)
        return self.last * self.calls


def test_what_a_model_writes_on_itself_is_forgotten():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = Writes()
    state = step.init(model)
    with pytest.warns(UserWarning, match=r"calls, last, hidden\..*register_buffer"):
        step(state, batch())
    testing.check_repeatable(step, state, batch())
    state, _ = step(state, batch())
    module = fl.to_module(state)
    assert (module.calls, module.last) == (0, None) and not hasattr(module, "hidden")
    assert state.skeleton.module.last is None


def test_a_buffer_that_is_filled_later_is_refused():
    class Lazy(nn.Linear):
        def __init__(self):
            super().__init__(5, 3)
            self.register_buffer("seen", None)

        def forward(self, x):
            self.seen = x.mean(0).detach()
            return super().forward(x)

    stage = fl.grad(loss)
    with pytest.raises(ValueError, match="'seen', which was registered as None"):
        stage(stage.init(Lazy()), batch())


def trained_as_by_torch(step, state, model):
    """Three steps, compared to a loop over `model`; the state after them."""
    reference = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        state, _ = step(state, batch())
        reference.zero_grad()
        loss(model, batch()).backward()
        reference.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach())
    return state


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_models_are_what_they_are(wrap):
    def build():
        return nn.Sequential(nn.Linear(5, 4), wrap(nn.Linear(4, 3)))

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(build, seed=0)
    assert state == step.init(build, seed=0)
    trained_as_by_torch(step, state, fl.to_module(state))


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def called_spectral_norm(layer):
    layer = nn.utils.spectral_norm(layer)
    layer(torch.ones(1, layer.in_features))
    return layer


def pruned_twice(layer):
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "weight", 0.2)
    return layer


@pytest.mark.lightning("C14")
@pytest.mark.parametrize("wrap", [old_weight_norm, called_spectral_norm, pruned_twice])
@pytest.mark.parametrize("compiled", [False, True])
def test_weights_that_torchs_hooks_compute_before_each_call(wrap, compiled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), wrap(nn.Linear(4, 3)))
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state = trained_as_by_torch(step, step.init(model), model)
    x = batch()[0]
    torch.testing.assert_close(fl.to_module(state).eval()(x), model.eval()(x))


@pytest.mark.lightning("T5", "P3")
def test_complex_and_double_parameters():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 3, dtype=torch.complex64))

        def forward(self, x):
            return (x.to(torch.complex64) @ self.w).abs()

    model = Complex()
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, _ = step(step.init(model), batch())
    reference = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model, batch()).backward()
    reference.step()
    torch.testing.assert_close(state.params["w"], model.w.detach())

    double = nn.Linear(5, 3).double()
    x, y = batch()
    whole = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    parts = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    a, _ = whole(whole.init(double), (x.double(), y))
    b, _ = parts(parts.init(double), (x.double(), y))
    for name in a.params:
        torch.testing.assert_close(a.params[name], b.params[name], rtol=1e-14, atol=1e-15)


def test_a_state_can_be_pickled():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    state = step.init(nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)))
    twin = pickle.loads(pickle.dumps(state))
    assert twin == state and step(twin, batch())[0] == step(state, batch())[0]


def test_steps_after_a_transform_and_under_inference_mode_are_untouched():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = nn.Linear(5, 3)
    state = step.init(model)
    x, y = batch()

    def unrolled(w):
        s = state.replace(params={**state.params, "weight": w})
        for _ in range(3):
            s, _ = step(s, (x, y))
        return s.params["weight"].sum()

    hyper = torch.func.grad(unrolled)(state.params["weight"])
    assert hyper.isfinite().all()
    with torch.inference_mode():
        fl.evaluate(loss, state, [(x, y)])
    _, metrics = step(state, (x, y))
    assert float(metrics["loss"]) > 0
    testing.check_pure(step, state, (x, y), model)
    assert torch.func.grad(unrolled)(state.params["weight"]).equal(hyper)


def test_steps_and_evaluation_in_two_threads():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    data = fl.Batches([(x, int(y)) for x, y in zip(*batch(), strict=True)], 2)
    expected, value = step(state, batch())[0], fl.evaluate(loss, state, data)
    wrong = []

    def train():
        wrong.extend(1 for _ in range(60) if step(state, batch())[0] != expected)

    def evaluate():
        wrong.extend(1 for _ in range(60) if fl.evaluate(loss, state, data) != value)

    threads = [threading.Thread(target=f, daemon=True) for f in (train, evaluate, train)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong and not any(thread.is_alive() for thread in threads)


def test_a_seed_out_of_range_leaves_no_lock_behind():
    with pytest.raises(ValueError, match="int64"):
        fl.grad(loss).init(lambda: nn.Linear(5, 3), seed=2**70)
    done = []
    thread = threading.Thread(
        target=lambda: done.append(fl.grad(loss).init(lambda: nn.Linear(5, 3)))
    )
    thread.start()
    thread.join(timeout=20)
    assert done


def test_weights_of_batches_that_are_no_tensors():
    state = fl.grad(loss).init(nn.Linear(5, 3))
    fn = lambda m, b: torch.tensor(float(np.mean(b)))  # noqa: E731
    assert fl.evaluate(fn, state, [np.array([1.0, 2.0, 3.0]), np.array([10.0])])["loss"] == 4.0
    with pytest.raises(ValueError, match="no tensor was found in the batch of type object"):
        fl.evaluate(lambda m, b: torch.tensor(1.0), state, [object()])
    step = fl.pipe(lambda m, b: m(b["x"]).mean(), fl.grad, fl.accumulate(2))
    with pytest.raises(ValueError, match=r"there is a object.*fl\.data\.Micro"):
        step(state, {"x": torch.ones(4, 5), "graph": object()})
    with pytest.raises(ValueError, match=r"x has 4, y has 3.*fl\.data\.Micro"):
        step(state, {"x": torch.ones(4, 5), "y": torch.ones(3)})


def test_metrics_of_a_loss_keep_their_kind():
    def both(model, batch):
        x, y = batch
        return loss(model, batch), {"perplexity": fl.metrics.perplexity(model(x), y)}

    state = fl.grad(loss).init(nn.Linear(5, 3))
    data = fl.Batches(batch(10), 4)
    found = fl.evaluate(both, state, data)
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-6)
    for name in ("loss", "skipped"):
        with pytest.raises(ValueError, match="which fnloop reports itself"):
            fl.evaluate(lambda m, b, n=name: (loss(m, b), {n: fl.Sum(1.0)}), state, data)


def test_an_integer_extreme_survives_a_skipped_step():
    def counting(model, batch):
        return loss(model, batch), {"most": fl.Max(batch[1].max()), "least": fl.Min(batch[1].min())}

    step = fl.pipe(counting, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(5, 3))
    x, y = batch()
    _, bad = step(state, (x * torch.nan, y))
    _, good = step(state, (x, y))
    merged = fl.metrics.merge([bad, good])
    assert (int(merged["most"].value()), int(merged["least"].value())) == (
        int(y.max()),
        int(y.min()),
    )


def test_an_optimizer_may_not_be_named_scale():
    with pytest.raises(ValueError, match='cannot be named "scale"'):
        fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1, name="scale")))


def test_pipe_says_what_it_cannot_call():
    with pytest.raises(TypeError, match=r"fl\.update\(adamw"):
        fl.pipe(loss, fl.grad, fl.optim.adamw(1e-2))
