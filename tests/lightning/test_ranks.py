"""Modules on two ranks: each scenario of ``ranks.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.mark.slow
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_ranks(name):
    check(SCRIPT, name, 2)
