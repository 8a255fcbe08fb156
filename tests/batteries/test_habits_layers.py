"""The layers among what people write; a file of its own, so that two processes share them."""

from __future__ import annotations

import pytest

from .habit import Habit, tried
from .habits_layers import LAYERS


@pytest.mark.parametrize("habit", LAYERS, ids=lambda habit: habit.name)
def test_a_layer_is_recorded_or_refused_with_a_remedy_that_works(habit: Habit) -> None:
    assert tried(habit) == ("refused" if habit.refused else "recorded")
