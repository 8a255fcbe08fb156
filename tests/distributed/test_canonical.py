"""Each scenario of ``canonical.py`` on 2, 3 and 4 ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

SCRIPT = Path(__file__).with_name("canonical.py")


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_canonical(name, ranks):
    check(SCRIPT, name, ranks)
