from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import random
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fnloop.trees.json_codec import as_json, decode, encode, from_text, jsonable, plain, to_text

# For people and trackers


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


def test_sets_are_in_the_same_order_in_every_process() -> None:
    assert plain({"b", "a", 1}) == ["a", "b", 1]


# To the bit


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**130,
        -0.1,
        "tëxt",
        b"\0\xff",
        bytearray(b"x"),
        [1, [2, (3, ())]],
        {"a": {"b": []}, "": 1},
        {},
        {1: "a", None: "b", (1, 2): "c", "1": "d"},
        {"$tensor": 5},
        {"$x": 1, "y": 2},
        {1, 2},
        frozenset({"a"}),
        OrderedDict(b=1, a=2),
        math.inf,
        random.getstate(),
        np.random.PCG64(3).state,
    ],
)
def test_comes_back_as_it_was(value: Any) -> None:
    back = there_and_back(value)
    assert back == value and type(back) is type(value) and repr(back) == repr(value)


def test_not_a_number() -> None:
    assert math.isnan(there_and_back([math.nan])[0])
    assert there_and_back(-math.inf) == -math.inf


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 2),
        torch.tensor(5),
        torch.empty(0, 4),
        torch.tensor([True, False]),
        torch.tensor([1.5, math.nan], dtype=torch.bfloat16),
        torch.arange(6).view(2, 3).t(),
        torch.tensor([1 + 2j]).conj(),
        torch.Generator().manual_seed(3).get_state(),
    ],
)
def test_tensors_to_the_bit(tensor: torch.Tensor) -> None:
    back = there_and_back({"t": tensor})["t"]
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert back.tolist() == tensor.tolist() or torch.equal(back.isnan(), tensor.isnan())
    back.zero_()  # memory of its own, that can be written to


@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.array(3, ">i2"), np.zeros(0)])
def test_arrays_to_the_bit(array: Any) -> None:
    back = there_and_back(array)
    assert back.dtype == array.dtype and back.shape == array.shape and (back == array).all()
    back[...] = 0


def test_numpy_numbers() -> None:
    back = there_and_back([np.float32(0.1), np.int64(3), np.bool_(True)])
    assert back == [np.float32(0.1), 3, True]
    assert [type(b) for b in back] == [np.float32, np.int64, np.bool_]


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": [0, Odd()]}, r"state\['a'\]\[1\] is a .*Odd"),
        ({Odd: 1}, "the key .* of state is a builtins.type"),
        (Counter("a"), "state is a collections.Counter"),
        ((torch.Generator(),), r"state\[0\] is a torch.*Generator"),
        (torch.zeros(2, device="meta"), "state is a tensor of torch.float32 on meta"),
        (torch.zeros(2).to_sparse(), "sparse"),
        (torch.nn.Parameter(torch.zeros(1)), "state is a torch.nn.parameter.Parameter"),
        (np.array(["a"]), "state is a numpy.ndarray"),
    ],
)
def test_what_is_not_kept_is_named(value: Any, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        encode(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"$pickle": "x"}, r"state has the tag '\$pickle'; known are"),
        ([{"$tuple": 3}], r"state\[0\] is not a valid tuple"),
        ({"a": {"$bytes": "no base64!"}}, r"state\['a'\] is not a valid bytes"),
        ({"$bytes": 3}, "state is not a valid bytes"),
        ({"$float": "1e3"}, "is not a valid float"),
        ({"$float": []}, "is not a valid float"),
        ({"$dict": [[1]]}, "state is not a valid dict"),
        ({"$dict": [[[], 1]]}, "is not a valid dict"),
        ({"$set": [[]]}, "is not a valid set"),
        ({"$tensor": {"dtype": "float32", "shape": [2], "data": "AAAA"}}, "has 3 bytes; .* need 8"),
        ({"$tensor": {"dtype": "save", "shape": [], "data": ""}}, "is not a valid tensor"),
        ({"$tensor": {"dtype": "int8", "shape": [-1], "data": ""}}, "is not a valid tensor"),
        ({"$tensor": {"dtype": "int8", "shape": [10**30], "data": "AA=="}}, "has 1 bytes"),
        ({"$tensor": {"dtype": "int8", "shape": [0, 10**30], "data": ""}}, "is not a valid tensor"),
        (
            {"$tensor": {"dtype": "int8", "shape": [0, 2**40, 2**40], "data": ""}},
            "is not a valid tensor",
        ),
        ({"$tensor": {}}, "is not a valid tensor"),
        ({"$tensor": None}, "is not a valid tensor"),
        ({"$array": {"dtype": "|O8", "shape": [1], "data": "AAAAAAAAAAA="}}, r"dtype '\|O8'"),
        ({"$array": {"dtype": "<f3", "shape": [1], "data": "AAAA"}}, "is not a valid array"),
    ],
)
def test_what_is_not_as_it_is_written_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(value)


# As text


def test_what_json_lacks_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        as_json({"a": {1, 2}})
    assert as_json({1: (1, np.float64(0.5))}) == {"1": [1, 0.5]}


@pytest.mark.parametrize(
    "value", [[1, -0.0, None, True, "é"], 2**70, -(2**63), math.inf, {"$x": {"$float": "nan"}}]
)
def test_text_comes_back(value: Any) -> None:
    back = from_text(to_text(value))
    assert back == value and repr(back) == repr(value)


def test_what_was_encoded_can_be_text() -> None:
    value = {"order": (1, math.inf), "$": {1: math.nan}, "state": torch.ones(2)}
    back = decode(from_text(to_text(encode(value))))
    assert repr(back) == repr(value)
