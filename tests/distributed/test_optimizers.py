"""Optimizers on pieces: each scenario of ``optimizers.py`` on 2 and 3 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import outcomes, scenarios

SCRIPT = Path(__file__).with_name("optimizers.py")


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_optimizers(name, ranks):
    failed = [text for text in outcomes(SCRIPT, ranks)[name] if text]
    assert not failed, failed[0]
