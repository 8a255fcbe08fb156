"""The data of an experiment, by split."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from fnloop.data.readers import check_part, is_columns
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import mesh
from fnloop.names.keywords import explained
from fnloop.stages.functions import check_function
from fnloop.trees.show import short

_PARTS = ("train", "validate", "test", "predict")


class Data:
    """Training, validation, test and prediction data; each is anything that `fl.run` accepts.

    For validation and test it may be several sets by name: ``{"day": a, "night": b}``.

    Data that has to be fetched, or takes long to open, is given by two functions in place of the
    parts. They are called when a part is first read, so that a recipe, which is built often, stays
    cheap.

    Args:
        train, validate, test, predict: The parts.
        prepare: Called once on each machine, by its first process; the others wait. It downloads,
            unpacks, writes files.
        setup: Called once in each process, after `prepare`. It opens the files, and returns an
            `fl.Data` of the parts.

    Raises:
        TypeError: There is neither `train` nor `setup`, or both.

    >>> Data(train=[1, 2], validate=[3])
    Data(train=[1, 2], validate=[3])
    >>> def setup():
    ...     print("opened")
    ...     return Data(train=[1, 2], test=[3])
    >>> data = Data(prepare=lambda: print("fetched"), setup=setup)
    >>> data.train, data.test
    fetched
    opened
    ([1, 2], [3])
    """

    @explained
    def __init__(
        self,
        train: Any = None,
        validate: Any = None,
        test: Any = None,
        predict: Any = None,
        prepare: Callable[[], Any] | None = None,
        setup: Callable[[], Data] | None = None,
    ) -> None:
        given: dict[str, Any] = dict(zip(_PARTS, (train, validate, test, predict), strict=True))
        for name, part in given.items():
            check_part(part, f"Data({name}=...)")
        for name, function in (("prepare", prepare), ("setup", setup)):
            if function is not None:
                check_function(function, f"Data({name}=...)", "without arguments")
        if (setup is None) == (train is None):
            what = "train= and setup=" if setup else "neither train= nor setup="
            raise TypeError(
                f"fl.Data was given {what}. Give it the parts, fl.Data(train, validate), or a "
                "function that opens them: fl.Data(setup=f), where f returns such an fl.Data."
            )
        if setup is not None and any(part is not None for part in given.values()):
            raise TypeError("fl.Data(setup=f) has the parts that f returns, so give no other.")
        self._given, self._prepare, self._setup = given, prepare, setup
        self._parts = None if setup or prepare else given

    @property
    def train(self) -> Any:
        """Training data."""
        return self._opened["train"]

    @property
    def validate(self) -> Any:
        """Validation data."""
        return self._opened["validate"]

    @property
    def test(self) -> Any:
        """Test data."""
        return self._opened["test"]

    @property
    def predict(self) -> Any:
        """Data to predict for."""
        return self._opened["predict"]

    @property
    def is_open(self) -> bool:
        """Whether the parts are there, so that reading one calls neither `prepare` nor `setup`."""
        return self._parts is not None

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

    def map(self, change: Callable[[Any], Any]) -> Data:
        """The same data with each part, and each of several sets by name, changed by a function.

        >>> Data([2, 1], validate={"a": [3], "b": [5, 4]}).map(sorted)
        Data(train=[1, 2], validate={'a': [3], 'b': [4, 5]})
        """

        def changed() -> Data:
            found = {name: getattr(self, name) for name in _PARTS}
            return Data(**{name: _changed(part, change) for name, part in found.items()})

        return changed() if self.is_open else Data(setup=changed)

    def __repr__(self) -> str:
        functions = {"prepare": self._prepare, "setup": self._setup}
        shown = [f"{name}={part!r}" for name, part in self._given.items() if part is not None]
        shown += [f"{name}={short(f)}" for name, f in functions.items() if f is not None]
        return f"Data({', '.join(shown)})"

    @property
    def _opened(self) -> dict[str, Any]:
        if self._parts is None:
            if self._prepare is not None:
                _once_a_machine(self._prepare)
            self._parts = self._given if self._setup is None else _parts_of(self._setup())
        return self._parts


def sets_of(part: Any) -> dict[str, Any] | None:
    """The sets by name that a part of the data is; None if it is one set.

    A dict of tensors is one: its entries are the columns of a batch.

    >>> import torch
    >>> sets_of({"a": [1], "b": [2]}), sets_of({"x": torch.ones(2)}), sets_of([1])
    ({'a': [1], 'b': [2]}, None, None)
    """
    if not isinstance(part, dict) or not part or any(map(is_columns, part.values())):
        return None
    return part


def _parts_of(found: Any) -> dict[str, Any]:
    if not isinstance(found, Data):
        raise TypeError(
            f"fl.Data(setup=f): f returned {type(found).__name__}, and must return the parts as "
            "fl.Data(train, validate, ...)."
        )
    return {name: getattr(found, name) for name in _PARTS}


def _changed(part: Any, change: Callable[[Any], Any]) -> Any:
    if part is None:
        return None
    sets = sets_of(part)
    return change(part) if sets is None else {name: change(each) for name, each in sets.items()}


def _once_a_machine(prepare: Callable[[], Any]) -> None:
    """Call it in the first process of each machine, while the others wait."""
    ranks, here = mesh(), socket.gethostname()
    machines = ranks.exchange(here)
    first = machines.index(here) == ranks.rank
    jointly(ranks, "the preparation of the data", prepare if first else lambda: None)
