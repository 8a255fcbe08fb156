from __future__ import annotations

import dataclasses

import pytest

from fnloop.data.bundle import Data


def test_splits_are_optional_but_for_train() -> None:
    data = Data([1], test=[2])
    assert (data.train, data.validate, data.test, data.predict) == ([1], None, [2], None)
    with pytest.raises(TypeError):
        Data()  # pyright: ignore[reportCallIssue]


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Data([1]).train = [2]  # pyright: ignore[reportAttributeAccessIssue]
