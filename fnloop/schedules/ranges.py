"""What hyperparameters may be, as annotations that are checked."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fnloop.names.arguments import Wanted, bounded
from fnloop.schedules.base import is_schedule


def _is_schedule(value: Any) -> bool:
    return is_schedule(value) and not hasattr(value, "kind")  # which stages have


def _hyper(*bounds: float, above: bool = False, below: bool = False) -> Wanted:
    """A hyperparameter: as `bounded`, or a schedule."""
    plain = bounded(*bounds, above=above, below=below)
    return Wanted(
        f"{plain.text}, a tensor or a schedule",
        lambda value: _is_schedule(value) or plain.fits(value),
        "A schedule is such as fl.schedules.cosine(1e-3, steps=1000).",
    )


Value = Annotated[Any, bounded()]
PositiveValue = Annotated[Any, bounded(0, above=True)]
Hyper = Annotated[Any, _hyper()]
NonNegative = Annotated[Any, _hyper(0)]
NormBound = Annotated[Any, _hyper(0, math.inf)]
"""Infinite where a norm is only measured."""
Positive = Annotated[Any, _hyper(0, above=True)]
Share = Annotated[Any, _hyper(0, 1)]
Decay = Annotated[Any, _hyper(0, 1, below=True)]
"""As of a moving average: at 1 nothing new would count."""
