"""``jointly``: what succeeds on all ranks, or fails on all with one error."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from fnloop.distributed.gates import RankError, gate
from fnloop.distributed.mesh import Mesh

T = TypeVar("T")


def jointly(mesh: Mesh, what: str, call: Callable[[], T]) -> T:
    """What `call` returns here, once it has succeeded on all ranks.

    Every rank calls it with the same `what`. If `call` fails on some, all raise the error of the
    first of them; its attribute ``ranks`` names it. `call` must not communicate.

    Args:
        mesh: The ranks.
        what: What is done, such as "the save of runs/a/step-00000004": the ranks compare it.
        call: What this rank does of it.

    Raises:
        RankError: A rank has failed elsewhere, or does something else.

    >>> jointly(Mesh(), "the sum", lambda: 1 + 1)
    2
    """
    if mesh.data == 1:
        return call()
    results, error = list[T](), None
    try:
        results.append(call())
    except BaseException as raised:
        error = raised
    same, failed = gate(mesh, what, what, int(error is not None))
    if any(failed):
        errors = mesh.exchange(_portable(error, mesh.rank))
        if error is not None and not isinstance(error, Exception):  # Ctrl-C ends what it ends here
            raise _told(error)
        first = next(other for other in errors if other is not None)
        if error is not None and first.ranks == (mesh.rank,):
            raise _told(error)
        raise _told(first) from error
    if not same:
        raise RankError(
            f"The ranks do different things: this one, rank {mesh.rank}, is at {what}, and "
            "another is not. Every rank runs the same program, with the same callbacks."
        )
    return results[0]


def _portable(error: BaseException | None, rank: int) -> Any:
    """The error as one that can be sent to the other ranks."""
    if error is None:
        return None
    if isinstance(error, Exception):
        with contextlib.suppress(Exception):  # it cannot be pickled, or not be made again
            error.ranks = (rank,)  # type: ignore[attr-defined]
            return pickle.loads(pickle.dumps(error))
    return RankError(f"Rank {rank} has failed: {type(error).__name__}: {error}", (rank,))


def _told(error: BaseException) -> BaseException:
    """The error with a note for `leave`: all ranks know of it."""
    with contextlib.suppress(AttributeError):  # it allows no attributes
        error.told_ranks = True  # type: ignore[attr-defined]
    return error
