"""Checkpoints of many ranks: each scenario of ``store.py``, and every pair of ranks and plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.launch import check, run, scenarios

SCRIPT = Path(__file__).with_name("store.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_store(name):
    check(SCRIPT, name, 2)


def alone(place, ranks, name, script=SCRIPT, **env):
    """One scenario in a launch of its own."""
    done = run(script, ranks, str(place), name, seconds=1800, **env)
    for rank in range(ranks):
        file = place / f"rank-{rank}.json"
        assert file.exists(), done.stdout + done.stderr
        assert not (why := json.loads(file.read_text())[name]), why


def test_every_pair_of_one_to_four_ranks(tmp_path):
    alone(tmp_path, 4, "every_pair_of_ranks_and_plans_saves_and_loads")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_a_disk_that_fails_at_any_call(tmp_path, ranks):
    name = "a_disk_that_fails_on_one_rank_fails_the_save_on_all"
    alone(tmp_path, ranks, name, STRIDE="1")
