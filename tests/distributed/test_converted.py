"""Metrics of torchmetrics on many ranks: each scenario of ``converted.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("converted.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_converted(name):
    check(SCRIPT, name, 2)
