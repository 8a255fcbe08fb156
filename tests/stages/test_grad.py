"""Gradients against plain autograd on the user's own module."""

from __future__ import annotations

import copy
import math
import warnings

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


class Model(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.config = {"classes": 3}
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(p))
        self.tied = nn.Linear(8, 8, bias=False)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(8, 3)
        self.head.bias.requires_grad_(False)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.seen = self.seen + len(x)  # assigned anew, not written in place
        return self.head(torch.tanh(self.again(torch.tanh(self.tied(self.encoder(x))))))


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def batch(n=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def test_gradients_and_buffers_are_those_of_a_plain_backward():
    model = Model()
    reference = copy.deepcopy(model)
    loss(reference, batch()).backward()
    stage = fl.grad(loss)
    state, grads = stage(stage.init(model), batch())
    trainable = {name: p for name, p in reference.named_parameters() if p.requires_grad}
    assert list(grads.mean) == list(trainable)
    assert "again.weight" not in state.params and "head.bias" in state.params
    for name, parameter in trainable.items():
        torch.testing.assert_close(grads.mean[name], parameter.grad)
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(state.buffers[name], buffer)
    assert float(state.buffers["seen"]) == 9
    assert float(grads.weight) == 9


@pytest.mark.lightning("X8")
def test_the_loss_may_use_parts_of_the_model_and_its_attributes():
    def partial(model, batch):
        features = model.encoder(batch[0])
        return features.square().mean() * model.config["classes"]

    stage = fl.grad(partial)
    _, grads = stage(stage.init(Model()), batch())
    assert grads.mean["encoder.0.weight"].abs().sum() > 0
    assert "head.weight" not in grads.mean  # not used: no gradient


def test_dropout_is_a_function_of_key_and_calls():
    stage = fl.grad(loss)
    state = stage.init(Model(p=0.5), seed=1)
    once, twice = stage(state, batch())[1], stage(state, batch())[1]
    later = stage(state.replace(calls=state.calls + 1), batch())[1]
    same = stage(state.replace(step=state.step + 1), batch())[1]
    other = stage(state.replace(key=state.key + 1), batch())[1]
    assert once == twice == same and once != later and once != other


def test_a_loss_may_take_the_state():
    def scheduled(model, batch, state):
        return loss(model, batch) * (1 + state.step)

    stage = fl.grad(scheduled)
    state = stage.init(Model())
    first = stage(state, batch())[1].mean["head.weight"]
    second = stage(state.replace(step=state.step + 1), batch())[1].mean["head.weight"]
    torch.testing.assert_close(second, 2 * first)


@pytest.mark.lightning("L10")
def test_weights_and_metrics():
    def weighted(model, batch):
        x, y = batch
        w = torch.arange(len(y)) % 3
        losses = F.cross_entropy(model(x), y, reduction="none")
        return fl.Mean((w * losses).sum(), w.sum()), {
            "mean": losses.mean(),
            "most": fl.Max(losses.max()),
        }

    stage = fl.grad(weighted)
    state = stage.init(nn.Sequential(nn.Linear(5, 3)))
    _, grads = stage(state, batch())
    assert int(grads.weight) == 9 and grads.weight.dtype == torch.int64
    assert set(grads.metrics) == {"loss", "mean", "most"}
    assert not any(
        leaf.requires_grad for leaf in fl.tree_leaves(grads) if isinstance(leaf, torch.Tensor)
    )


def test_a_tree_is_a_model():
    @fl.tree
    class Affine:
        weight: torch.Tensor
        bias: torch.Tensor
        order: torch.Tensor
        scale: float = 2.0

        def __call__(self, x):
            noise = 1.0 if fl.training() else 0.0
            return (x @ self.weight + self.bias)[:, self.order] * self.scale + noise

    model = Affine(torch.randn(5, 3), torch.zeros(3), torch.tensor([2, 0, 1]))
    stage = fl.grad(loss)
    state = stage.init(model)
    assert set(state.params) == {"weight", "bias"} and set(state.buffers) == {"order"}
    _, grads = stage(state, batch())
    weight = model.weight.clone().requires_grad_()
    x, y = batch()
    F.cross_entropy((x @ weight)[:, model.order] * 2, y).backward()
    torch.testing.assert_close(grads.mean["weight"], weight.grad)
    assert fl.to_module(state) == model
    step = fl.pipe(lambda m, b: m(b[0]).mean(), fl.grad, fl.update(fl.optim.sgd(0.0)))
    state = step.init(model)
    trained = float(step(state, batch())[1]["loss"])
    assert trained - fl.evaluate(lambda m, b: m(b[0]).mean(), state, [batch()])[
        "loss"
    ] == pytest.approx(1)


@pytest.mark.lightning("M5")
def test_a_factory_is_called_under_the_seed():
    stage = fl.grad(loss)
    assert stage.init(Model, seed=3) == stage.init(Model, seed=3)
    assert stage.init(Model, seed=3) != stage.init(Model, seed=4)


@pytest.mark.lightning("H6")
def test_a_submodule_in_evaluation_mode_stays_there():
    model = Model()
    model.encoder[1].eval()  # a frozen BatchNorm
    stage = fl.grad(loss)
    state = stage.init(model)
    after, _ = stage(state, batch())
    assert torch.equal(
        after.buffers["encoder.1.running_mean"], state.buffers["encoder.1.running_mean"]
    )
    assert fl.to_module(state).encoder[1].training is False


def test_a_model_handed_over_in_evaluation_mode_is_trained_in_training_mode():
    model = Model().eval()
    stage = fl.grad(loss)
    state = stage.init(model)
    after, _ = stage(state, batch())
    assert not torch.equal(
        after.buffers["encoder.1.running_mean"], state.buffers["encoder.1.running_mean"]
    )
    assert model.training is False and fl.to_module(state).training is False


@pytest.mark.lightning("P3")
def test_half_precision_parameters_have_float32_gradients():
    model = nn.Linear(5, 3).to(torch.bfloat16)
    x, y = batch()
    stage = fl.grad(loss)
    _, grads = stage(stage.init(model), (x.to(torch.bfloat16), y))
    assert {t.dtype for t in grads.mean.values()} == {torch.float32}
    reference = copy.deepcopy(model)
    loss(reference, (x.to(torch.bfloat16), y)).backward()
    torch.testing.assert_close(
        grads.mean["weight"], reference.weight.grad.float(), rtol=2e-2, atol=1e-3
    )


def test_recurrent_layers_see_the_states_parameters():
    model = nn.LSTM(5, 4, batch_first=True)
    stage = fl.grad(lambda m, x: m(x)[0].square().mean())
    x = torch.randn(2, 3, 5)
    state = stage.init(model)
    moved = state.replace(params={k: p + 0.1 for k, p in state.params.items()})
    _, grads = stage(moved, x)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for p in reference.parameters():
            p += 0.1
    reference(x)[0].square().mean().backward()
    for name, p in reference.named_parameters():
        torch.testing.assert_close(grads.mean[name], p.grad)


def test_under_torch_func_it_agrees_with_eager():
    stage = fl.grad(loss)
    state = stage.init(Model())
    eager_state, eager = stage(state, batch())

    def traced(x):
        new, grads = stage(state, (x, batch()[1]))
        return grads.mean["head.weight"].sum(), (grads.mean, new.buffers)

    _, (mean, buffers) = torch.func.grad(traced, has_aux=True)(batch()[0])
    for name in mean:
        torch.testing.assert_close(mean[name], eager.mean[name])
    for name in buffers:
        torch.testing.assert_close(buffers[name], eager_state.buffers[name])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"),
            ValueError,
            r"shape \[9\].*mean",
        ),
        (lambda m, b: 1.0, TypeError, "returned float"),
        (lambda m, b: (loss(m, b), 3), TypeError, "a dict of metrics"),
        (lambda m, b: loss(m, b).detach(), ValueError, "does not depend on any parameter"),
        (lambda m, b: (loss(m, b), {"x": torch.ones(3)}), TypeError, "The metric 'x'"),
        (lambda m, b: m(b[0]).argmax(), TypeError, "no gradient"),
    ],
)
def test_a_loss_that_returns_the_wrong_thing_says_so(function, error, message):
    stage = fl.grad(function)
    with pytest.raises(error, match=message):
        stage(stage.init(Model()), batch())


