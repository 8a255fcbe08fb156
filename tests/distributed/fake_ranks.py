"""One process as a rank of many that are not there: what it keeps and sends is what it would be.

Their exchanges give wrong values (each rank's own), so only sizes can be looked at.
"""

from __future__ import annotations

import contextlib
import logging
import warnings

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import fnloop as fl


@contextlib.contextmanager
def fake_mesh(ranks, rank=1, tensor=1):
    """A mesh of so many ranks, of which this process is one."""
    log, shows = logging.getLogger("fnloop"), warnings.showwarning
    level = log.level
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield fl.mesh(tensor=tensor)
    finally:
        dist.destroy_process_group()
        log.setLevel(level)  # a rank other than zero is quiet
        warnings.showwarning = shows
