"""The process group of all ranks, and the store by which they have met: notes for one another."""

from __future__ import annotations

import contextlib
import datetime
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d


def join(backend: str, meeting: str, rank: int, size: int, seconds: float) -> None:
    """Join the process group; each exchange waits `seconds` for the other ranks."""
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group(backend, meeting, timeout=timeout, rank=rank, world_size=size)


def note(key: str, text: str) -> None:
    """Note a text where all ranks can read it; it is sent, and nobody is waited for.

    A store that is gone is no error here: the next exchange tells who kept it.
    """
    with contextlib.suppress(RuntimeError):
        _notes().set(key, text)


def noted(key: str) -> str | None:
    """What is noted under `key`; None if nothing is. It waits for the store, maybe for ever."""
    notes = _notes()
    return notes.get(key).decode() if notes.check([key]) else None


def is_lost(error: BaseException) -> bool:
    """Whether an exchange has failed because another rank did not take part in it."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any([part in str(error) for part in ("gloo/transport", "caused pair closure")])
    )


def leave() -> None:
    """Leave the process group, and wait for its threads.

    They release tensors when they like, which needs Python: where it is at its end, the process
    would abort.
    """
    _stores.clear()  # else the group would stay alive
    dist.destroy_process_group()


_stores: dict[Any, Any] = {}  # one connection of its own, since another may wait in the group's


def _notes() -> Any:
    group = dist.group.WORLD
    if group not in _stores:
        _stores.clear()
        store: Any = distributed_c10d._get_default_store()
        with contextlib.suppress(RuntimeError):  # one for tests may have no connection
            store = store.clone()
        _stores[group] = distributed_c10d.PrefixStore("fnloop", store)
    return _stores[group]