def test_leading_dimensions_that_disagree_ask_for_a_mean():
    stage = fl.grad(lambda m, b: m(b["x"]).mean())
    with pytest.raises(ValueError, match=r"x has 4, y has 3|y has 3, x has 4") as caught:
        stage(stage.init(nn.Linear(5, 3)), {"x": torch.randn(4, 5), "y": torch.zeros(3)})
    assert "fl.Mean(total, weight)" in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_cannot_be_pure_are_refused():
    with pytest.raises(ValueError, match="lazy layers"):
        fl.grad(loss).init(nn.LazyLinear(3))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        fl.grad(loss).init("model")
    with pytest.raises(TypeError, match="OptimizedModule"):
        fl.grad(loss).init(torch.compile(nn.Linear(5, 3)))


def test_an_error_in_the_loss_says_with_which_batch():
    stage = fl.grad(loss)
    state = stage.init(Model())
    wrong = (torch.randn(4, 7), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="cannot be multiplied") as caught:
        stage(state, wrong)
    assert (
        "in loss, called with the model Model and the batch (f32[4,7], i64[4])"
        in (caught.value.__notes__[0])
    )
    with pytest.raises(RuntimeError) as caught:
        fl.evaluate(loss, state, [wrong])
    assert "f32[4,7]" in caught.value.__notes__[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_writes_to_a_parameter_is_refused(compiled):
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state = step.init(nn.Embedding(5, 3, max_norm=0.1))
    with pytest.raises(RuntimeError, match=r"'weight' in place(.|\n)*max_norm"):
        step(state, torch.tensor([1, 2]))


class _Scaled(torch.autograd.Function):
    """The mean of w * x, whose gradient by w is the saved x itself."""

    @staticmethod
    def forward(ctx, w, x):
        ctx.save_for_backward(x)
        return (w * x).sum()

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0], None


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return _Scaled.apply(self.w, x[0])


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("optimizer", [fl.optim.sgd, fl.optim.adamw])
def test_a_gradient_that_is_the_batch_is_not_written_to(optimizer, tmp_path):
    numpy.save(tmp_path / "x.npy", numpy.ones((4, 4), dtype=numpy.float32))
    x = torch.from_numpy(numpy.load(tmp_path / "x.npy", mmap_mode="r"))
    loss = lambda model, x: model(x)  # noqa: E731
    clipped = fl.optim.chain(fl.optim.clip_by_norm(1.0), optimizer(0.1))
    step = fl.pipe(loss, fl.grad, fl.accumulate(4), fl.update(clipped))
    step(step.init(_Model()), x)  # a write would be a segmentation fault
    copy = x.clone()
    step(step.init(_Model()), copy)
    assert torch.equal(copy, torch.ones(4, 4))


