"""The plan "zero3" with all kinds of models: each scenario of ``gathering.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("gathering.py")


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_gathering(name, ranks):
    check(SCRIPT, name, ranks)
