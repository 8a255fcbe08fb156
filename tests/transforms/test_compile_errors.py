"""What cannot be one graph is an error with the line and a way out."""

from __future__ import annotations

import importlib.util
import logging
import random
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fnloop as fl


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, generator=generator), torch.randn(5, 2, generator=generator)


def mse(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def compiled(loss, **options):
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return fl.compile(step, backend="aot_eager", **options), step.init(nn.Linear(4, 2))


def asks_item(model, batch):
    return mse(model, batch) * batch[0].sum().item()


def asks_float(model, batch):
    return mse(model, batch) * float(batch[0].sum())


def branches(model, batch):
    error = mse(model, batch)
    return error if error > 1 else 2 * error


def formats(model, batch):
    error = mse(model, batch)
    assert f"{error:.3f}"
    return error


def lists(model, batch):
    return mse(model, batch) * sum(batch[1].sum(1).tolist())


def picks(model, batch):
    x, y = batch
    return (model(x) - y)[x[:, 0] > 0].square().mean()


def counts(model, batch):
    return mse(model, batch) * len(torch.unique(batch[0]))


def leaves_torch(model, batch):
    return mse(model, batch) * float(np.abs(batch[0].numpy()).sum())


UNRECORDABLE = {
    asks_item: "a value of a tensor is asked for",
    asks_float: "a value of a tensor is asked for",
    branches: "a value of a tensor is asked for",
    formats: "a value of a tensor is asked for",
    lists: "a value of a tensor is asked for",
    picks: "the shape of a result depends on values",
    counts: "the number of different values depends on the values",
    leaves_torch: "a tensor is taken out of PyTorch",
}


@pytest.mark.parametrize("loss", UNRECORDABLE, ids=lambda loss: loss.__name__)
def test_the_message_names_the_line_and_the_function(loss, caplog):
    step, state = compiled(loss)
    with pytest.raises(fl.errors.CompileError, match=UNRECORDABLE[loss]) as caught:
        step(state, batch())
    message = str(caught.value)
    place = rf"test_compile_errors\.py, line \d+, in {loss.__name__}: \S"
    assert re.search(place, message), message
    assert "Without fl.compile the step runs as it is." in message
    assert any(loss.__name__ in note for note in caught.value.__notes__)
    assert not [r for r in caplog.records if r.name.startswith("torch._subclasses")]
    step.inner(state, batch())


def test_a_librarys_line_is_named_with_the_users(tmp_path):
    file = tmp_path / "site-packages" / "library.py"
    file.parent.mkdir()
    file.write_text("def kept(x):\n    return x[x > 0]\n")
    spec = importlib.util.spec_from_file_location("library", file)
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)

    def loss(model, batch):
        return library.kept(model(batch[0])).square().mean()

    step, state = compiled(loss)
    with pytest.raises(fl.errors.CompileError) as caught:
        step(state, batch())
    first, second, third, *_ = str(caught.value).splitlines()[1:]
    assert first.strip() == "library.py, line 2, in kept: return x[x > 0]"
    assert re.match(r"  test_compile_errors\.py, line \d+, in loss: return library\.kept", second)
    assert "The first line is a library's: look for a setting of it" in third


def normal(scale):
    def loss(model, batch):
        mean = model(batch[0]).mean(0)
        return -torch.distributions.MultivariateNormal(mean, **scale).log_prob(batch[1]).mean()

    return loss


def masked(**options):
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
    mask = nn.Transformer.generate_square_subsequent_mask(5)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return self.encoder(x[None], mask=mask, **options)[0, :, :2]

    return Model()


def averaging(momentum):
    return nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, momentum=momentum))


ASKING = {
    "batchnorm.py": (mse, lambda: averaging(None)),
    "transformer.py": (mse, masked),
    "constraints.py": (  # asked for, as others may have switched it off in this process
        normal({"covariance_matrix": torch.eye(2), "validate_args": True}),
        lambda: nn.Linear(4, 2),
    ),
}
REMEDIES = {
    "momentum": (mse, lambda: averaging(0.1)),
    "is_causal": (mse, lambda: masked(is_causal=True)),
    "scale_tril": (normal({"scale_tril": torch.eye(2)}), lambda: nn.Linear(4, 2)),
    "validate_args": (
        normal({"covariance_matrix": torch.eye(2), "validate_args": False}),
        lambda: nn.Linear(4, 2),
    ),
}


