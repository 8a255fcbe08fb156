"""Files that are no weights, or worse."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import textwrap
from pathlib import Path, PurePosixPath

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.external_weights import read_weights


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.lightning("K5", "D8")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside", "inside"])
def test_code_in_a_file_is_refused_and_not_run(zipped, place, tmp_path):
    marker, weights = tmp_path / "marker", nn.Linear(2, 1).state_dict()
    evil = Evil(marker)
    held = {
        "alone": evil,
        "beside": {"state_dict": weights, "hyper_parameters": evil},
        "inside": {**weights, "bias": evil},
    }[place]
    torch.save(held, tmp_path / "w.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="was refused") as caught:
        read_weights(tmp_path / "w.ckpt")
    assert "mkdir" in str(caught.value)
    assert not marker.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "w.pt")
    assert not marker.exists()


def test_a_class_that_is_refused_is_named(tmp_path):
    held = {"state_dict": {"w": torch.ones(1)}, "hyper_parameters": argparse.Namespace(lr=0.1)}
    torch.save(held, tmp_path / "w.ckpt")
    with pytest.raises(CheckpointError, match=r"argparse\.Namespace, which is code"):
        read_weights(tmp_path / "w.ckpt")


MODEL = nn.Linear(2, 1)
CODE = argparse.Namespace(lr=0.1)
REFUSED = {
    "a module": MODEL,
    "under state_dict": {"state_dict": MODEL.state_dict(), "hyper_parameters": CODE},
    "under model": {"model": MODEL.state_dict(), "args": CODE, "epoch": 3},
    "a module under model": {"epoch": 3, "model": MODEL, "ema": None},
    "beside an odd entry": {**MODEL.state_dict(), "path": PurePosixPath("x"), "model": None},
}


@pytest.mark.parametrize("name", ["w.pt", "it's.ckpt", "weights.pt"])
@pytest.mark.parametrize("held", REFUSED)
def test_the_lines_that_a_refusal_gives_write_a_file_that_is_read(
    held, name, tmp_path, monkeypatch
):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path("runs") / name
    torch.save(REFUSED[held], path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="was refused") as caught:
        read_weights(path)
    monkeypatch.chdir(tmp_path / "runs")  # where else they may be pasted
    *_, lines = str(caught.value).partition("\n")
    exec(textwrap.dedent(lines), {})
    (new,) = [file for file in Path.cwd().iterdir() if file.name != name]
    found = read_weights(new)
    assert found.keys() == MODEL.state_dict().keys()
    assert all(torch.equal(found[n], tensor) for n, tensor in MODEL.state_dict().items())
    assert Path(name).read_bytes() == before


def test_a_whole_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 1), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({"epoch": 3}, "holds no weights.*epoch"),
        ({}, "It has: nothing"),
        ({"state_dict": {}}, "holds no weights"),
    ],
)
def test_a_file_without_weights_says_what_it_has(held, message, tmp_path):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_damage_is_an_error_that_names_the_file(name, tmp_path):
    path = tmp_path / name
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: No such file"):
        read_weights(path)
    weights = {"weight": torch.randn(40, 30)}
    (save_file if name == "w.safetensors" else torch.save)(weights, path)
    whole = path.read_bytes()
    for data in (b"", b"\x00", b"hello world, this is text", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_weights(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(path)


def test_every_dtype_and_shape_of_safetensors_is_read_as_it_was(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
    dtypes += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    weights = {str(d): (torch.randn(3, 2) * 5).to(d) for d in dtypes}
    weights |= {"scalar": torch.tensor(3.0), "empty": torch.ones(0, 4)}
    save_file(weights, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found = read_weights(tmp_path / "w.safetensors")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


HOSTILE = {
    "outside": {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
    "negative": {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}},
    "begins early": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "wrong size": {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
    "huge": {"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
    "a float": {"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
    "true": {"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
    "no dtype": {"w": {"shape": [1], "data_offsets": [0, 4]}},
    "other dtype": {"w": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    "unhashable": {"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
    "no entry": {"w": 3},
    "a list": [],
    "nothing": {},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused(kind, tmp_path):
    text = json.dumps(HOSTILE[kind]).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x00" * 8)
    with pytest.raises(CheckpointError):
        read_weights(path)


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**63])
def test_a_header_that_lies_about_its_length_is_refused(length, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + b"\x00" * 8)
    with pytest.raises(CheckpointError):
        read_weights(path)


def test_a_header_that_is_nested_deeply_is_refused(tmp_path):
    text = b"[" * 100_000
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError):
        read_weights(path)
