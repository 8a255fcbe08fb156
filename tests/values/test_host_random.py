import random

import numpy as np
import pytest

from fnloop.values.host_random import NumpySource, PythonSource, host_seeded


def numpy_state():
    kind, keys, *rest = np.random.get_state()
    return kind, keys.tolist(), rest


class Alarm(Exception):
    """What a signal handler raises."""


class Breaking(PythonSource):
    """A source of which one call is broken off by an alarm, after it was made."""

    def __init__(self, call, number):
        super().__init__("random")
        self.left = {call: number}

    def _made(self, call):
        self.left[call] = self.left.get(call, 0) - 1
        if self.left[call] == 0:
            raise Alarm

    def save(self):
        found = super().save()
        self._made("save")
        return found

    def seed(self, seed):
        super().seed(seed)
        self._made("seed")

    def restore(self, saved):
        super().restore(saved)
        self._made("restore")


@pytest.mark.parametrize(
    ("call", "number"), [("save", 1), ("seed", 1), ("save", 2), ("save", 3), ("restore", 1)]
)
def test_an_alarm_at_any_of_its_calls_leaves_the_generators_as_they_were(call, number):
    before, numbers = random.getstate(), numpy_state()
    with pytest.raises(Alarm), host_seeded([Breaking(call, number), NumpySource()]):
        random.random()
        np.random.rand()
    assert random.getstate() == before
    assert numpy_state() == numbers
