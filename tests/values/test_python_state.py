from __future__ import annotations

import random
from typing import Any

import pytest

from fnloop.values import python_state
from fnloop.values.python_state import PythonState


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    before = random.getstate()
    yield
    random.setstate(before)


def draw() -> list[float]:
    return [random.random() for _ in range(700)] + [random.gauss() for _ in range(3)]


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("known_layout", [True, False])
def test_what_is_drawn_after_is_what_would_have_been(
    waiting: bool, known_layout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known_layout:
        monkeypatch.setattr(python_state, "_memory", lambda generator: None)
    random.seed(1)
    for _ in range(17):
        random.random()
    if waiting:  # the second of a pair of normal numbers
        random.gauss()
    start = random.getstate()
    expected = draw()
    random.setstate(start)
    state = PythonState()
    for drawn in (0, 1, 700):
        saved = state.save()
        random.seed(drawn)
        for _ in range(drawn):
            random.gauss()
        state.restore(saved)
        assert random.getstate() == start
    assert draw() == expected


def test_a_generator_in_another_class_is_not_read_from_memory() -> None:
    class Own(random.Random):
        pass

    assert python_state._memory(Own(1)) is None
    assert python_state._memory(random.SystemRandom()) is None


def test_the_fast_way_is_the_one_in_use() -> None:
    """Fails where Python lays out its generator's memory in another way: it is slow then."""
    memory = python_state._memory(random.Random(1))
    assert memory is not None and len(memory.raw) == 2500
