"""Layouts: from names to storages and back."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fnloop as fl
from fnloop.transforms.plan import packed
from fnloop.trees.paths import tree_paths
from fnloop.values.layouts import Group, Packed, Separate, picking
from fnloop.values.start import start
from fnloop.values.tensors import Tensors

NAMES = ("x", "b", "d", "a", "c")
AB = Group(("a", "b"), (2, 1), 1)
CD = Group(("c", "d"), (None, 2), 0)
X = Group(("x",), (None,), 0)


def tensors():
    return {
        "x": torch.tensor([9.0]),
        "b": torch.tensor([[5.0, 6.0]]),
        "d": torch.tensor([0.5, 0.25]),
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "c": torch.tensor(8.0),
    }


LAYOUT = Packed([AB, CD, X], NAMES)


def test_a_group_joins_in_its_own_order_and_splits_again():
    storage = AB.join([tensors()[name] for name in "ab"])
    assert storage.tolist() == [[1, 2], [3, 4], [5, 6]]
    a, b = AB.split(storage)
    assert torch.equal(a, tensors()["a"]) and torch.equal(b, tensors()["b"])
    storage[0, 0] = 10.0
    assert a[0, 0] == 10.0  # views
    storage = CD.join([tensors()[name] for name in "cd"])
    assert storage.tolist() == [8, 0.5, 0.25]
    assert [part.shape for part in CD.split(storage)] == [(), (2,)]


def test_a_group_of_one_is_the_tensor_itself():
    x = tensors()["x"]
    assert X.join([x]) is x and X.split(x)[0] is x


def test_joined_in_groups_and_seen_by_name():
    storages = LAYOUT.join(tensors())
    assert [s.tolist() for s in storages] == [[[1, 2], [3, 4], [5, 6]], [8, 0.5, 0.25], [9]]
    views = dict(zip(NAMES, LAYOUT.views(storages), strict=True))
    assert all(torch.equal(views[name], t) for name, t in tensors().items())
    assert views["a"].untyped_storage().data_ptr() == storages[0].untyped_storage().data_ptr()


def test_a_leading_dimension_of_members_changes_nothing():
    storages = tuple([torch.stack([s, 2 * s]) for s in LAYOUT.join(tensors())])
    views = dict(zip(NAMES, LAYOUT.views(storages), strict=True))
    for name, t in tensors().items():
        assert torch.equal(views[name], torch.stack([t, 2 * t]))


def test_layouts_that_say_the_same_are_the_same():
    assert Separate(["a", "b"]) is Separate(("a", "b")) is not Separate(("b", "a"))
    assert Separate(("a", "b")) is not Separate(("a", "b"), ["a"])
    assert Packed((AB, CD, X), list(NAMES)) is LAYOUT
    assert Packed((CD, AB, X), NAMES) is not LAYOUT
    assert Packed((AB, CD, X), NAMES, ["x"]) is not LAYOUT
    for layout in (LAYOUT, Separate(NAMES, ["x"])):
        for twin in (pickle.loads(pickle.dumps(layout)), copy.deepcopy(layout), copy.copy(layout)):
            assert twin is layout and hash(twin) == hash(layout)


def test_layouts_that_nobody_uses_are_forgotten():
    from fnloop.values import layouts

    key = (("only", "here"), frozenset())
    kept = Separate(key[0])
    assert layouts._SEPARATE[key] is kept
    del kept
    gc.collect()
    assert key not in layouts._SEPARATE


def test_complex_tensors_are_stored_as_pairs():
    z = torch.tensor([1 + 2j, 3 - 4j])
    a = Tensors({"z": z, "r": torch.ones(2), "y": z.conj()})
    assert a.layout.pairs == {"z", "y"} and a.dtypes == {torch.float32}
    assert [s.shape for s in a.peek_storages()] == [(2, 2), (2,), (2, 2)]
    assert torch.equal(a["z"], z) and torch.equal(a["y"], z.conj().resolve_conj())
    assert a["z"].is_complex() and not a["r"].is_complex()
    assert a.peek_storages()[0].data_ptr() == z.data_ptr(), "no copy"
    joined = Packed([Group(("z", "y"), (2, 2), 1), Group(("r",), (None,), 0)], "zry", "zy")
    other = Tensors.of(joined, joined.join(dict(a)))
    assert other == a and other.peek_storages()[0].shape == (4, 2)


def test_select_keeps_whole_storages_or_says_that_it_cannot():
    layout, pick = LAYOUT.select(("c", "x", "d"))
    assert layout is Packed([CD, X], ("c", "x", "d"))
    storages = LAYOUT.join(tensors())
    assert pick(storages) == (storages[1], storages[2])
    assert LAYOUT.select(("a", "x")) is None  # half of a group
    assert LAYOUT.select(("c", "x", "d")) is LAYOUT.select(("c", "x", "d")), "found once"
    layout, pick = Separate(NAMES, ["x", "a"]).select(("a", "b"))
    assert layout is Separate(("a", "b"), ["a"]) and pick(NAMES) == ("a", "b")


def test_picking():
    assert picking([2, 0])("abc") == ("c", "a")
    assert picking([1])("abc") == ("b",) and picking([])("abc") == ()


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ["autograd", "func"])
def test_the_backward_of_all_views_of_a_group_is_one_concatenation(engine):
    a = Tensors.of(LAYOUT, LAYOUT.join(tensors()))

    def loss(t):
        return sum((x * x).sum() for x in t.values())

    with Operations() as operations:
        if engine == "func":
            slopes = torch.func.grad(loss)(a)
        else:
            a = fl.tree_map(lambda s: s.requires_grad_(), a)
            found = torch.autograd.grad(loss(a), a.peek_storages())
            slopes = Tensors.of(LAYOUT, found)
    assert slopes == a.detach().scale(2.0)
    assert operations.names.count("cat") == 2  # one for each group of several
    assert not {"slice_backward", "select_backward", "index_put"} & set(operations.names)


def test_a_packed_state_is_the_same_to_people():
    def net():
        return torch.nn.Sequential(
            *[torch.nn.Linear(3, 3) for _ in range(3)], torch.nn.BatchNorm1d(3)
        )

    step = fl.pipe(
        lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)
    )
    state = step.init(net, seed=1)
    state, _ = step(state, torch.randn(4, 3))
    twin = packed(state)
    assert twin.params.layout is not state.params.layout
    assert len(twin.params.peek_storages()) < len(state.params)
    assert fl.tree_equal(state, twin) and state == twin and fl.tree_diff(state, twin) == ""
    assert tree_paths(state) == tree_paths(twin)
    assert fl.tree_show(state) == fl.tree_show(twin)
    new = fl.tree_at(lambda s: s.params["1.bias"], twin, torch.zeros(3))
    assert new.params.layout is twin.params.layout and new.params["1.bias"].tolist() == [0, 0, 0]
    assert new != state and len(fl.tree_diff(new, state).splitlines()) == 2
    assert "params/1.bias" in fl.tree_diff(new, state)
    moment = fl.tree_at(
        lambda s: s.slots["update"]["adamw"]["mu"]["0.weight"], twin, torch.ones(3, 3)
    )
    assert moment["update"]["adamw"]["mu"]["0.weight"].sum() == 9
    assert pickle.loads(pickle.dumps(twin)) == state and copy.deepcopy(twin) == state
    module = fl.to_module(twin)
    assert all(torch.equal(p, state.params[name]) for name, p in module.named_parameters())
    fl.testing.check_layouts(step, state, torch.randn(4, 3))


def test_names_that_are_not_reached_are_left_out_of_gradients_in_every_layout():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    stage = fl.grad(lambda model, x: model.used(x).square().mean())
    state = start(Two())
    for each in (state, packed(state)):
        _, grads = stage(each, torch.ones(3, 2))
        assert grads.mean.names == ("used.weight", "used.bias")
        updated = each.params.updated(grads.mean)
        assert updated.layout is each.params.layout
        assert torch.equal(updated["idle.weight"], state.params["idle.weight"])
        assert torch.equal(updated["used.bias"], grads.mean["used.bias"])
