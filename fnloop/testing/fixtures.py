"""The checks as pytest fixtures.

In a ``conftest.py``: ``pytest_plugins = ["fnloop.testing.fixtures"]``.
"""

from __future__ import annotations

from typing import Any

import pytest

from fnloop import testing


def _fixture(name: str) -> Any:
    def give() -> Any:
        return getattr(testing, name)

    give.__doc__ = getattr(testing, name).__doc__.partition("\n")[0]
    return pytest.fixture(name=name)(give)


check_laws = _fixture("check_laws")
check_pure = _fixture("check_pure")
check_repeatable = _fixture("check_repeatable")
check_init = _fixture("check_init")
check_accumulates = _fixture("check_accumulates")
check_compiles = _fixture("check_compiles")
check_resumes = _fixture("check_resumes")
check_effects = _fixture("check_effects")
check_skips = _fixture("check_skips")
check_stable = _fixture("check_stable")
check_vmaps = _fixture("check_vmaps")
check_layouts = _fixture("check_layouts")
check_differentiable = _fixture("check_differentiable")
