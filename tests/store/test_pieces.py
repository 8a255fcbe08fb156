"""Format 2: tensors in pieces, each rank's in a file of its own."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

import fnloop as fl
from fnloop.cli.app import main
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.folders import latest
from fnloop.trees.equal import tree_equal
from fnloop.values.start import start

from . import by_hand
from .crashing import Crashing, Objects
from .test_corruption import noticed, patched
from .test_format import arrays_of, odd_state
from .threaded import Threads, ranks, without_notes

LIKE = start(torch.nn.Linear(3, 2), seed=0)


def state_at(count, scale=1.0):
    cursor = torch.tensor([0, count, count])
    return LIKE.replace(params=LIKE.params.scale(scale), cursor=cursor)


@pytest.fixture(autouse=True)
def _without_notes(monkeypatch):
    without_notes(monkeypatch)


PLANS = {
    "pieces": (Threads(2), "zero2"),
    "rows": (Threads(1, tensor=2), {"*weight": 0}),
    "columns": (Threads(1, tensor=3), {"*weight": 1}),
    "twice": (Threads(2, tensor=2), {"*weight": 0}),
    "pieces of slices": (Threads(2, tensor=3), ("zero2", {"*weight": 1})),
}
"""Ranks, which are threads, and how a state is divided among them."""


def save(plan, state, folder, **settings):
    """Save the state as ranks have it; what came of it on each."""
    mesh, own = PLANS[plan]
    return ranks(mesh, lambda rank: fl.save(fl.place(state, mesh, own), folder, **settings))


# The page


def last_dims(arrays, ranks):
    """For each parameter and slot the last dimension that so many ranks divide evenly, if any."""
    found = {}
    for path, array in arrays.items():
        if path.startswith(("params/", "slots/")):
            even = [dim for dim, size in enumerate(array.shape) if size and not size % ranks]
            found.update({path: even[-1]} if even else {})
    return found


@pytest.mark.lightning("K9", "K10")
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("tensor", [1, 2, 3])
def test_fnloop_reads_what_a_writer_that_knows_only_the_page_has_written(tmp_path, count, tensor):
    state = odd_state()
    like, arrays = fl.tree_map(torch.zeros_like, state), arrays_of(state)
    dims = last_dims(arrays, tensor) if tensor > 1 else {}
    path = by_hand.write_pieces(tmp_path, arrays, count, tensor, dims)
    assert fl.load(path, like=like) == fl.load(tmp_path, like=like) == state
    assert latest(tmp_path) == path
    assert fl.store.read_manifest(path)["mesh"]["data"] == count


@pytest.mark.parametrize("plan", PLANS)
def test_a_reader_that_knows_only_the_page_reads_what_ranks_have_saved(tmp_path, plan):
    state = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.adamw(0.1))).init(
        torch.nn.Linear(6, 4), seed=3
    )
    mesh, own = PLANS[plan]
    path = tmp_path / "step-00000000"
    assert save(plan, state, tmp_path) == [path] * mesh.everyone.data
    arrays = arrays_of(state)
    assert by_hand.read_pieces(path) == arrays
    rules = own[1] if isinstance(own, tuple) else own
    cut = [path for path in arrays if path.endswith("weight") and rules != "zero2"]
    dims = {path: rules["*weight"] for path in cut}
    # Under a plan that does not divide slices, all groups of ranks have the same.
    data = mesh.data if "zero2" in own else 1
    expected = by_hand.write_pieces(tmp_path / "hand", arrays, data, mesh.tensor, dims)
    files = sorted(file.name for file in path.glob("*.safetensors"))
    assert files == sorted(file.name for file in expected.glob("*.safetensors"))
    for name in files:
        assert (path / name).read_bytes() == (expected / name).read_bytes()
    manifest = fl.store.read_manifest(path)
    assert manifest["leaves"] == fl.store.read_manifest(expected)["leaves"]
    axes = {"data": mesh.data, "tensor": mesh.tensor}
    assert manifest["mesh"] == (axes if mesh.tensor > 1 else {"data": 2})


def test_other_readers_see_a_slice_with_its_shape(tmp_path):
    save("columns", LIKE, tmp_path)
    read = safetensors.torch.load_file(tmp_path / "step-00000000" / "state-00001.safetensors")
    assert read["params/weight"].equal(LIKE.params["weight"][:, 1:2]) and len(read) == 1


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("other", PLANS)
def test_ranks_load_what_others_have_saved_under_another_plan(tmp_path, plan, other):
    state = state_at(1, 2.0)
    save(plan, state, tmp_path)
    mesh, own = PLANS[other]

    def load(rank):
        loaded = fl.load(tmp_path, like=fl.place(LIKE, mesh, own))
        return fl.tree_equal(loaded, fl.place(state, mesh, own)) or loaded

    assert ranks(mesh, load) == [True] * mesh.everyone.data


@pytest.mark.parametrize(
    ("ranks", "tensor", "told"),
    [(2, 1, "among 2 ranks in 2"), (2, 3, "among 6 ranks (data=2, tensor=3) in 6")],
)
def test_the_command_line_shows_and_compares_pieces(tmp_path, capsys, ranks, tensor, told):
    state = state_at(2, 2.0)
    whole, arrays = fl.save(state, tmp_path / "whole"), arrays_of(state)
    dims = {"params/weight": 1} if tensor > 1 else {}
    pieces = by_hand.write_pieces(tmp_path / "pieces", arrays, ranks, tensor, dims)
    assert main(["show", str(pieces)]) == 0
    out = capsys.readouterr().out
    assert f"divided {told} files" in out and "f32[2,3]" in out
    assert main(["show", str(tmp_path / "pieces")]) == 0
    assert "step-00000002" in capsys.readouterr().out
    assert main(["diff", str(pieces), str(whole)]) == 0
    assert "the same, to the bit" in capsys.readouterr().out
    other = by_hand.write_pieces(tmp_path / "other", arrays_of(state_at(2, 4.0)), 3)
    assert main(["diff", str(pieces), str(other)]) == 0
    assert "the parameters by 1 of their norm" in capsys.readouterr().out


# Damage


@pytest.mark.parametrize(("tensor", "dims"), [(1, {}), (3, {"params/weight": 1})])
def test_every_flipped_bit_is_noticed(tmp_path, tensor, dims):
    state = state_at(1)
    path = by_hand.write_pieces(tmp_path, arrays_of(state), 2, tensor, dims)
    like, flips = state_at(0, 3.0), 0
    for file in sorted(path.iterdir()):
        raw = file.read_bytes()
        for at in range(0, len(raw), 3 if file.suffix == ".json" else 1):
            bit = 1 << at % 8
            with patched(file, at, bytes([raw[at] ^ bit])):
                assert noticed(path, like), (file, at)
            flips += 1
    assert flips > 1000 and not noticed(path, like)


@pytest.mark.parametrize("name", ["state-00000.safetensors", "state-00001.safetensors"])
def test_a_file_of_pieces_that_is_gone_cut_short_or_anothers_is_noticed(tmp_path, name):
    like = state_at(0, 3.0)
    by_hand.write_pieces(tmp_path, arrays_of(state_at(1)), 2)
    path = by_hand.write_pieces(tmp_path, arrays_of(state_at(2, 2.0)), 2)
    raw = (path / name).read_bytes()
    for other in (raw[:-1], b"", raw + b"x", (tmp_path / "step-00000001" / name).read_bytes()):
        (path / name).write_bytes(other)
        assert noticed(path, like)
        if len(other) != len(raw):
            with pytest.warns(UserWarning, match="passed over"):
                assert latest(tmp_path).name == "step-00000001"
    (path / name).unlink()
    assert noticed(path, like)
    with pytest.warns(UserWarning, match="passed over"):
        assert latest(tmp_path).name == "step-00000001"
    with pytest.warns(UserWarning, match="was skipped"):
        assert fl.load(tmp_path, like=like) == state_at(1)


HOSTILE = {
    "a file outside": lambda m: piece(m).update(file="../state-00001.safetensors"),
    "a file that is not listed": lambda m: m["files"].popitem(),
    "a file too many": lambda m: m["files"].update({"state-00009.safetensors": 8}),
    "another size": lambda m: m["files"].update({"state-00000.safetensors": 8}),
    "no files": lambda m: m.update(files={}),
    "files in a list": lambda m: m.update(files=[*m["files"]]),
    "no mesh": lambda m: m.pop("mesh"),
    "a mesh of text": lambda m: m.update(mesh={"data": "2"}),
    "a gap": lambda m: piece(m).update(start=5),
    "an overlap": lambda m: piece(m).update(start=2, count=4),
    "more than there is": lambda m: piece(m).update(count=2**55),
    "a piece of nothing": lambda m: piece(m).update(count=0),
    "one piece twice": lambda m: m["leaves"]["params/weight"]["pieces"].append(dict(piece(m))),
    "no pieces": lambda m: m["leaves"]["params/weight"].update(pieces=[]),
    "pieces by name": lambda m: m["leaves"]["params/weight"].update(pieces={}),
    "a shape of more": lambda m: m["leaves"]["params/weight"].update(shape=[2, 4]),
    "another dtype": lambda m: m["leaves"]["params/weight"].update(dtype="int64"),
    "the other pieces' digest": lambda m: piece(m).update(sha256=piece(m, 0)["sha256"]),
    "an entry of format 1": lambda m: m["leaves"]["params/weight"].update(sha256="0" * 64),
    "format 1": lambda m: m.update(format=1),
    "format 3": lambda m: m.update(format=3),
    "a slice of one that has none": lambda m: piece(m).update(slice=[0, 1, 2]),
}
SLICES = {
    "no slice": lambda m: piece(m).pop("slice"),
    "another slice": lambda m: piece(m).update(slice=[1, 0, 1]),
    "another dimension": lambda m: piece(m).update(slice=[0, 1, 2]),
    "a dimension that it has not": lambda m: piece(m).update(slice=[2, 1, 2]),
    "a dimension from the end": lambda m: piece(m).update(slice=[-1, 1, 2]),
    "a slice of nothing": lambda m: piece(m).update(slice=[1, 1, 1]),
    "a slice of all": lambda m: piece(m).update(slice=[1, 0, 3]),
    "a slice of more": lambda m: piece(m).update(slice=[1, 1, 4]),
    "a slice of two numbers": lambda m: piece(m).update(slice=[1, 1]),
    "a slice by name": lambda m: piece(m).update(slice={"1": [1, 2]}),
    "too few of a slice": lambda m: piece(m).update(count=1),
    "too many of a slice": lambda m: piece(m).update(count=3),
    "a slice that is gone": lambda m: m["leaves"]["params/weight"]["pieces"].pop(),
    "slices in another order": lambda m: m["leaves"]["params/weight"]["pieces"].reverse(),
    "the other slice's digest": lambda m: piece(m).update(sha256=piece(m, 0)["sha256"]),
}


def piece(manifest, place=1):
    return manifest["leaves"]["params/weight"]["pieces"][place]


@pytest.mark.parametrize("what", [*HOSTILE, *SLICES])
def test_a_manifest_that_lies_about_its_pieces_is_refused(tmp_path, what):
    cut = (1, 3, {"params/weight": 1}) if what in SLICES else (2,)
    path = by_hand.write_pieces(tmp_path, arrays_of(state_at(1)), *cut)
    raw = (path / "manifest.json").read_bytes()
    manifest = json.loads(b"{" + raw[79:])
    {**HOSTILE, **SLICES}[what](manifest)
    (path / "manifest.json").write_bytes(by_hand.manifest_bytes(manifest))
    with pytest.raises(CheckpointError, match=r"manifest|checkpoint") as caught:
        fl.load(path, like=state_at(0, 3.0))
    assert str(path) in str(caught.value)


# The power


class Watch:
    """After each call, what may be on the disk: a checkpoint that was promised is there."""

    def __init__(self, folder, states, most):
        self.folder, self.states, self.most = folder, states, most
        self.promised, self.seen, self.images = 0, set(), 0
        self.chance, self.lock = random.Random(0), threading.Lock()

    def __call__(self, disk):
        with self.lock:
            for image in disk.crashes(self.most, self.chance):
                self.images += 1
                self.seen.add(self.found(type(disk)(image)))

    def found(self, disk):
        state = fl.load(self.folder, like=LIKE, files=disk) if self.promised else None
        if state is None:
            return None
        which = next(i for i, each in enumerate(self.states, 1) if tree_equal(each, state))
        assert which >= self.promised, (which, self.promised)
        return which


@pytest.mark.parametrize("plan", ["pieces", "columns"])
@pytest.mark.parametrize("kind", [Crashing, Objects])
@pytest.mark.parametrize("again", [False, True])
def test_whenever_the_power_fails_what_was_promised_is_found(plan, kind, again):
    """Of a new checkpoint, and of one in the place of another, from several ranks."""
    states = [state_at(1), state_at(1 if again else 2, 2.0)]
    folder = Path("/runs")
    watch = Watch(folder, states, 12)
    disk = kind(watch=watch, chunk=300)
    for state in states:
        assert not any(
            isinstance(end, BaseException) for end in save(plan, state, folder, files=disk)
        )
        watch.promised += 1
        watch(disk)
    assert watch.seen >= {1, 2} and watch.images > (100 if disk.renames else 10)


@pytest.mark.parametrize("lies", ["file", "folder"])
def test_a_disk_that_does_not_synchronise_is_caught(lies):
    """So the test above can fail."""
    folder, disk = Path("/runs"), Crashing(chunk=300, lies=lies)
    save("pieces", state_at(1), folder, files=disk)
    lost = 0
    for image in disk.crashes(12, random.Random(0)):
        try:
            assert fl.load(folder, like=LIKE, files=Crashing(image)) == state_at(1)
        except CheckpointError:
            lost += 1
    assert lost > 3
