"""What happens to one rank happens to all: each scenario of ``agreeing.py`` on 2 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("agreeing.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_agreeing(name):
    check(SCRIPT, name, 2)
