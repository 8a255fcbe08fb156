"""A rank that is gone, or hangs, is named by the others, with where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import processes
from tests.ports import free_port

SCRIPT = Path(__file__).with_name("losing.py")


def others(how, ranks):
    """What each rank but 1 prints last, and its exit code."""
    port = str(free_port())
    env = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    running = processes([[SCRIPT, how]] * ranks, [{**env, "RANK": str(r)} for r in range(ranks)])
    try:
        texts = [each.communicate(timeout=120)[0] for r, each in enumerate(running) if r != 1]
    finally:
        running[1].kill()
        running[1].communicate()
    assert {each.returncode for r, each in enumerate(running) if r != 1} == {1}
    return [text.strip().splitlines()[-1] for text in texts]


@pytest.mark.parametrize(
    ("how", "ranks", "said"),
    [
        ("is killed", 3, ["Rank 1 of 3 is gone: it was last at the start of step 4", "killed"]),
        ("is killed while it shares a model", 2, ["Rank 1 of 2 is gone", "step 4", "killed"]),
        ("hangs", 2, ["Rank 1 of 2 hangs: it was last at the start of step 4 (process ", "py-spy"]),
        ("fails", 2, ["Rank 1 of 2 has failed, so all", "FileNotFoundError: no such data"]),
        ("ends", 2, ["Rank 1 of 2 has failed, so all", "Its program has ended"]),
    ],
)
def test_the_others_say_what_became_of_it(how, ranks, said):
    for line in others(how, ranks):
        assert line.startswith("RankError: ")
        assert all(part in line for part in said), line
        if "is killed" in how or how == "hangs":
            assert "the others were at the gradients of step 4" in line
