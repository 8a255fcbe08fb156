from __future__ import annotations

from typing import Any

import pytest

from tests.lightning.recorded import Recorded, record


@pytest.fixture(scope="session")
def recorded() -> Any:
    """What Lightning does with a module, trained by it once."""
    found: dict[str, Recorded] = {}

    def get(name: str) -> Recorded:
        if name not in found:
            found[name] = record(name)
        return found[name]

    return get
