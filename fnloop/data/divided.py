"""Data that its own sampler divides among ranks, which `fl.shard` does itself."""

from __future__ import annotations

from typing import Any

from fnloop.data.nested import parts


def refuse_divided(data: Any) -> None:
    """Refuse data with a sampler such as torch's ``DistributedSampler``.

    Raises:
        ValueError: There is one, and it gives each rank other examples.
    """
    for part in parts(data):
        replicas: Any = getattr(part, "num_replicas", 1)
        if isinstance(replicas, int) and replicas > 1:
            raise ValueError(
                f"The data has a {type(part).__name__}, which gives each of {replicas} ranks other "
                "examples, and repeats some to make all parts equally long. fl.shard takes each "
                "rank's part of every batch, without repeating any: give every rank all of the "
                "data, DataLoader(dataset, batch_size, shuffle=True), with the batch size of all "
                "ranks together."
            )
