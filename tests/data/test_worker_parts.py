from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from fnloop.data.worker_parts import Request, SeededDataset, SeededIndices, ShowDataset


class Noise(Dataset[Any]):
    color = "red"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[int, float]:
        return i, float(torch.rand(()))


def indices(sampler: Any, **options: Any) -> SeededIndices:
    return SeededIndices(sampler, **{"batches": True, "repeats": False, "draws": False, **options})


def test_indices_go_with_the_epochs_seed_and_their_place() -> None:
    sampler = indices(BatchSampler(SequentialSampler(range(5)), 2, False))
    sampler.seed, sampler.skip = 9, 1
    assert list(sampler) == [Request(9, 2, (), [2, 3]), Request(9, 4, (), [4])]
    assert len(sampler) == 3 and sampler.batch_size == 2


def test_an_epoch_that_has_begun_keeps_its_seed() -> None:
    sampler = indices([[1], [2]])
    sampler.seed = 1
    began = iter(sampler)
    sampler.seed, sampler.skip = 2, 2
    assert [asked.seed for asked in began] == [1, 1]


def test_repeated_indices_are_counted_also_in_what_is_skipped() -> None:
    sampler = indices([[1, 2], [2, 2], [(1, 2), (1, 2)]], repeats=True)
    assert [asked.times for asked in sampler] == [(), (1, 2), (0, 1)]
    sampler.skip = 1
    assert next(iter(sampler)).times == (1, 2)


def test_samplers_are_seeded_where_they_may_draw() -> None:
    class Sampler:
        def __iter__(self) -> Any:
            for _ in range(3):
                yield int(torch.randint(1000, ()))

    drawn = []
    for seed in (1, 2, 1):
        sampler = indices(Sampler(), batches=False, draws=True)
        sampler.seed = seed
        drawn.append([asked.indices for asked in sampler])
    assert drawn[0] == drawn[2] != drawn[1] and len(set(drawn[0])) == 3
    with pytest.raises(TypeError):
        len(indices(Sampler()))


def test_a_dataset_behaves_like_the_users_for_who_asks_it() -> None:
    dataset = SeededDataset(Noise(), collates=False)
    assert len(dataset) == 4 and dataset.color == "red" and dataset[2][0] == 2
    with pytest.raises(AttributeError, match="shape"):
        dataset.shape  # noqa: B018
    assert dataset.__getitems__(Request(1, 0, (), [])) == []


def test_a_dataset_can_be_sent_to_another_process() -> None:
    dataset = SeededDataset(Noise(), collates=True, shared=torch.tensor([5, 0]))
    sent: Any = pickle.loads(pickle.dumps(dataset))
    asked = pickle.loads(pickle.dumps(Request(3, 0, (0, 1), [2, 2])))
    with torch.random.fork_rng(devices=[]):
        assert sent.__getitems__(asked) == dataset.__getitems__(asked)
        plain = sent.__getitems__([1, 2])  # seeded by what the dataset holds
        assert plain == dataset.__getitems__(Request(5, 0, (), [1, 2]))
        assert sent[3] == dataset[Request(5, 0, (), 3)]


def test_the_users_function_for_workers_is_called() -> None:
    called: list[int] = []
    ShowDataset(called.append)(3)
    ShowDataset(None)(4)
    assert called == [3]
