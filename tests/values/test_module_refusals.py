"""Models that cannot be run on the tensors of a state are refused at init."""

from __future__ import annotations

import functools
import itertools
import types
import weakref

import pytest
import torch
from torch import nn

import fnloop as fl

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.ones(6, 1)
GLOBAL = nn.Linear(3, 1)


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.call = lambda x: x

    def forward(self, x):
        return self.call(self.linear(x))


def in_lambda(net):
    net.call = lambda x: x * net.linear.weight.sum()


def in_hook(net):
    net.linear.register_forward_hook(lambda module, args, output: output + net.linear.bias)


def in_container(net):
    net.functions = {"a": [lambda x: net.linear(x)]}


def in_default(net):
    net.call = lambda x, layer=net.linear: layer(x)


def in_partial(net):
    def inner(x):
        return net.linear(x)

    net.call = functools.partial(lambda f, x: x, inner)


def in_wrapper(net):
    def inner(x):
        return net.linear(x)

    net.call = functools.wraps(inner)(lambda x: inner(x))


def in_object(net):
    holder = types.SimpleNamespace(model=net)
    net.call = lambda x: holder.model.linear(x)


def in_method(net):
    net.call = types.MethodType(lambda self, x: x * net.linear.bias, net)


def of_tensor(net):
    weight = net.linear.weight
    net.call = lambda x: x * weight.sum()


def in_weak_reference(net):
    net.linear.parent = weakref.ref(net)


@pytest.mark.parametrize(
    "keep",
    [
        in_lambda, in_hook, in_container, in_default, in_partial, in_wrapper, in_object, in_method,
        of_tensor, in_weak_reference,
    ],
)  # fmt: skip
def test_what_leads_back_to_the_original_is_refused(keep):
    net = Net()
    keep(net)
    with pytest.raises(ValueError, match=r"leads to the model itself(.|\n)*functools\.partial"):
        STEP.init(net)
    with pytest.raises(ValueError, match="leads to the model itself"):
        STEP.init(lambda: net)


def test_a_global_model_is_found_too():
    model = nn.Sequential(GLOBAL)
    model.act = lambda x: x * GLOBAL.weight.sum()
    with pytest.raises(ValueError, match="GLOBAL, a Linear"):
        STEP.init(model)


def test_what_is_copied_with_the_model_is_fine():
    class Methods(Net):
        def __init__(self):
            super().__init__()
            self.call = self.double
            self.bias = functools.partial(Methods.add, self)
            self.linear.register_forward_hook(self.hook)
            self.linear.register_forward_hook(lambda module, args, output: output + module.bias)

        def hook(self, module, args, output):
            return output * self.linear.weight.sum()

        def double(self, x):
            return self.bias(x * 2)

        def add(self, x):
            return x + self.linear.bias

    model = Methods()
    state = STEP.init(model)
    module = fl.to_module(state)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        state, _ = STEP(state, (X, Y))
        optimizer.zero_grad()
        loss(module, (X, Y)).backward()
        optimizer.step()
    for name, p in module.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach())


def test_functions_that_lead_elsewhere_are_fine():
    teacher, seen, net = nn.Linear(3, 1), [], Net()
    net.call = lambda x: x + 0 * teacher.weight.sum()
    net.linear.register_forward_hook(lambda module, args, output: seen.append(1))
    STEP(STEP.init(net), (X, Y))
    assert seen


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
@pytest.mark.parametrize("place", [lambda m: m, lambda m: nn.Sequential(m, nn.Identity())])
def test_scripted_modules_are_refused_anywhere(make, place):
    with pytest.raises(TypeError, match="scripted or traced module"):
        STEP.init(place(make(nn.Linear(3, 1))))


