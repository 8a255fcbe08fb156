"""The refusal of stages that are divided among ranks, by what cannot work with them."""

from __future__ import annotations

from typing import Any

from fnloop.stages.base import mesh_of

BY_FORWARD_MODE = (
    "takes a derivative by forward mode, which does not go through an exchange of ranks"
)


def refuse_sharded(stage: Any, who: str, why: str) -> None:
    """Check that a stage is not sharded.

    Args:
        stage: The stage that is wrapped, or given.
        who: Who cannot work with it, for the message.
        why: What it does that does not work, as the rest of a sentence.

    Raises:
        ValueError: It is.

    >>> import fnloop as fl
    >>> refuse_sharded(fl.grad(print), "evolution", "computes all in one pass")
    """
    if (mesh := mesh_of(stage)) is not None:
        raise ValueError(
            f"{who} was given a stage that is sharded over {mesh}, and {why}. Give it one without "
            "fl.shard, and where it takes a state, too, fl.gather(state)."
        )