@pytest.mark.parametrize("file", ASKING)
def test_a_layer_of_pytorch_that_asks_for_a_value_is_named_with_the_users_line(file):
    loss, model = ASKING[file]
    fast, _ = compiled(loss)
    with pytest.raises(fl.errors.CompileError) as info:
        fast(fast.init(model), batch())
    _, first, second, third = str(info.value).splitlines()
    assert first.startswith(f"  {file}, line ") and " in " in second
    assert third.startswith("The first line is a library's: look for a setting of it")


@pytest.mark.parametrize("name", REMEDIES)
def test_what_is_told_instead_of_these_is_recorded(name):
    loss, model = REMEDIES[name]
    fast, _ = compiled(loss)
    state = fast.init(model, seed=0)
    assert float(fast(state, batch())[1]["loss"]) > 0 and fast.graphs == 1


def coin():
    return random.random() < 0.5


def test_the_line_that_draws_outside_of_torch_is_named():
    def loss(model, batch):
        error = mse(model, batch)
        return 2 * error if coin() else error

    step, state = compiled(loss)
    tracer = sys.gettrace()
    with pytest.raises(fl.errors.CompileError, match="draws from random") as caught:
        step(state, batch())
    assert sys.gettrace() is tracer
    named = re.findall(r"test_compile_errors\.py, line \d+, in (.*)", str(caught.value))
    assert named == ["coin: return random.random() < 0.5"]


@pytest.mark.parametrize("compiles", [False, True])
def test_reentrant_checkpointing_is_refused_with_the_remedy(compiles):
    def loss(model, batch, reentrant=True):
        hidden = model(batch[0]).repeat(1, 2)
        return checkpoint(model, hidden, use_reentrant=reentrant).square().mean()

    step, state = compiled(lambda model, batch: loss(model, batch))
    step = step if compiles else step.inner
    with pytest.raises(RuntimeError, match=r"Set use_reentrant=False: checkpoint\(layer, x, use"):
        step(state, batch())
    step, state = compiled(lambda model, batch: loss(model, batch, reentrant=False))
    step(state, batch()) if compiles else step.inner(state, batch())


def test_after_an_error_the_step_still_runs():
    wrong = [True]

    def loss(model, batch):
        return mse(model, batch) * (batch[0].sum().item() if wrong else 1.0)

    step, state = compiled(loss)
    with pytest.raises(fl.errors.CompileError):
        step(state, batch())
    assert step.graphs == 0
    wrong.clear()
    assert int(step(state, batch())[0].step) == 1


def test_a_users_own_error_is_left_as_it_is(caplog):
    def loss(model, batch):
        raise KeyError("mine")

    step, state = compiled(loss)
    with pytest.raises(KeyError, match="mine"):
        step(state, batch())
    step, state = compiled(mse)
    with pytest.raises(RuntimeError, match=r"reduction dim|cannot be multiplied") as caught:
        step(state, (torch.ones(5, 3), torch.ones(5, 2)))
    assert "called with the model Linear" in caught.value.__notes__[0]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


class Graph:
    """Like the graphs of torch_geometric."""

    def __init__(self, x):
        self.x = x

    def to_dict(self):
        return {"x": self.x}