class DistributedDataParallel(nn.Module):
    """Has the name of torch's own, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [(torch.compile, "OptimizedModule"), (DistributedDataParallel, "DistributedDataParallel")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrapped_submodules_are_refused(wrap, kind):
    with pytest.raises(TypeError, match=f"'1.block' of the model is wrapped in {kind}"):
        STEP.init(nn.Sequential(nn.Identity(), nn.ModuleDict({"block": wrap(nn.Linear(3, 1))})))


def test_a_fully_sharded_submodule_is_refused(tmp_path):
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel as Parallel

    init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for wrap, kind in ((fully_shard, "FSDPModule"), (Parallel, "DistributedDataParallel")):
            with pytest.raises(TypeError, match=f"'0' of the model is wrapped in {kind}"):
                STEP.init(nn.Sequential(wrap(nn.Linear(3, 1))))
    finally:
        destroy_process_group()


@pytest.mark.parametrize("keep", [tuple, lambda ws: functools.partial(sum, *ws)])
def test_parameters_in_tuples_are_refused(keep):
    net = Net()
    net.weights = keep([net.linear.weight])
    with pytest.raises(ValueError, match=r"'linear.weight' a second time, as weights(.|\n)*a list"):
        STEP.init(net)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_parameters_are_refused(kind):
    net = Net()
    getattr(net.linear.weight, kind)(lambda gradient: None)
    with pytest.raises(ValueError, match=r"'linear\.weight' has a hook(.|\n)*fl\.stage"):
        STEP.init(net)


def test_iterators_are_refused():
    net = Net()
    net.counters = [iter([1, 2])]
    with pytest.raises(ValueError, match=r"iterator \(list_iterator\), as counters\[0\]"):
        STEP.init(net)


@pytest.mark.parametrize(
    "iterator", [itertools.count(), (i for i in range(2))], ids=["count", "generator"]
)
def test_also_those_that_python_does_not_copy(iterator):  # the first: since Python 3.14
    net = Net()
    net.counters = [iterator]
    with pytest.raises((TypeError, ValueError), match="an iterator"):
        STEP.init(net)


NOT_DENSE = {
    "csr": (lambda: torch.eye(3).to_sparse_csr(), r"torch\.sparse_csr"),
    "bsr": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), r"torch\.sparse_bsr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8), "quant"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch: prototypes, deprecated
@pytest.mark.parametrize("name", NOT_DENSE)
def test_buffers_and_parameters_that_are_not_dense(name):
    make, kind = NOT_DENSE[name]
    model = nn.Linear(3, 1)
    model.register_buffer("table", make())
    with pytest.raises(ValueError, match=rf"The buffer 'table' is {kind}.*Keep it dense"):
        STEP.init(model)
    model = nn.Linear(3, 1)
    model.table = nn.Parameter(make(), requires_grad=False)
    with pytest.raises(ValueError, match=rf"The parameter 'table' is {kind}.*as a buffer or a par"):
        STEP.init(model)


def test_a_sparse_parameter_in_parts_is_fine():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("indices", torch.tensor([[0, 1, 2], [0, 1, 2]]))
            self.values = nn.Parameter(torch.ones(3))

        def forward(self, x):
            table = torch.sparse_coo_tensor(
                self.indices, self.values, (3, 3), check_invariants=True
            )
            return (table @ x.T)[:1].T

    with pytest.raises(ValueError, match=r"is torch\.sparse_coo"):
        model = nn.Linear(3, 1)
        model.table = nn.Parameter(torch.eye(3).to_sparse_coo())
        STEP.init(model)
    model = Parts()
    state, _ = STEP(STEP.init(model), (X, Y))
    loss(model, (X, Y)).backward()
    torch.testing.assert_close(state.params["values"], model.values - 0.1 * model.values.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch.ao
def test_a_model_for_quantization_aware_training_is_trained_as_by_torch():
    quantization = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(0)
    model = nn.Sequential(quantization.QuantStub(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(model.train())
    fast = fl.compile(STEP, backend="aot_eager")
    with pytest.raises(fl.errors.CompileError, match="is empty until it has seen a batch"):
        fast(fast.init(model), (X, Y))
    model(X)
    states = [STEP.init(model), fast.init(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        states = [step(state, (X, Y))[0] for step, state in zip((STEP, fast), states, strict=True)]
        optimizer.zero_grad()
        loss(model, (X, Y)).backward()
        optimizer.step()
    for state in states:
        found = fl.to_module(state)
        assert found.qconfig is not None
        torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)
