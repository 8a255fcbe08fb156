"""Tensor parallel models: each scenario of ``shared.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("shared.py")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_shared(name, ranks):
    check(SCRIPT, name, ranks)
