"""Where each rank is, noted where all can read it: to say which one hangs, or is gone.

A rank that is killed says nothing, and one that hangs neither; the others find that an exchange
has failed. So each notes, before it goes through a gate, which one that is. Notes are kept by the
store by which the ranks have met, and cost microseconds: nobody reads them before something fails.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch.distributed as dist

from fnloop._torch import rank_store

_PATIENCE = 5.0  # seconds in which a rank that lives says so


class RankError(RuntimeError):
    """Another rank has failed, or does something else than this one.

    Attributes:
        ranks: Those ranks, if it is known.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class Note(NamedTuple):
    """What a rank has noted last.

    Attributes:
        gates: How many gates it has come to.
        gate: The last of them, in words.
        process: Its process and machine.
    """

    gates: int
    gate: str
    process: str


class _Here:
    """What this process notes."""

    gates = 0
    step = ""
    process = ""
    ended = False


def begin_step(step: int) -> None:
    """Which step the gates from now on belong to, counted from 1."""
    _Here.step = f" of step {step}"


def come_to(gate: str) -> None:
    """Note that this rank is at a gate, and is about to wait for the others."""
    _Here.gates += 1
    _Here.ended = False  # one that has failed may go on with something else
    _Here.process = _Here.process or f"process {os.getpid()} on {socket.gethostname()}"
    note = Note(_Here.gates, gate + _Here.step, _Here.process)
    rank_store.note(f"at/{dist.get_rank()}", json.dumps(note))


def note_failure(error: BaseException) -> None:
    """Note the exception with which this rank ends, for those who find it gone."""
    if not isinstance(error, RankError):
        _end(f"{type(error).__name__}: {error}")


def note_end() -> bool:
    """Note that this rank's program has ended, unless it has noted why; whether it had not."""
    well = not _Here.ended
    if well:
        _end("Its program has ended, and those of the others had not.")
    return well


def _end(why: str) -> None:
    _Here.ended = True
    rank_store.note(f"end/{dist.get_rank()}", json.dumps([_Here.gates, why]))


def lost(error: BaseException) -> RankError:
    """What has become of the other ranks, after an exchange with them has failed."""
    size, found = dist.get_world_size(), _Found()
    # A store that does not answer would never return.
    asking = threading.Thread(target=_ask, args=(size, found), daemon=True)
    asking.start()
    asking.join(2 * _PATIENCE)
    hangs = "imed out" in str(error) or "timeout" in str(error).lower()
    why = str(error).partition("\n")[0].partition(". This is typically")[0]
    text, ranks = _told(size, found, hangs)
    return RankError(f"{text} ({why})", ranks)


class _Found:
    """What the store says of each rank; a rank is in it if it has a note, or has ended."""

    def __init__(self) -> None:
        self.notes: dict[int, Note] = {}
        self.ends: dict[int, str] = {}
        self.complete = False


def _ask(size: int, found: _Found) -> None:
    try:
        if not _Here.ended:
            _end("")  # it has lost the others, but lives
        until = time.monotonic() + _PATIENCE
        while len(found.ends) < size and time.monotonic() < until:
            for rank in range(size):
                _ask_of(rank, found)
            time.sleep(0.05)
        found.complete = True
    except RuntimeError:  # the store is gone, and with it the rank that kept it
        pass


def _ask_of(rank: int, found: _Found) -> None:
    note, end = rank_store.noted(f"at/{rank}"), rank_store.noted(f"end/{rank}")
    if note is not None:
        found.notes[rank] = Note(*json.loads(note))
    if end is not None:
        gates, why = json.loads(end)
        if rank not in found.notes or found.notes[rank].gates <= gates:  # else it has gone on
            found.ends[rank] = why


def _told(size: int, found: _Found, hangs: bool) -> tuple[str, list[int]]:
    """What has happened, in words; and the ranks that it has happened to."""
    failed = [rank for rank, end in sorted(found.ends.items()) if end]
    if failed:
        return failure(size, failed, found.ends[failed[0]]), failed
    if not found.complete:
        what = "does not answer: it hangs, or its process or machine is gone"
        return f"Rank 0 of {size}, by which the ranks have met, {what}, so all ranks end.", [0]
    most = max([note.gates for note in found.notes.values()], default=0)
    behind = [r for r in range(size) if r in found.notes and found.notes[r].gates < most]
    absent = [rank for rank in range(size) if rank not in found.ends]
    ranks = (behind if hangs else absent) or absent or behind
    if not ranks:
        places = [f"rank {r} at {n.gate}" for r, n in sorted(found.notes.items())]
        return f"The ranks have lost one another, so all end: {', '.join(places)}.", []
    others = [note for rank, note in found.notes.items() if rank not in ranks]
    there = f", where the others were at {max(others).gate}" if others else ""
    what = [_of_one(rank, size, found.notes.get(rank), hangs) for rank in ranks]
    return f"{' '.join(what)} So all ranks end{there}. {_ADVICE[hangs]}", ranks


def _of_one(rank: int, size: int, note: Note | None, hangs: bool) -> str:
    state = "hangs" if hangs else "is gone"
    if note is None:
        return f"Rank {rank} of {size} {state}: it came to no gate."
    return f"Rank {rank} of {size} {state}: it was last at {note.gate} ({note.process})."


_ADVICE = {
    True: "The usual causes are data that does not come, a deadlock of threads and a stopped "
    "process; py-spy dump --pid PROCESS shows where it is.",
    False: "The usual causes are a process that was killed (often for its memory: see dmesg) and a "
    "machine or network that was lost.",
}


def failure(size: int, ranks: list[int], said: str) -> str:
    """That ranks have failed, and what the first of them said."""
    others = f" (ranks {', '.join(map(str, ranks[1:]))} too)" if ranks[1:] else ""
    return f"Rank {ranks[0]} of {size} has failed{others}, so all ranks end. {said}"
