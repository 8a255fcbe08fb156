from __future__ import annotations

import json
import math
import random
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from fnloop.data.json_state import decode, encode


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
    with pytest.raises(ValueError, match=f"cannot be resumed exactly: .*{place}|.*{place}"):
        encode(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"$pickle": "x"}, r"state has the tag '\$pickle'; known are"),
        ([{"$tuple": 3}], r"state\[0\] is no tuple"),
        ({"a": {"$bytes": "no base64!"}}, r"state\['a'\] is no bytes"),
        ({"$bytes": 3}, "state is no bytes"),
        ({"$float": "1e3"}, "is no float"),
        ({"$float": []}, "is no float"),
        ({"$dict": [[1]]}, "state is no dict"),
        ({"$dict": [[[], 1]]}, "is no dict"),
        ({"$set": [[]]}, "is no set"),
        ({"$tensor": {"dtype": "float32", "shape": [2], "data": "AAAA"}}, "has 3 bytes; .* need 8"),
        ({"$tensor": {"dtype": "save", "shape": [], "data": ""}}, "is no tensor"),
        ({"$tensor": {"dtype": "int8", "shape": [-1], "data": ""}}, "is no tensor"),
        ({"$tensor": {"dtype": "int8", "shape": [10**30], "data": "AA=="}}, "has 1 bytes"),
        ({"$tensor": {"dtype": "int8", "shape": [0, 10**30], "data": ""}}, "is no tensor"),
        ({"$tensor": {"dtype": "int8", "shape": [0, 2**40, 2**40], "data": ""}}, "is no tensor"),
        ({"$tensor": {}}, "is no tensor"),
        ({"$tensor": None}, "is no tensor"),
        ({"$array": {"dtype": "|O8", "shape": [1], "data": "AAAAAAAAAAA="}}, r"dtype '\|O8'"),
        ({"$array": {"dtype": "<f3", "shape": [1], "data": "AAAA"}}, "is no array"),
    ],
)
def test_what_is_not_as_it_is_written_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(value)
