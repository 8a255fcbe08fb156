"""The private PyTorch and optree APIs that fnloop uses: fails when a new release moves one."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import Counter

import optree
import torch
from torch import nn

from fnloop._torch import (
    autograd,
    fakes,
    foreach,
    fused,
    graph,
    hooks,
    machine_code,
    members,
    pytree,
    random,
    rank_store,
    read_only,
    tracing,
)
from fnloop.data.prefetching import prefetch
from tests.ports import free_port


def test_trees_can_be_registered_everywhere():
    class Pair:
        def __init__(self, a, b):
            self.a, self.b = a, b

    pytree.register(
        Pair,
        ("a",),
        lambda p: (p.a,),
        lambda p: (p.b,),
        lambda static, children: Pair(*children, *static),
    )
    assert optree.tree_leaves(Pair(1, 2)) == torch.utils._pytree.tree_leaves(Pair(1, 2)) == [1]


def test_ranks_leave_notes_in_the_store_by_which_they_met():
    port = free_port()
    rank_store.join("gloo", f"tcp://localhost:{port}", 0, 1, seconds=20)
    try:
        assert rank_store.noted("at/0") is None
        rank_store.note("at/0", "the start")
        assert rank_store.noted("at/0") == "the start"
        assert rank_store.is_lost(torch.distributed.DistNetworkError("closed"))
        assert not rank_store.is_lost(RuntimeError("closed"))
    finally:
        rank_store.leave()
    assert not torch.distributed.is_initialized()


def test_ranks_of_a_store_without_connections_leave_notes_too():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        rank_store.note("at/0", "the start")
        assert rank_store.noted("at/0") == "the start"
    finally:
        rank_store.leave()


def test_the_launcher_of_torchrun_is_a_function():
    from torch.distributed import run

    given = run.parse_args(["--standalone", "--nproc-per-node=2", "--module", "fnloop", "fit"])
    assert given.module
    assert (given.training_script, given.training_script_args) == ("fnloop", ["fit"])
    assert callable(run.run)


def test_transforms_are_seen():
    seen = []
    f = lambda x: (seen.append((tracing.opaque(), tracing.transformed())), x.sum())[1]  # noqa: E731
    f(torch.ones(2))
    torch.func.grad(f)(torch.ones(2))
    torch.func.vmap(f)(torch.ones(2, 2))
    with tracing.recording_into("a step"):
        assert tracing.recording() == "a step"
        f(torch.ones(2))
    assert tracing.recording() is None
    nothing, both = (False, False), (True, True)
    assert seen == [nothing, both, both, (True, False)]


def test_values_are_seen_through_the_wrappers_of_transforms():
    seen = []

    def f(a, b):
        seen.append(tracing.host_values(a, b))
        return a.double().sum() + b

    five = torch.tensor(5)
    torch.func.vmap(f, in_dims=(0, None))(torch.tensor([3, 4]), five)
    torch.func.vmap(f)(torch.tensor([3, 4]), torch.tensor([6, 7]))
    torch.func.vmap(torch.func.grad(lambda y, a: f(a, five) * y), in_dims=(None, 0))(
        torch.tensor(1.0), torch.tensor([8, 9])
    )
    f(five, five + 1)
    assert seen == [[(3, 5), (4, 5)], [(3, 6), (4, 7)], [(8, 5), (9, 5)], [(5, 6)]]


def test_seeding_is_undone():
    before = torch.get_rng_state()
    with random.seeded(3):
        a = torch.rand(4)
    with random.seeded(3):
        assert torch.equal(a, torch.rand(4))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a, torch.rand(4, generator=torch.Generator().manual_seed(3)))


def test_the_engine_gives_what_autograd_grad_gives():
    model = nn.Linear(3, 2)
    x, unused = torch.randn(4, 3), torch.ones(2, requires_grad=True)
    inputs, seed = [*model.parameters(), unused], torch.tensor(3.0)
    loss = lambda: model(x).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(), inputs, seed, materialize_grads=True)

    def found(tape):
        weight, bias, _ = tape.leaves
        return tape.backward(nn.functional.linear(x, weight, bias).square().sum(), seed)

    *grads, none = autograd.gradients(found, inputs, False)
    assert none is None and expected[-1].tolist() == [0, 0]
    assert all(map(torch.equal, grads, expected))
    functional = torch.func.vmap(lambda x: autograd.gradients(found, inputs, False)[:2])
    assert [g.shape for g in functional(torch.ones(2))] == [(2, 2, 3), (2, 2)]


def test_foreach_kernels_are_there_and_agree_with_one_by_one():
    xs, ys = [torch.randn(3), torch.randn(2, 2)], [torch.randn(3), torch.randn(2, 2)]
    for run in (
        lambda bulk: foreach.add(xs, ys, bulk),
        lambda bulk: foreach.lerp(xs, ys, 0.3, bulk),
        lambda bulk: foreach.div(xs, 3.0, bulk),
        lambda bulk: foreach.sqrt(foreach.abs(xs, bulk), bulk),
        lambda bulk: foreach.clamp(xs, -0.5, 0.5, bulk),
    ):
        for a, b in zip(run(True), run(False), strict=True):
            torch.testing.assert_close(a, b)
    whole = torch.linalg.vector_norm(torch.cat([x.flatten() for x in xs]))
    for bulk in (True, False):
        torch.testing.assert_close(foreach.norm(xs, bulk), whole)  # in another order
        assert foreach.norm([torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])], bulk) == 5  # exact


def test_fused_kernels_are_there():
    p, one = [torch.ones(2)], torch.tensor(1.0)
    common = {"lr": 0.1, "weight_decay": 0.0, "maximize": False}
    for made in (
        fused.adam(
            p, p, [p, p], one, True, True, betas=(0.9, 0.9), eps=0.0, decoupled=False, **common
        ),
        fused.adam(
            p, p, [p, p], one, True, True, betas=(0.9, 0.9), eps=0.0, decoupled=True, **common
        ),
        fused.sgd(p, p, [p], True, True, momentum=0.9, nesterov=False, **common),
        fused.adagrad(p, p, [p], one, True, True, lr_decay=0.0, eps=0.0, **common),
    ):
        assert made is not None and not torch.equal(made.on_copies()[0][0], p[0])


def test_one_thread_at_a_time_is_inside_a_seeded_block():
    entered = threading.Event()

    def other():
        with random.seeded(2):
            entered.set()

    thread = threading.Thread(target=other)
    with random.seeded(1):
        first = torch.rand(3)
        thread.start()
        assert not entered.wait(0.2), "another thread has seeded the generators meanwhile"
        second = torch.rand(3)
    assert entered.wait(10)
    thread.join()
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(first, torch.rand(3, generator=generator))
    assert torch.equal(second, torch.rand(3, generator=generator))


def test_a_block_inside_a_block_of_the_same_thread_may_be_entered():
    with random.seeded(1):
        with random.seeded(2):
            inner = torch.rand(2)
        outer = torch.rand(2)
    assert torch.equal(inner, torch.rand(2, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(outer, torch.rand(2, generator=torch.Generator().manual_seed(1)))


def test_data_drawn_ahead_waits_for_a_seeded_block():
    drawing = threading.Event()

    def noise(epoch):
        while True:
            drawing.set()
            yield torch.rand(10)

    with random.seeded(1):
        batches = prefetch(noise, depth=4).iterate()
        ahead = threading.Thread(target=next, args=(batches,))
        ahead.start()
        assert not drawing.wait(0.2), "data was drawn while the generators were somebody else's"
    assert drawing.wait(10)
    ahead.join()
    batches.close()


def test_a_step_is_recorded_without_values_and_built():
    from torch._dynamo import lookup_backend
    from torch._functorch import config
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty_strided((3, 2), (1, 3), dtype=torch.float64)
        real = torch.arange(3.0, dtype=torch.float64)  # in the mode, so without values as well
        found = make_fx(
            lambda x: [x.t() * real, torch.ones(2)],
            tracing_mode="real",
            decomposition_table={},
            _allow_non_fake_inputs=True,
        )(x)
    assert (x.shape, x.stride(), type(x).__name__) == ((3, 2), (1, 3), "FakeTensor")
    assert next(iter(found.graph.nodes)).op == "placeholder"
    values = [node.meta["val"].shape for node in found.graph.nodes if "val" in node.meta]
    assert (2, 3) in values
    assert callable(lookup_backend("aot_eager"))
    assert hasattr(config, "enable_autograd_cache")
    inductor = machine_code.inductor()
    parameters = set(inspect.signature(inductor.compile_fx).parameters)
    assert {"inner_compile", "config_patches"} <= parameters
    parameters = set(inspect.signature(inductor.compile_fx_inner).parameters)
    assert {"gm", "example_inputs"} <= parameters


def test_what_inductor_builds_takes_a_list_and_is_called_directly(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # so that it is built, not found
    mode = fakes.fake_mode()
    x = torch.arange(4.0)
    (fake,) = fakes.without_values([x], mode)
    recorded = graph.record(lambda x: [x + 1, x.sum()], [fake], mode)
    run = machine_code.build(
        recorded, [fake], "inductor", machine_code.options(x.device, "default", Counter(), 1.0)
    )
    where: str = getattr(run, "__qualname__", "")
    assert "_wrap_func" in where, "there is a wrapper around the function that calls machine code"
    more, total = run([x])
    assert torch.equal(more, x + 1) and float(total) == 6.0


def test_a_storage_counts_its_users():
    x = torch.zeros(3)
    count = torch._C._storage_Use_Count
    before = count(x.untyped_storage()._cdata)
    view = x[1:]
    assert count(x.untyped_storage()._cdata) == before + 1
    del view
    assert count(x.untyped_storage()._cdata) == before


def test_tensors_count_their_references():
    x = torch.zeros(3)
    before = sys.getrefcount(x)
    held = {"x": x}
    assert sys.getrefcount(x) == before + 1
    assert held["x"] is x


def test_random_operations_are_tagged():
    for operation in (torch.ops.aten.rand_like.default, torch.ops.aten.bernoulli_.float):
        assert torch.Tag.nondeterministic_seeded in operation.tags
    assert torch.Tag.nondeterministic_seeded not in torch.ops.aten.add.Tensor.tags


def test_onednn_can_be_turned_off_and_on():
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    assert torch._C._get_mkldnn_enabled() is False
    torch._C._set_mkldnn_enabled(before)
    assert torch._C._get_mkldnn_enabled() == before


def test_inductor_has_the_options_that_are_asked_of_it():
    from torch._inductor import config

    everything = Counter({torch.ops.aten.native_batch_norm.default: machine_code.LARGE})
    for mode in ("default", "max-autotune"):
        for device in ("cpu", "cuda"):
            for name in machine_code.options(torch.device(device), mode, everything, 0.5):
                assert name in config._config, name


def test_hooks_are_counted():
    layer, weight = nn.Linear(2, 1), torch.ones(2, requires_grad=True)
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_state_dict_pre_hook,
        weight.register_hook,
        weight.register_post_accumulate_grad_hook,
    ):
        before = hooks.hooks_made()
        register(lambda *_: None)
        assert hooks.hooks_made() > before
    assert hooks.has_hooks(weight) and not hooks.has_hooks(torch.ones(2, requires_grad=True))


def test_a_storage_has_an_address_that_views_share():
    x = torch.zeros(2, 3)
    assert read_only.memory_of(x) == read_only.memory_of(x.detach())
    address, start = read_only.memory_of(x[1, 1:])
    assert (address, start) == (read_only.memory_of(x)[0], 4 * x.element_size())
    assert read_only.memory_of(torch.zeros(2, 3))[0] != address


def test_modes_are_seen_and_can_be_left():
    modes = fakes.fake_mode()
    with modes, tracing.without_modes():
        assert not fakes.is_fake(torch.ones(2))
    with modes:
        assert fakes.is_fake(torch.ones(2))
    with members.drawing([1, 2], torch.device("cpu")):
        assert members.draws_by_member()
    with members.drawing([1], torch.device("cpu")):
        assert not members.draws_by_member()


def test_tensors_can_be_made_apart_from_transforms():
    def inside(x):
        with tracing.without_transforms():
            made.append(torch.ones(1))
        made.append(torch.ones(1))
        return x

    made = []
    torch.func.grad(inside)(torch.ones(()))
    assert [tracing.unwrapped(t) is t for t in made] == [True, False]


def test_nodes_of_the_graph_name_their_inputs_and_leaves_their_variable():
    x = torch.ones(2, requires_grad=True)
    doubled = 2 * x
    edges = [edge for edge in doubled.grad_fn.next_functions if edge[0] is not None]
    assert [(node.variable is x, number) for node, number in edges] == [(True, 0)]
