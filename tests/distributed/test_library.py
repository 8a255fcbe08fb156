"""Models of transformers that ranks share: each scenario of ``library.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

pytest.importorskip("transformers")
SCRIPT = Path(__file__).with_name("library.py")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_library(name, ranks):
    check(SCRIPT, name, ranks)
