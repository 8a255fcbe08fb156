"""What a step that takes several batches in one call is given."""

from __future__ import annotations

from typing import Any

from fnloop.trees.show import short

NOTE = (
    "fnloop: this step is compiled with steps={steps}, so it takes a list of batches; the first "
    "that it was given is {first}. If that is a part of a batch, put the batch into a list: "
    "step(state, [batch])."
)


def check_batches(batches: Any, steps: int) -> None:
    """Refuse what is no list of 1 to `steps` batches."""
    if not isinstance(batches, list):
        raise TypeError(
            f"This step is compiled with steps={steps}: it takes a list of 1 to {steps} batches, "
            f"and was given {short(batches)}. Put it into a list, step(state, [batch]), or leave "
            "steps= out."
        )
    if not 1 <= len(batches) <= steps:
        raise ValueError(
            f"This step is compiled with steps={steps}: it takes a list of 1 to {steps} batches, "
            f"and was given one of {len(batches)}. If the list is a batch, put it into another "
            "one, step(state, [batch]); for more batches raise steps=."
        )