BATCHES = {
    "an array": (np.ones((5, 4), np.float32), r"0 is a numpy\.ndarray: .*torch\.as_tensor"),
    "a set": ({1, 2}, "0 is a set: give its tensors in a dict or tuple"),
    "a graph": (Graph(torch.ones(5, 4)), r"Graph: .* plain dict: batch\.to_dict\(\)"),
    "a sparse tensor": (
        torch.ones(5, 4).to_sparse(),
        "dense tensors, but 0 is of torch.sparse_coo",
    ),
    "one that wants gradients": (torch.ones(5, 4, requires_grad=True), "0 requires gradients"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches_that_cannot_be_taken(name):
    x, message = BATCHES[name]
    step, state = compiled(mse)
    with pytest.raises(fl.errors.CompileError, match=message):
        step(state, (x, torch.ones(5, 2)))


def test_a_sparse_tensor_of_the_state_is_an_error_with_its_path():
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(nn.Linear(4, 2))
    state = state.replace(slots={**state.slots, "adjacency": torch.eye(4).to_sparse()})
    with pytest.raises(fl.errors.CompileError, match=r"slots/adjacency is of torch\.sparse_coo"):
        fl.compile(step, backend="aot_eager")(state, batch())


class Graph(nn.Module):
    def __init__(self, table, product):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.table, self.product = nn.Linear(4, 5), table, product

    def forward(self, x):
        return self.product(self.table, self.linear(x))


COO = torch.eye(5).to_sparse_coo().coalesce()
PRODUCTS = {
    "left": (COO, lambda table, y: table @ y),
    "right": (COO, lambda table, y: y @ table),
    "of torch.sparse": (COO, lambda table, y: torch.sparse.mm(table, y)),
}


def summed(model, batch):
    return model(batch[0]).square().mean()


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_sparse_attribute_is_recorded_as_it_is(name):
    step = fl.pipe(summed, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = Graph(*PRODUCTS[name])
    wanted, _ = step(step.init(model), batch())
    fast = fl.compile(step, backend="aot_eager")
    found, _ = fast(fast.init(model), batch())
    torch.testing.assert_close(dict(found.params), dict(wanted.params))


ATTRIBUTES = {
    "sparse": (
        lambda: COO,
        lambda table, y: table @ y,
        "inductor",
        r"sparse tensor\.(.|\n)*Make the tensor dense",
    ),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.eye(5), 0.1, 0, torch.quint8),
        lambda table, y: table.dequantize() @ y,
        "aot_eager",
        r"quantized tensors\.(.|\n)*table\.dequantize\(\), in __init__",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch: deprecated
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_what_is_not_dense_and_cannot_be_recorded_is_an_error_with_the_remedy(name):
    make, product, backend, message = ATTRIBUTES[name]
    table = make()
    step = fl.pipe(summed, fl.grad, fl.update(fl.optim.sgd(0.1)))
    model = Graph(table, product)
    step(step.init(model), batch())
    with pytest.raises(fl.errors.CompileError, match=message):
        fl.compile(step, backend=backend)(step.init(model), batch())


def test_a_rate_to_be_differentiated_is_an_error():
    rate = torch.tensor(0.1, requires_grad=True)
    step = fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(rate)))
    with pytest.raises(fl.errors.CompileError, match="requires gradients"):
        fl.compile(step, backend="aot_eager")(step.init(nn.Linear(4, 2)), batch())


def test_it_goes_outermost():
    step, state = compiled(mse)
    with pytest.raises(TypeError, match=r"ema wraps compile, which .* goes last"):
        fl.ema(0.9)(step)
    with pytest.raises(TypeError, match="goes last"):
        fl.pipe(mse, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.compile, fl.ema(0.9))
    x, y = batch()
    with pytest.raises(fl.errors.CompileError, match="goes outermost"):
        torch.func.vmap(lambda x: step(state, (x, y))[1]["loss"].total)(torch.stack([x, x]))
    with pytest.raises(fl.errors.CompileError, match="goes outermost"):
        torch.func.grad(lambda x: step(state, (x, y))[1]["loss"].total)(x)


WRONG = {
    "compiled already": (lambda step: fl.compile(step), TypeError, "compiled already"),
    "mode": (lambda step: fl.compile(step.inner, mode="fast"), ValueError, "max-autotune.*'fast'"),
    "a number": (lambda step: fl.compile(3), TypeError, "was given 3"),
    "a combinator": (lambda step: fl.compile(fl.accumulate(2)), TypeError, "still waits for"),
    "a callback": (lambda step: fl.compile(fl.early_stopping("loss")), TypeError, "is a callback"),
    "no state": (lambda step: step({}, batch()), TypeError, "takes a state.*got dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call(compiled(mse)[0])


def test_an_operation_that_does_not_say_what_it_returns():
    library = torch.library.Library("fnloop_test", "DEF")
    library.define("opaque(Tensor x) -> Tensor")
    library.impl("opaque", lambda x: x.clone(), "CPU")

    def loss(model, batch):
        return mse(model, (torch.ops.fnloop_test.opaque(batch[0]), batch[1]))

    step, state = compiled(loss)
    with pytest.raises(fl.errors.CompileError, match=r"register_fake"):
        step(state, batch())
    library._destroy()


def test_the_log_says_how_large_the_graph_is(caplog):
    step, state = compiled(mse)
    with caplog.at_level(logging.INFO, "fnloop.compile"):
        step(state, batch())
        step(state, batch())
    (message,) = [r.message for r in caplog.records if r.name == "fnloop.compile"]
    assert re.fullmatch(r"One graph of \d+ operations, in [\d.]+ s\.", message)
