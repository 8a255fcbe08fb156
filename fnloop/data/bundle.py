"""The data of an experiment, by split."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Data:
    """Training, validation, test and prediction data; each is anything that `fl.run` accepts.

    >>> Data(train=[1, 2], validate=[3])
    Data(train=[1, 2], validate=[3], test=None, predict=None)
    """

    train: Any
    validate: Any = None
    test: Any = None
    predict: Any = None