def test_a_loss_of_weight_zero_leaves_the_mean_loss_alone():
    loss = lambda model, x: fl.Mean((model(x) / x).sum() * (x > 0).sum(), (x > 0).sum())  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    _, metrics = step(step.init(nn.Linear(1, 1)), torch.tensor([[0.0], [1.0]]))
    assert math.isfinite(metrics["loss"])


@pytest.mark.parametrize("context", ["plain", "accumulate", "vmap"])
def test_a_loss_of_another_model_is_an_error(context):
    """In a notebook, a loss easily uses the global model rather than its argument."""
    other = nn.Linear(2, 1)
    stages = [fl.accumulate(2)] if context == "accumulate" else []
    step = fl.pipe(
        lambda model, x: other(x).square().mean(), fl.grad, *stages, fl.update(fl.optim.sgd(0.1))
    )
    state = step.init(nn.Linear(2, 1))
    if context == "vmap":
        state = fl.tree_map(lambda t: torch.stack([t, t]), state)
        step = torch.func.vmap(step, in_dims=(0, None))
    with pytest.raises(ValueError, match="uses another model than its argument"):
        step(state, torch.ones(4, 2))


def test_single_examples_are_to_be_made_batches_of():
    stage = fl.grad(lambda model, batch: (model(batch[0]) - batch[1]).square().mean())
    state = stage.init(nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"0 has 3, 1 has 1.*single examples.*fl\.Batches\("):
        stage(state, (torch.ones(3), torch.ones(1)))
    with pytest.raises(ValueError, match=r"0 has 4, 1 has 1.*fl\.Mean\(total, weight\)\.$"):
        stage(state, (torch.ones(4, 3), torch.ones(1)))


