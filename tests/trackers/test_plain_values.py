from __future__ import annotations

import dataclasses
import enum
import functools
import json
from pathlib import Path

import numpy as np
import torch

from fnloop.trackers.plain_values import jsonable, plain


@dataclasses.dataclass
class Options:
    lr: float
    folder: Path


class Kind(enum.IntEnum):
    A = 3


def test_values_become_plain() -> None:
    value = {
        "options": Options(0.1, Path("data")),
        "numpy": np.float32(0.5),
        "double": np.float64(0.5),
        "array": np.zeros((2, 3), np.int16),
        "one": torch.tensor([4]),
        "function": torch.nn.functional.mse_loss,
        "method": json.dumps,
        "kind": Kind.A,
        "class": Options,
        "device": torch.device("cpu"),
        "set": {1},
        "partial": functools.partial(json.dumps, indent=2),
    }
    result = plain(value)
    partial = result.pop("partial")
    assert result == {
        "options": {"lr": 0.1, "folder": "data"},
        "numpy": 0.5,
        "double": 0.5,
        "array": "int16[2, 3]",
        "one": 4,
        "function": "torch.nn.functional.mse_loss",
        "method": "json.dumps",
        "kind": 3,
        "class": f"{__name__}.Options",
        "device": "cpu",
        "set": [1],
    }
    assert type(result["double"]) is float
    assert type(result["kind"]) is int
    assert "0x" not in partial


def test_jsonable_is_strict_json_that_float_reads_back() -> None:
    values = {"a": [float("nan"), float("inf")], "b": -float("inf"), "c": 1e-300}
    text = json.dumps(jsonable(values), allow_nan=False)
    back = json.loads(text)
    assert [str(float(v)) for v in back["a"]] == ["nan", "inf"]
    assert float(back["b"]) == values["b"]
    assert back["c"] == 1e-300
