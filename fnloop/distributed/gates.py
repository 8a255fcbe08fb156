"""What ranks tell one another between the exchanges of tensors: that all are well, and alike.

All of it passes through one gate. A rank that fails goes to the gate to say so; wherever the others
go through it next, they learn of it, and nobody waits for a rank that will not come.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence

import torch

from fnloop.distributed.mesh import Mesh
from fnloop.distributed.whereabouts import RankError, come_to, failure, note_failure

_FAILED = -1


def gate(mesh: Mesh, name: str, outline: str = "", flags: int = 0) -> tuple[bool, list[int]]:
    """Whether all ranks have the same outline; and the flags of all, in order.

    Every rank calls it. An outline says what this rank is about to exchange; `name` says it to
    people, if a rank does not come.

    Raises:
        RankError: A rank has failed; with its message.
    """
    if mesh.data == 1:
        return True, [flags]
    come_to(name)
    codes, found = _exchanged(mesh, zlib.crc32(outline.encode()), flags)
    failed = [rank for rank, code in enumerate(codes) if code == _FAILED]
    if failed:
        raise RankError(failure(mesh.data, failed, mesh.exchange("")[failed[0]]), failed)
    return len(set(codes)) == 1, found


def leave(mesh: Mesh, error: BaseException) -> None:
    """Tell the other ranks of an error, before it is raised here: at the gate they go to next.

    An error that they know of already is not told again. What is no `Exception` (a second Ctrl-C)
    ends this rank at once: the others learn of it when they miss it.
    """
    if mesh.data == 1 or isinstance(error, RankError) or getattr(error, "told_ranks", False):
        return
    with contextlib.suppress(AttributeError):  # it allows no attributes
        error.told_ranks = True  # type: ignore[attr-defined]
    with contextlib.suppress(Exception):  # the others are gone
        note_failure(error)
        if isinstance(error, Exception):
            _exchanged(mesh, _FAILED, 0)
            mesh.exchange(f"{type(error).__name__}: {error}")


def _exchanged(mesh: Mesh, code: int, flags: int) -> tuple[list[int], list[int]]:
    codes, found = mesh.gather(torch.tensor([code, flags], device="cpu")).unbind(1)
    return codes.tolist(), found.tolist()


def first_difference(mesh: Mesh, outline: Sequence[str]) -> str | None:
    """Where the outlines of the ranks differ, line by line; None if they are equal."""
    first, *others = mesh.exchange(list(outline))
    for rank, theirs in enumerate(others, 1):
        for here, there in zip(first, theirs, strict=False):
            if here != there:
                return f"rank 0 has {here}, and rank {rank} has {there}"
        if len(theirs) > len(first):
            return f"only rank {rank} has {theirs[len(first)]}"
        if len(theirs) < len(first):
            return f"rank {rank} lacks {first[len(theirs)]}"
    return None
