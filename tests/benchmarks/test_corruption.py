"""The comparison of damaged checkpoints does what it says."""

from __future__ import annotations

import os

import pytest

from . import corruption
from .corruption import KINDS, SYSTEMS, System, count, outcomes, saved_tensors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize("kind", KINDS)
def test_fnloop_notices_all(kind):
    found = count(SYSTEMS[-1], kind, flips=20)
    assert found.total() > 0 and set(found) == {"noticed"}


@pytest.mark.parametrize("system", SYSTEMS[:3], ids=lambda system: system.name)
def test_the_others_do_not_notice_all_flipped_bits(system):
    found = count(system, "flipped bits", flips=20)
    assert found.total() == 20 and found["silently wrong"] > 10


def test_each_outcome_is_counted(tmp_path):
    """Also a process that dies, after which the others are still looked at."""

    def load(folder, like):
        kind = (folder / "x").read_bytes()
        if kind == b"die":
            os._exit(3)
        if kind == b"raise":
            raise OSError
        return like if kind == b"right" else saved_tensors(seed=5)

    (tmp_path / "x").write_bytes(b"right")
    cases = [(tmp_path / "x", kind) for kind in (b"die", b"raise", b"right", b"wrong", b"right")]
    found = outcomes(System("x", print, load), tmp_path, saved_tensors(0), cases)
    assert found == {"crashed": 1, "noticed": 1, "harmless": 2, "silently wrong": 1}
    assert {*found} == {*corruption.OUTCOMES}
