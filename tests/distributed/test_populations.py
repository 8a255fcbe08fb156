"""Populations, and derivatives, of a step on many ranks: each scenario of ``populations.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("populations.py")


@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_populations(name):
    check(SCRIPT, name, 2)
