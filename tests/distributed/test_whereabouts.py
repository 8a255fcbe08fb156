"""What a rank has noted of its end, until it goes on."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from fnloop._torch import rank_store
from fnloop.distributed import whereabouts
from fnloop.distributed.whereabouts import RankError, come_to, lost, note_end, note_failure


@pytest.fixture
def alone():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    rank_store.leave()


def told():
    return str(lost(RuntimeError("Connection closed\nmore")))


@pytest.mark.usefixtures("alone")
def test_a_failure_counts_until_the_rank_comes_to_another_gate(monkeypatch):
    monkeypatch.setattr(whereabouts, "_PATIENCE", 0.3)
    come_to("the start")
    note_failure(RankError("of another"))  # which that one has noted
    assert "The ranks have lost one another" in told()
    come_to("the start")
    note_failure(ValueError("no more"))
    assert told() == (
        "Rank 0 of 1 has failed, so all ranks end. ValueError: no more (Connection closed)"
    )
    come_to("the start")
    assert "has failed" not in told()


@pytest.mark.usefixtures("alone")
def test_the_end_of_a_program_is_noted_once():
    come_to("the start")
    note_failure(ValueError("no more"))
    assert not note_end()
    assert "no more" in told()
    come_to("the start")
    assert note_end()
    assert "Its program has ended" in told()
