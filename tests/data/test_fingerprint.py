from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
import torch

from fnloop.data.batches import Batches
from fnloop.data.fingerprint import checksum, sample_of_columns, sample_of_list
from fnloop.data.sources import as_source


def test_batches_say_what_they_are() -> None:
    data = {"x": torch.zeros(10, 2, 3), "y": np.zeros(10, np.int64)}
    about = Batches(data, 4, seed=3, drop_last=True).about()
    assert len(about.pop("sample")) == 16
    assert json.loads(json.dumps(about)) == {
        "kind": "Batches",
        "examples": 10,
        "batches": 2,
        "batch_size": 4,
        "shuffle": True,
        "seed": 3,
        "drop_last": True,
        "index": "examples",
        "exact": "at once",
        "columns": {
            "x": {"dtype": "float32", "shape": [2, 3]},
            "y": {"dtype": "int64", "shape": []},
        },
    }


def test_a_dataset_is_not_asked_for_examples() -> None:
    class Expensive:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> Any:
            raise AssertionError

    about = Batches(Expensive(), 2).about()
    assert about["dataset"].endswith("<locals>.Expensive") and "sample" not in about
    assert "sample" in Batches([1, 2], 2).about()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_other_content_has_another_sample(dtype: torch.dtype) -> None:
    data = torch.arange(300).remainder(2).to(dtype).view(20, 5, 3)
    changed = data.clone()
    changed[0, 0, 0] = 1 - changed[0, 0, 0] if dtype is not torch.bool else ~changed[0, 0, 0]
    samples = [sample_of_columns([x]) for x in (data, changed, data[:19], data.view(20, 3, 5))]
    samples.append(sample_of_columns([data, data]))
    assert len(set(samples)) == 5
    strided = torch.empty(20, 3, 5, dtype=dtype).transpose(1, 2).copy_(data)
    assert sample_of_columns([strided]) == sample_of_columns([data.clone()]) == samples[0]


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000])
def test_first_and_last_numbers_are_in_the_sample(n: int) -> None:
    data = torch.zeros(n, 40)
    first = sample_of_columns([data])
    for row, column in ((0, 0), (n - 1, 39), (n - 1, 0)):
        data[row, column] = 1
        assert sample_of_columns([data]) != first
        data[row, column] = 0


def test_no_numbers() -> None:
    for empty in (torch.zeros(0), torch.zeros(3, 0), torch.zeros(()), torch.zeros(3, 2, 0)):
        assert len(sample_of_columns([empty])) == 16


def test_lists_of_anything() -> None:
    lists: list[list[Any]] = [
        [1, 2],
        [1, 3],
        ["a"],
        ["b"],
        [(torch.zeros(2), 1)],
        [(torch.ones(2), 1)],
        [np.arange(4.0)[::-1]],
        [np.arange(4.0)],
        [np.array(["a"])],
        [object()],
        [],
    ]
    samples = [sample_of_list(items) for items in lists]
    assert len(set(samples)) == len(lists)
    assert samples == [sample_of_list(items) for items in lists]


def test_it_takes_less_than_five_milliseconds_whatever_the_size() -> None:
    wide = torch.zeros(1, 1).expand(2_000_000, 500_000)  # rows of 2 MB, without the memory
    many = [torch.zeros(100, 8) for _ in range(1000)]
    batches = [{f"{i}": torch.zeros(64, 64) for i in range(20)} for _ in range(100)]
    for sample in (
        lambda: sample_of_columns([wide]),
        lambda: sample_of_columns(many),
        lambda: sample_of_list(batches),
    ):
        times = []
        for _ in range(10):
            began = time.process_time()
            sample()
            times.append(time.process_time() - began)
        assert min(times) < 10e-3  # 5 where nothing runs beside it


def test_other_sources_say_what_they_are() -> None:
    assert as_source(["a", "b"]).about() == {  # pyright: ignore
        "kind": "list",
        "batches": 2,
        "index": "batches",
        "exact": "at once",
        "sample": sample_of_list(["a", "b"]),
    }
    about = as_source(lambda epoch: [1]).about()  # pyright: ignore
    assert about == {
        "kind": "function",
        "batches": None,
        "index": "batches",
        "exact": "by skipping",
    }
    about = as_source(iter([1])).about()  # pyright: ignore
    assert about["exact"] == "no" and "read only once" in about["reason"]
    assert as_source({1: 2}.keys()).about()["kind"] == "iterable"  # pyright: ignore
    assert as_source((torch.zeros(3),)).about()["kind"] == "Batches"  # pyright: ignore


def test_a_checksum_sees_other_batches_and_takes_any():
    x, y = torch.arange(600.0).view(3, 200), torch.tensor([0, 1, 2])
    known = checksum((x, y))
    assert checksum((x.clone(), y)) == checksum((x.T.contiguous().T, y)) == known
    shifted, longer = x.roll(1, 0), torch.cat([x, x[-1:]])
    others = [(shifted, y), (longer, y), (x.double(), y), (x, y.flip(0)), (x, y, "text"), x]
    assert len({known, *map(checksum, others)}) == 1 + len(others)
    for odd in (
        torch.tensor(1.0),
        torch.zeros(0, 3),
        torch.eye(3).to_sparse(),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.bool),
        np.array(["a", "b"]),
        object(),
        {"a": None, "b": [1, 2.0, "c"]},
    ):
        assert checksum(odd) == checksum(odd)
