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

    def only(self, who: str, *names: str) -> Any:
        """The one part of those named `names` that there is.

        Args:
            who: The function that reads it, for messages.
            names: Of the parts it may read.

        Raises:
            ValueError: There is none, or there are several.

        >>> Data(train=[1], test=[3]).only("evaluate", "validate", "test")
        [3]
        """
        there = [name for name in names if getattr(self, name) is not None]
        if len(there) == 1:
            return getattr(self, there[0])
        if there:
            which = " or ".join(f"data.{name}" for name in there)
            raise ValueError(
                f"{who} reads one part of fl.Data, and this has several: give {which}."
            )
        raise ValueError(
            f"{who} was given fl.Data without the part that it reads: "
            f"fl.Data(train, {names[0]}=...); or give it another part, such as data.train."
        )
