"""Examples as modules; they are scripts in a folder of their own."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """A function: an example's module by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module
