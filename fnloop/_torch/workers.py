"""Replace parts of a ``DataLoader``, and the dataset that its workers see."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import get_worker_info
from torch.utils.data._utils import worker


def with_parts(loader: Any, **parts: Any) -> Any:
    """A shallow copy of `loader` with some attributes replaced, without its running workers.

    A ``DataLoader`` itself does not allow setting its dataset or sampler after construction.
    """
    copied = copy.copy(loader)
    vars(copied).update(parts, _iterator=None)
    return copied


def show_dataset(dataset: Any) -> None:
    """Inside a worker process, make ``get_worker_info().dataset`` return `dataset`."""
    info: Any = get_worker_info()
    if info is None:
        return
    known = {name: getattr(info, name) for name in _names(info)}
    worker._worker_info = worker.WorkerInfo(**{**known, "dataset": dataset})


def _names(info: Any) -> list[str]:
    fields = getattr(info, "__dataclass_fields__", None)
    return [name for name in (fields or vars(info)) if not name.startswith("_")]
