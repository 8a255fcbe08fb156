"""Examples as modules; they are scripts in a folder of their own."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import fnloop as fl

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch):
    """A function: an example's module by name."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def run():
    """A function: trains a recipe, with the options of `fl.fit`; the state and the history."""

    def trained(recipe, **options):
        return fl.fit(
            recipe.step,
            recipe.step.init(recipe.model, seed=recipe.seed),
            recipe.data,
            callbacks=recipe.callbacks,
            **options,
        )

    return trained
