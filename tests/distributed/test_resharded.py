"""Launches of 1, 2, 3 and 4 ranks save states under every plan, and each loads what all have saved.

``test_store.py`` has the same pairs in one launch, on the first ranks of four.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.test_store import alone

SCRIPT = Path(__file__).with_name("resharded.py")
SCENARIOS = ("states_under_every_plan_are_saved", "what_every_launch_has_saved_is_loaded")


@pytest.mark.slow
def test_every_launch_loads_what_every_other_has_saved(tmp_path):
    for name in SCENARIOS:
        for ranks in (1, 2, 3, 4):
            place = tmp_path / f"{name}-{ranks}"
            place.mkdir()
            alone(place, ranks, name, script=SCRIPT)
