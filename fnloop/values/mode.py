"""Training or evaluation mode, for models that are trees."""

from __future__ import annotations

import threading

_mode = threading.local()


def training() -> bool:
    """Whether the model runs in training mode; for models that are trees.

    True inside a training stage and outside any stage; False inside `fl.evaluate`, `fl.predict`
    and `fl.validate`.

    >>> training()
    True
    """
    return getattr(_mode, "training", True)


def set_training(value: bool) -> None:
    """Set what `training` returns in this thread."""
    _mode.training = value
