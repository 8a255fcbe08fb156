"""Deterministic kernels for the time of a block."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from torch import nn

import fnloop as fl

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


class Unpooled(nn.Module):
    """``nn.MaxUnpool2d`` has no deterministic kernel, on the CPU either."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        return self.unpool(*self.pool(self.layer(x)))


def loss(model, x):
    return model(x).square().mean()


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
BATCH = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get(VARIABLE),
    )


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.lightning("T27")
def test_an_operation_without_a_deterministic_kernel_raises_or_warns(compiled, capfd):
    step = fl.compile(STEP, backend="aot_eager") if compiled else STEP
    state = step.init(Unpooled())
    expected = step(state, BATCH)
    with pytest.raises(RuntimeError, match="max_unpooling2d") as error, fl.deterministic():
        fl.fit(step, state, [BATCH], steps=1, progress=False)
    assert "fl.deterministic(warn=True)" in "\n".join(error.value.__notes__)
    with warnings.catch_warnings(record=True) as caught, fl.deterministic(warn=True):
        warnings.simplefilter("always")
        assert step(state, BATCH)[0] == expected[0]
    told = capfd.readouterr().err + "".join(str(warning.message) for warning in caught)
    assert "max_unpooling2d" in told  # torch writes what it has to say of a graph to stderr itself
    with pytest.raises(RuntimeError, match="max_unpooling2d"), fl.deterministic():
        step(state, BATCH)  # not with the graph that only warns
    assert settings() == (False, False, False, None)
    assert step(state, BATCH)[0] == expected[0]


@pytest.mark.parametrize("workspace", [None, ":16:8", ":8:8"])
@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.lightning("T27")
def test_the_settings_are_put_back_after_errors_too(workspace, benchmark, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    if workspace is not None:
        monkeypatch.setenv(VARIABLE, workspace)
    before = settings()
    with fl.deterministic():
        assert settings() == (True, False, False, ":16:8" if workspace == ":16:8" else ":4096:8")
        with fl.deterministic(warn=True):
            assert settings()[:2] == (True, True)
        assert settings()[:2] == (True, False)
    assert settings() == before
    with pytest.raises(KeyError), fl.deterministic():
        raise KeyError
    assert settings() == before


def test_it_tells_when_cuda_is_in_use_already(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.warns(UserWarning, match="after CUDA was first used") as caught, fl.deterministic():
        pass
    assert caught[0].filename == __file__
    monkeypatch.setenv(VARIABLE, ":4096:8")
    with fl.deterministic():  # a warning would be an error
        assert os.environ[VARIABLE] == ":4096:8"


def test_it_decorates_a_function_too():
    @fl.deterministic()
    def train():
        return settings()[0]

    assert train() and train() and not settings()[0]
