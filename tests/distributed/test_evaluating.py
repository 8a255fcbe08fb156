"""Several evaluations in a step, and none, on many ranks: each scenario of ``evaluating.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("evaluating.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_evaluating(name):
    check(SCRIPT, name, 2)