# With respect to some parameters


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.b(self.a(x))


def two_loss(model, x):
    return model(x).square().mean()


CHOICES = {
    "a": ("a.weight", "a.bias"),
    "a.*": ("a.weight", "a.bias"),
    "*.bias": ("a.bias", "b.bias"),
    ("b", "a.bias"): ("a.bias", "b.weight", "b.bias"),
    (lambda name, p: p.ndim > 1): ("a.weight", "b.weight"),
}


@pytest.mark.parametrize(
    ("only", "names"), CHOICES.items(), ids=["a", "a.*", "*.bias", "two", "function"]
)
def test_only_some_have_gradients_which_are_those_of_all(only, names):
    everything, some = fl.grad(two_loss), fl.grad(two_loss, only=only)
    assert some == fl.pipe(two_loss, fl.grad(only=only))
    state, x = everything.init(Two()), torch.randn(4, 3)
    expected, found = everything(state, x)[1].mean, some(state, x)[1].mean
    assert found.names == names
    for name in names:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("choice", [{}, {"only": None}, {"frozen": None}, {"frozen": ()}])
def test_no_choice_is_all_of_them_with_a_loss_or_without(choice):
    whole = fl.grad(two_loss)
    assert fl.pipe(two_loss, fl.grad(**choice)) == fl.grad(two_loss, **choice) == whole


def test_what_is_behind_owns_just_those():
    step = fl.pipe(
        two_loss,
        fl.grad(only="b"),
        fl.update(fl.optim.adamw(0.1)),
        fl.ema(0.9),
        fl.guard(fl.rules.spike("loss"), then="rewind"),
    )
    state = step.init(Two())
    own = {"b.weight", "b.bias"}
    assert set(state["update"]["adamw"]["mu"]) == set(state["ema"]) == own
    assert set(state["guard"]["older"]["params"]) == own
    after, _ = step(state, torch.randn(4, 3))
    for name, p in state.params.items():
        assert torch.equal(p, after.params[name]) == (name not in own)


def test_a_frozen_parameter_is_not_chosen():
    model = Two()
    model.b.bias.requires_grad_(False)
    step = fl.pipe(two_loss, fl.grad(only="b"), fl.update(fl.optim.sgd(0.1, momentum=0.9)))
    assert set(step.init(model)["update"]["sgd"]["momentum"]) == {"b.weight"}
    # The choice is made anew for another model.
    assert set(step.init(Two())["update"]["sgd"]["momentum"]) == {"b.weight", "b.bias"}


@pytest.mark.parametrize(
    ("only", "error", "match"),
    [
        ("c", ValueError, r"grad\(only=...\): 'c' fits no parameter.*a.weight"),
        (lambda name, p: False, ValueError, "chooses no parameter, and nothing"),
        (3, TypeError, "takes a pattern .* got 3"),
        ((), TypeError, "takes a pattern"),
        ([1], TypeError, r"takes a pattern .* got \[1\]"),
    ],
)
def test_a_choice_of_nothing_says_so(only, error, match):
    with pytest.raises(error, match=match):
        fl.pipe(two_loss, fl.grad(only=only), fl.update(fl.optim.sgd(0.1))).init(Two())


