"""safetensors files of other programs: the format's rules, against the library, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.external_weights import read_weights


def written(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_dtype_of_the_library_comes_back(tmp_path: Path) -> None:
    made = {
        str(dtype): torch.arange(6).reshape(2, 3).to(dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.complex64)
    }
    made["bool"] = torch.tensor([True, False])
    made["none"] = torch.empty(0, 3)
    save_file(made, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = read_weights(tmp_path / "x.safetensors")
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, "overlap"),
        ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, "overlap"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 16, [2])}, "leave a hole, at 'b'"),
        ({"a": entry(4, 16, [3])}, "leave a hole, at 'a'"),
        ({"a": entry(0, 8, [2])}, "leave a hole, at the end"),
        ({"a": entry(0, 32, [8])}, "not in the file"),
        ({"a": entry(0, 16, [2**60])}, "has a size or an offset that is none"),
        ({"a": entry(0, 0, [2**55, 2**55, 0])}, "a shape that no tensor has"),
        ({"a": entry(0, 16, [1] * 65)}, "a shape that no tensor has"),
        ({"a": entry(0, 16, [3])}, "does not fit its bytes"),
        ({"a": entry(0, 16, [4], "F33")}, "'F33', which is unknown"),
        ({"a\x1b[2J": entry(0, 16, [True])}, r"'a\\x1b\[2J' has a size"),
        ({"a": []}, "no valid header"),
        (b'{"a": 1, "a": 1}', "'a' is there twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [4]}}', "'dtype' is there twice"),
        (b"[" * 100_000, "no valid header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_breaks_the_rules_is_refused(tmp_path: Path, header: Any, why: str) -> None:
    path = written(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=why) as caught:
        read_weights(path)
    assert "\x1b" not in str(caught.value)


def test_a_bool_of_another_byte_is_true(tmp_path: Path) -> None:
    header = {"a": entry(0, 3, [3], "BOOL")}
    path = written(tmp_path / "x.safetensors", header, b"\x00\x01\x07")
    assert read_weights(path)["a"].tolist() == [False, True, True]
