"""What is wrong on many ranks is refused on all: each scenario of ``misuse.py`` on 2 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("misuse.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_misuse(name):
    check(SCRIPT, name, 2)
