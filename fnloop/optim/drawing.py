"""Whether an optimizer, or one inside of it, draws random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fnloop.optim.base import Optimizer


def draws_inside(value: Any) -> bool:
    """Whether an optimizer draws, or one in its fields does: what combines others need not say.

    >>> from fnloop.optim import chain, noise, sgd
    >>> draws_inside(chain(noise(), sgd())), draws_inside(sgd())
    (True, False)
    """
    if isinstance(value, Optimizer):
        return value.draws or any(map(draws_inside, vars(value).values()))
    if isinstance(value, (tuple, list)):
        return any(map(draws_inside, cast("tuple[Any, ...]", value)))
    if isinstance(value, Mapping):
        return any(map(draws_inside, cast("Mapping[str, Any]", value).values()))
    return False
