"""Memory and traffic of plans: each scenario of ``measured.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("measured.py")


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_measured(name, ranks):
    check(SCRIPT, name, ranks)
