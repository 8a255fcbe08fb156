"""The setting for matrix products of float32, put back."""

from __future__ import annotations

import threading

import pytest
import torch

from fnloop._torch.tf32 import MatmulSettings, tf32


@pytest.fixture(params=["highest", "high", "medium"])
def before(request):
    start = MatmulSettings.now()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    start.restore()


def settings():
    backends = torch.backends
    return (
        torch.get_float32_matmul_precision(),
        backends.cuda.matmul.allow_tf32,
        backends.cuda.matmul.fp32_precision,
        backends.mkldnn.matmul.fp32_precision,
    )


def test_all_of_it_is_put_back(before):
    given = settings()
    with tf32(), tf32():
        assert settings()[:2] == ("high", True)
    assert settings() == given


def test_it_is_put_back_to_what_torch_begins_with():
    given = settings()
    with pytest.raises(KeyError), tf32():
        raise KeyError
    assert settings() == given


def test_the_last_thread_that_leaves_puts_it_back():
    given = settings()
    entered, left = threading.Event(), threading.Event()

    def other():
        with tf32():
            entered.set()
            left.wait(60)

    thread = threading.Thread(target=other)
    with tf32():
        thread.start()
        assert entered.wait(60)
    assert torch.get_float32_matmul_precision() == "high", "the other is inside"
    left.set()
    thread.join(60)
    assert settings() == given
