"""A ``DataLoader`` with another dataset or sampler, and what its workers see of it."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker


def with_parts(loader: Any, **parts: Any) -> Any:
    """A copy that shares everything with `loader` but `parts` and running workers.

    A loader refuses that its dataset or sampler is set once it is built.
    """
    copied = copy.copy(loader)
    vars(copied).update(parts, _iterator=None)
    return copied


def show_dataset(dataset: Any) -> None:
    """In a worker: let ``get_worker_info().dataset`` be `dataset`, whichever the loader has."""
    info: Any = get_worker_info()
    if info is None:
        return
    known = {name: getattr(info, name) for name in _names(info)}
    worker._worker_info = worker.WorkerInfo(**{**known, "dataset": dataset})


def _names(info: Any) -> list[str]:
    fields = getattr(info, "__dataclass_fields__", None)
    return [name for name in (fields or vars(info)) if not name.startswith("_")]
