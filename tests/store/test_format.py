"""The format is what docs/internals/checkpoint-format.md says: others can write and read it."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

import fnloop as fl
from fnloop.trees.equal import tree_equal
from fnloop.trees.paths import tree_items

from . import by_hand
from .by_hand import Array

ODD = {
    "nested": {"inf": math.inf, "-inf": -math.inf, "list": [1, -0.0, None, True, "\ud800", "ü\n"]},
    "large": [2**63 - 1, -(2**63), 2**63, -(2**64), 10**300],
    "dollars": [{"$float": 1}, {"$int": "x"}, {"$": {}}, {"$$float": [{"$x": 1}]}],
    "more dollars": {"$float": 1, "$int": 2},
    "empty": [{}, [], ""],
}


def odd_state():
    """All dtypes, and shapes and names that a naive writer would get wrong."""
    step = fl.pipe(
        lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)
    )
    state = step.init(
        torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)), seed=2**40
    )
    dtypes = {name: getattr(torch, name) for name in by_hand.DTYPES}
    bits = torch.arange(48, dtype=torch.uint8)
    odd = {name: bits.view(dtype) for name, dtype in dtypes.items() if name != "bool"}
    return state.replace(
        cursor=torch.tensor([1, 2, 2**31]),
        slots={
            **state.slots,
            "a/b~c é😀": {**odd, "bool": bits > 5, "nan": torch.tensor(math.nan)},
            "shapes": ([torch.empty(0, 3), torch.zeros(2, 3, 4).transpose(0, 2)], torch.tensor(7)),
            "none": {},
        },
    )


def array_of(tensor):
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    data = dense.reshape(-1).view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    return Array(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data)


def arrays_of(state):
    return {path: array_of(leaf) for path, leaf in tree_items(state.replace(context={}))}


def test_a_reader_that_knows_only_the_page_reads_what_is_saved(tmp_path):
    state = odd_state()
    path = fl.save(state, tmp_path, config=ODD, memos={"odd": ODD}, metrics={"loss": math.nan})
    manifest, arrays = by_hand.read(path)
    assert arrays == arrays_of(state)
    assert manifest["config"] == manifest["memos"]["odd"] == ODD
    assert math.isnan(manifest["metrics"]["loss"])
    assert manifest["cursor"] == {"epoch": 1, "index": 2, "count": 2**31}
    assert path.name == "step-2147483648" and manifest["key"] == state.key.item()
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "state.safetensors"]


def test_the_file_of_tensors_is_the_one_that_the_page_describes_byte_by_byte(tmp_path):
    state = odd_state()
    written = (fl.save(state, tmp_path) / "state.safetensors").read_bytes()
    assert written == by_hand.tensors_bytes(arrays_of(state))


def test_other_libraries_read_the_tensors(tmp_path):
    """All but complex128, of which they see the bytes."""
    state = odd_state()
    read = safetensors.torch.load_file(fl.save(state, tmp_path) / "state.safetensors")
    assert read.keys() == arrays_of(state).keys()
    for path, leaf in tree_items(state):
        if leaf.dtype != torch.complex128:
            assert tree_equal(read[path], leaf), path


@pytest.mark.lightning("K10")
def test_fnloop_reads_what_a_writer_that_knows_only_the_page_has_written(tmp_path):
    state = odd_state()
    like = fl.tree_map(torch.zeros_like, state)
    path = by_hand.write(tmp_path, arrays_of(state), memos={"a": [1]})
    assert fl.load(path, like=like) == state
    assert fl.load(tmp_path, like=like) == state
    assert fl.latest(tmp_path) == path and fl.store.read_manifest(path)["memos"] == {"a": [1]}


def test_numpy_alone_can_make_a_checkpoint(tmp_path):
    """Parameters from elsewhere, in a state that training goes on from."""
    weight = np.array([[1.5, -2.0]], dtype="<f4")
    step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.0)))
    arrays = {
        "step": Array("int64", (), struct.pack("<q", 7)),
        "calls": Array("int64", (), struct.pack("<q", 8)),
        "cursor": Array("int64", (3,), struct.pack("<3q", 0, 9, 9)),
        "key": Array("int64", (), struct.pack("<q", 5)),
        "params/weight": Array("float32", (1, 2), weight.tobytes()),
    }
    like = step.init(torch.nn.Linear(2, 1, bias=False))
    state = fl.load(by_hand.write(tmp_path, arrays), like=like)
    assert (state.step.item(), state.calls.item()) == (7, 8)
    assert state.params["weight"].tolist() == weight.tolist()
    state, _ = step(state, torch.ones(1, 2))
    assert (state.step.item(), state.calls.item()) == (8, 9)


def test_entries_that_a_reader_does_not_know_are_left_alone(tmp_path):
    from fnloop.store.files import Disk
    from fnloop.store.manifest import amend

    path = by_hand.write(tmp_path, arrays_of(odd_state()), **{"later": [1, {"$int": str(2**70)}]})
    amend(path, Disk(), status="completed")
    manifest, _ = by_hand.read(path)
    assert manifest["later"] == [1, 2**70] and manifest["status"] == "completed"


@pytest.mark.parametrize("value", [[[]] * 3, ODD])
def test_memos_come_back_as_they_were(tmp_path, value):
    path = fl.save(odd_state(), tmp_path, memos={"x": value})
    assert fl.store.read_manifest(path)["memos"] == {"x": value}


def test_what_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path):
    deep = {}
    for _ in range(70):
        deep = {"a": deep}
    for config, fault in (({"x": deep}, "nested"), ({"x": 2**3000}, "bits")):
        with pytest.raises(ValueError, match=fault):
            fl.save(odd_state(), tmp_path, config=config)
    assert fl.latest(tmp_path) is None
