"""Each scenario of ``every.py`` on 2 and 4 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("every.py")


NUMBERS = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.mark.parametrize("ranks", NUMBERS)
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_every(name, ranks):
    check(SCRIPT, name, ranks, seconds=300 * ranks)
