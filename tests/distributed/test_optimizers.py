"""Optimizers on pieces: each scenario of ``optimizers.py`` on 2 and 3 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("optimizers.py")


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_optimizers(name, ranks):
    check(SCRIPT, name, ranks)
