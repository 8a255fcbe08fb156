from __future__ import annotations

from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import worker

from fnloop._torch.workers import show_dataset, with_parts


class Shows(Dataset[bool]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> tuple[int, int, str]:
        info = get_worker_info()
        assert info is not None
        return info.id, info.num_workers, str(info.dataset)


def show(number: int) -> None:
    show_dataset("another")


def test_a_worker_is_shown_another_dataset() -> None:
    loader = DataLoader(Shows(), num_workers=1, worker_init_fn=show, collate_fn=list)
    assert list(loader) == [[(0, 1, "another")]]


def test_outside_a_worker_nothing_is_shown() -> None:
    show_dataset("another")
    assert worker._worker_info is None and get_worker_info() is None


def test_a_copy_has_other_parts_and_workers_of_its_own() -> None:
    loader = DataLoader([1, 2], 2, num_workers=1, persistent_workers=True)  # pyright: ignore
    assert [batch.tolist() for batch in loader] == [[1, 2]]
    copied = with_parts(loader, dataset=[3, 4])
    assert [batch.tolist() for batch in copied] == [[3, 4]]
    assert [batch.tolist() for batch in loader] == [[1, 2]] and loader.dataset == [1, 2]
