"""What happens to one rank happens to all: each scenario of ``agreeing.py`` on 2 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import outcomes
from tests.distributed.test_laws import scenarios

SCRIPT = Path(__file__).with_name("agreeing.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_agreeing(name):
    failed = [text for text in outcomes(SCRIPT, 2)[name] if text]
    assert not failed, failed[0]
