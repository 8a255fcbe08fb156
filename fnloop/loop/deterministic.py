"""``deterministic``: the same bits from run to run, on a GPU too."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator
from typing import Any

import torch

from fnloop.names.keywords import explained

_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
_FIXED = (":4096:8", ":16:8")
_cudnn: Any = torch.backends.cudnn


@explained
@contextlib.contextmanager
def deterministic(warn: bool = False) -> Generator[None]:
    """A context manager inside which PyTorch uses deterministic kernels only.

    Two runs on one machine then have the same bits on a GPU as they do on the CPU, at some cost of
    time. Compiled steps are included. Around all that is to repeat::

        with fl.deterministic():
            state, history = fl.fit(step, state, data, epochs=10)

    It turns on ``torch.use_deterministic_algorithms``, turns off cuDNN's search for the quickest
    kernel, and sets ``CUBLAS_WORKSPACE_CONFIG``, which cuBLAS reads when CUDA is first used. These
    belong to the whole process, and are put back at the end of the block, errors included.

    Args:
        warn: Warn of an operation that has no deterministic kernel, and run it all the same.

    Raises:
        RuntimeError: In the block, an operation has no deterministic kernel.

    Warns:
        UserWarning: CUDA is in use already, without that variable.

    >>> with deterministic():
    ...     torch.are_deterministic_algorithms_enabled()
    True
    >>> torch.are_deterministic_algorithms_enabled()
    False
    """
    before = torch.are_deterministic_algorithms_enabled()
    before_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    searches, workspace = _cudnn.benchmark, os.environ.get(_VARIABLE)
    fixed = workspace in _FIXED
    if not fixed and torch.cuda.is_initialized():
        warnings.warn(_LATE, stacklevel=3)
    try:
        if not fixed:
            os.environ[_VARIABLE] = _FIXED[0]
        _cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=warn)
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=before_warns)
        _cudnn.benchmark = searches
        if workspace is not None:
            os.environ[_VARIABLE] = workspace
        elif not fixed:
            os.environ.pop(_VARIABLE, None)


_LATE = (
    f"fl.deterministic came after CUDA was first used, and cuBLAS reads {_VARIABLE} only then: "
    "matrix products may differ from run to run. Enter the block before anything is on the GPU, or "
    f"set {_VARIABLE}={_FIXED[0]} before the program starts."
)
