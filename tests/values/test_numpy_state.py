from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fnloop.values import numpy_state
from fnloop.values.numpy_state import NumpyState


@pytest.fixture(autouse=True)
def _as_it_was() -> Any:
    generator = np.random.get_bit_generator()
    before = np.random.get_state()
    yield
    np.random.set_bit_generator(generator)
    np.random.set_state(before)


def draw() -> list[float]:
    return [*np.random.rand(700), *np.random.randn(3), float(np.random.randint(1 << 30))]


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("known_layout", [True, False])
def test_what_is_drawn_after_is_what_would_have_been(
    waiting: bool, known_layout: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known_layout:
        monkeypatch.setattr(numpy_state, "_memory", lambda generator: None)
    np.random.seed(1)
    np.random.rand(17)
    if waiting:
        np.random.randn()
    start = np.random.get_state()
    expected = draw()
    np.random.set_state(start)
    state = NumpyState()
    for seed in (3, 4, 3):  # several blocks, of which the later ones know the state
        saved = state.save()
        assert isinstance(saved, bytes) == (known_layout and not waiting)
        state.seed(seed)
        drawn = np.random.randn()  # the second of the pair waits
        assert drawn == np.random.RandomState(seed).randn()
        state.restore(saved)
    assert str(np.random.get_state()) == str(start)
    assert draw() == expected


def test_a_normal_number_that_begins_to_wait_between_blocks_is_kept() -> None:
    state = NumpyState()
    np.random.seed(5)
    state.restore(state.save())
    np.random.randn()
    before = np.random.get_state()
    saved = state.save()
    state.seed(0)
    state.restore(saved)
    assert np.random.get_state()[3] == 1 and str(np.random.get_state()) == str(before)


def test_the_low_bits_of_a_seed_count() -> None:
    NumpyState().seed((7 << 32) + 5)
    assert np.random.rand() == np.random.RandomState(5).rand()


def test_another_bit_generator_is_left_alone() -> None:
    np.random.set_bit_generator(np.random.PCG64(3))
    expected = np.random.PCG64(3)
    state = NumpyState()
    saved = state.save()
    state.seed(5)
    np.random.rand()
    state.restore(saved)
    assert np.random.get_bit_generator().state == expected.state


def test_the_fast_way_is_the_one_in_use() -> None:
    """Fails where numpy lays out its generator's memory in another way: it is slow then."""
    assert numpy_state._memory(np.random.MT19937(1)) is not None
