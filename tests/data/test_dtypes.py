"""Data of every dtype is read, or refused where it is given."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fnloop as fl
from fnloop.data.dtypes import from_array, indexable

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
FOUND = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
DTYPES = sorted(FOUND - QUANTIZED, key=str)


def of_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Numbers of any dtype, made of random bits."""
    bits = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
    bits = bits % 2 if dtype == torch.bool else bits
    return bits.view(dtype).view(shape)


def same(a: Tensor, b: Tensor) -> bool:
    left, right = (x.contiguous().view(-1).view(torch.uint8) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(left, right)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("shape", [(6,), (6, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_shuffled_to_the_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    data = of_dtype(dtype, shape)
    numbers = torch.arange(6)
    batches = fl.Batches({"x": data, "i": numbers}, 4)
    assert len(batches.about()["sample"]) == 16
    read = list(batches)
    order = torch.cat([batch["i"] for batch in read]).tolist()
    assert order != numbers.tolist()
    for batch in read:
        rows = [data[i : i + 1] for i in batch["i"].tolist()]
        assert all(same(batch["x"][k : k + 1], row) for k, row in enumerate(rows))
    plain = fl.Batches(data, 4, shuffle=False)
    assert same(next(iter(plain)), data[:4])


@pytest.mark.parametrize("code", ["u2", "u4", "u8", "i1", "f2", "c8", "c16", "?", "u1"])
def test_numpys_arrays_train(code: str) -> None:
    tokens = np.arange(40).astype(code)
    state, history = fl.fit(*task(), fl.Batches(tokens, 4), epochs=2)
    assert history.status == "completed" and state.cursor.tolist() == [2, 0, 20]


def task() -> tuple[Any, Any]:
    def loss(model: Any, batch: Tensor) -> Tensor:
        number = batch.real if batch.is_complex() else batch
        return model(number.float()[:, None] / 40).square().mean()

    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    return step, step.init(torch.nn.Linear(1, 1))


REFUSED = {
    "byte order": (np.zeros(3, ">f4"), "newbyteorder"),
    "text": (np.zeros(3, "<U3"), "encode it"),
    "objects": (np.array([[1], [2, 3]], dtype=object), "use a dataset"),
    "fields": (np.zeros(3, [("a", "f4"), ("b", "i2")]), r"array\[name\] for name in \('a', 'b'\)"),
    "dates": (np.zeros(3, "M8[s]"), "int64"),
    "long floats": (np.zeros(3, np.longdouble), "float64"),
    "a mask": (np.ma.masked_array([1.0, 2.0], [True, False]), "filled"),
    "bytes": (np.zeros(3, "S4"), "encode it"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_torch_does_not_have_is_refused_with_the_remedy(kind: str) -> None:
    array, remedy = REFUSED[kind]
    with pytest.raises(ValueError, match=f"at 'x' .*To use it, .*{remedy}"):
        fl.Batches({"x": array}, 2)


def test_the_remedies_work() -> None:
    fields = np.array([(1.0, 2), (3.0, 4)], [("a", "f4"), ("b", "i2")])
    batches = fl.Batches({name: fields[name] for name in ("a", "b")}, 2, shuffle=False)
    assert next(iter(batches))["a"].tolist() == [1.0, 3.0]
    big = np.arange(3, dtype=">f4")
    assert from_array(big.astype(big.dtype.newbyteorder()), "").tolist() == [0.0, 1.0, 2.0]
    assert from_array(np.arange(4, dtype="u2")[::-1], "").tolist() == [3, 2, 1, 0]


def test_quantized_tensors_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will remove them
        data = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)
    with pytest.raises(ValueError, match=r"'x' \(torch.quint8.* cannot be indexed"):
        indexable(data, "x")


def test_examples_that_do_not_fit_together_are_named() -> None:
    for examples in ([{"a": None}] * 3, [{"a": torch.ones(i)} for i in range(3)]):
        with pytest.raises(ValueError, match=r"3 examples of list cannot be joined .*collate=fl"):
            list(fl.Batches(examples, 3))