def test_a_choice_that_the_loss_does_not_use_says_so():
    grad = fl.grad(lambda model, x: model.a(x).mean(), only="b")
    with pytest.raises(ValueError, match=r"grad\(only=...\) chooses others than it uses"):
        grad(grad.init(Two()), torch.randn(4, 3))


def test_a_choice_of_what_is_frozen_says_so():
    model = Two()
    model.b.requires_grad_(False)
    with pytest.raises(ValueError, match=r"chooses b\.bias, b\.weight, and nothing that requires"):
        fl.grad(two_loss, only="b")(fl.grad(two_loss).init(model), torch.randn(4, 3))


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(3, 2))

    def forward(self, features, labels):
        return (features - self.centers[labels]).square().mean()


def with_centers(criterion):
    def loss(model, batch):
        return criterion(model(batch), torch.tensor([0, 1, 2, 0]))

    return loss


@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_beside_the_model_are_told_once(compiled):
    loss = with_centers(Centers())
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.compile(step, backend="aot_eager") if compiled else step
    state = step.init(nn.Linear(3, 2))
    with pytest.warns(UserWarning, match=r"of the shapes \(3, 2\): they are not trained") as told:
        for _ in range(4):
            state, _ = step(state, torch.ones(4, 3))
    assert len(told) == 1


def test_parameters_that_are_used_late_are_told_at_the_next_look():
    criterion = Centers().requires_grad_(False)
    step = fl.pipe(with_centers(criterion), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(3, 2))
    for _ in range(3):
        state, _ = step(state, torch.ones(4, 3))
    criterion.requires_grad_(True)
    with pytest.warns(UserWarning, match="they are not trained"):
        step(state, torch.ones(4, 3))


def test_a_criterion_in_the_model_is_trained_and_not_told():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.criterion = nn.Linear(3, 2), Centers()

    def loss(model, batch):
        return model.criterion(model.net(batch), torch.tensor([0, 1, 2, 0]))

    model = Whole()
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state, _ = step(step.init(model), torch.ones(4, 3))
    loss(model, torch.ones(4, 3)).backward()
    after = model.criterion.centers - 0.1 * model.criterion.centers.grad
    torch.testing.assert_close(state.params["criterion.centers"], after.detach())


def by_quiet_teacher(model, batch, teacher=nn.Linear(3, 2)):  # noqa: B008
    with torch.no_grad():
        target = teacher(batch)
    return (model(batch) - target).square().mean()


def by_detached_teacher(model, batch, teacher=nn.Linear(3, 2)):  # noqa: B008
    return (model(batch) - teacher(batch).detach()).square().mean()


def with_a_penalty_on_slopes(model, batch):
    x = batch.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return slope.square().mean() + model(x).square().mean()


def with_a_layer_of_its_own(model, batch):
    return nn.Linear(2, 1)(model(batch)).square().mean()


@pytest.mark.parametrize(
    "loss",
    [by_quiet_teacher, by_detached_teacher, with_a_penalty_on_slopes, with_a_layer_of_its_own],
)
def test_what_is_not_to_be_trained_is_not_told(loss):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(step.init(nn.Linear(3, 2)), torch.ones(4, 3))


def test_a_tensor_to_differentiate_with_respect_to_is_not_told():
    weight = torch.tensor(2.0, requires_grad=True)
    step = fl.pipe(lambda model, x: weight * model(x).square().mean(), fl.grad)
    step = fl.pipe(step, fl.update(fl.optim.sgd(0.1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = step(step.init(nn.Linear(3, 2)), torch.ones(4, 3))
    (slope,) = torch.autograd.grad(state.params["weight"].sum(), weight)
    assert slope != 0
