"""Blocks with a setting of the process, also where an exception comes from a signal handler."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from fnloop._torch import process_wide, products, random


class Stop(BaseException):
    pass


def raising_at(n):
    """A tracer that raises at the n-th event in the blocks, from the first line of calls on."""
    files = {module.__file__ for module in (process_wide, products, random)}
    left = [n]

    def local(frame, event, arg):
        if event in ("call", "line") and frame.f_code.co_filename in files:
            left[0] -= 1
            if left[0] == 0:
                raise Stop
        return local

    return local, left


def is_free():
    """Whether another thread gets the lock."""
    found = []

    def look():
        found.append(process_wide._LOCK.acquire(False))
        if found[0]:
            process_wide._LOCK.release()

    other = threading.Thread(target=look)
    other.start()
    other.join()
    return found[0]


def settings():
    return torch.get_rng_state().tolist(), torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("block", [lambda: random.seeded(5), products.by_onednn])
def test_an_exception_at_any_line_leaves_settings_and_lock_as_they_were(block):
    n = 0
    while True:
        n += 1
        tracer, left = raising_at(n)
        before, previous = settings(), sys.gettrace()
        try:
            sys.settrace(tracer)
            try:
                with block():
                    assert settings() != before
            finally:
                sys.settrace(previous)
        except Stop:
            process_wide.leave_all()
        assert settings() == before, n
        assert not process_wide.inside()
        assert is_free(), n
        if left[0] > 0:
            break
    assert n > 12


def test_blocks_in_blocks():
    before = torch.get_rng_state()
    with random.seeded(1):
        first = torch.rand(1)
        with random.seeded(2):
            torch.rand(1)
        second = torch.rand(1)
    with random.seeded(1):
        assert torch.equal(torch.rand(2), torch.cat([first, second]))
    assert torch.equal(before, torch.get_rng_state()) and not process_wide.inside()
