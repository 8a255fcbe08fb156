"""Blocks with seeded generators, also where an exception comes from a signal handler."""

from __future__ import annotations

import sys
import threading

import torch

from fnloop._torch import random


class Stop(BaseException):
    pass


def raising_at(n):
    """A tracer that raises at the n-th event in ``random.py``, from the first line of calls on."""
    left = [n]

    def local(frame, event, arg):
        if event in ("call", "line") and frame.f_code.co_filename == random.__file__:
            left[0] -= 1
            if left[0] == 0:
                raise Stop
        return local

    return local, left


def is_free():
    """Whether another thread gets the lock."""
    found = []

    def look():
        found.append(random._LOCK.acquire(False))
        if found[0]:
            random._LOCK.release()

    other = threading.Thread(target=look)
    other.start()
    other.join()
    return found[0]


def test_an_exception_at_any_line_leaves_generator_and_lock_as_they_were():
    n = 0
    while True:
        n += 1
        tracer, left = raising_at(n)
        before, previous = torch.get_rng_state(), sys.gettrace()
        try:
            sys.settrace(tracer)
            try:
                with random.seeded(5):
                    torch.rand(2)
            finally:
                sys.settrace(previous)
        except Stop:
            random.leave_all()
        assert torch.equal(before, torch.get_rng_state()), n
        assert not random.inside()
        assert is_free(), n
        if left[0] > 0:
            break
    assert n > 15


def test_blocks_in_blocks():
    before = torch.get_rng_state()
    with random.seeded(1):
        first = torch.rand(1)
        with random.seeded(2):
            torch.rand(1)
        second = torch.rand(1)
    with random.seeded(1):
        assert torch.equal(torch.rand(2), torch.cat([first, second]))
    assert torch.equal(before, torch.get_rng_state()) and not random.inside()
