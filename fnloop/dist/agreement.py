"""What the ranks tell one another before they exchange tensors: that all are well, and alike."""

from __future__ import annotations

import zlib

import torch

from fnloop.dist.mesh import Mesh

_FAILED = -1


class RankError(RuntimeError):
    """Another rank has failed, or does something else than this one.

    Attributes:
        ranks: Those ranks.
    """

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks


def same_on_all(mesh: Mesh, outline: str, error: BaseException | None = None) -> bool:
    """Whether all ranks have the same outline. Every rank calls it, a failed one too.

    Args:
        mesh: The ranks.
        outline: What this rank is about to exchange.
        error: What this rank has failed with; it is raised here, and a `RankError` elsewhere.

    Raises:
        RankError: Another rank has failed; the message is that rank's.
    """
    mine = _FAILED if error is not None else zlib.crc32(outline.encode())
    codes = mesh.gather(torch.tensor([mine], device="cpu")).flatten().tolist()
    failed = [rank for rank, code in enumerate(codes) if code == _FAILED]
    if failed:
        said = mesh.exchange("" if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        first = failed[0]
        others = f" (and ranks {', '.join(map(str, failed[1:]))})" if failed[1:] else ""
        raise RankError(
            f"Rank {first} of {mesh.data} has failed{others}, so all ranks end: {said[first]}",
            failed,
        )
    return len(set(codes)) == 1


def first_difference(mesh: Mesh, outline: list[str]) -> str | None:
    """Where the outlines of the ranks differ, line by line; None if they are equal."""
    every = mesh.exchange(outline)
    for rank, theirs in enumerate(every):
        for here, there in zip(every[0], theirs, strict=False):
            if here != there:
                return f"rank 0 has {here}; rank {rank} has {there}"
        if len(theirs) != len(every[0]):
            longer, more = (0, every[0]) if len(every[0]) > len(theirs) else (rank, theirs)
            short = min(len(theirs), len(every[0]))
            return f"only rank {longer} has {more[short]}"
    return None
