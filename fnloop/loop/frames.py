"""What a traceback shows of the way to the user's own line."""

from __future__ import annotations

import contextlib
import linecache
import sys
from types import TracebackType

from torch._utils import ExceptionWrapper

from fnloop.names.whose import LEFT_OUT, is_fnloop, is_users


def shorten(error: BaseException) -> None:
    """Leave fnloop's own frames out where an error comes from the user's code, and say so.

    Only those on the way to the user's last line go, and those of torch modes below it;
    for an error from a data worker, those on the way to PyTorch, which tells where it was. Where
    fnloop itself fails, and in the development mode of Python, the traceback stays whole.
    """
    if sys.flags.dev_mode:
        return
    with contextlib.suppress(Exception):  # a traceback is no reason for another error
        left = sum(_shorten(each) for each in _chain(error))
        if left:
            error.add_note(
                f"fnloop: {_users_line(error)}{left} {LEFT_OUT} (python -X dev shows them)."
            )


def _chain(error: BaseException) -> list[BaseException]:
    """The error, and those before it that its traceback shows."""
    chain: list[BaseException] = []
    shown: BaseException | None = error
    while shown is not None and not any(shown is other for other in chain):
        chain.append(shown)
        before = None if shown.__suppress_context__ else shown.__context__
        shown = shown.__cause__ or before
    return chain


def _shorten(error: BaseException) -> int:
    """Shorten one traceback; how many frames were left out."""
    entries = _entries(error.__traceback__)
    users = [n for n, entry in enumerate(entries) if is_users(_file(entry)) or _hands_on(entry)]
    if not users:
        return 0
    # The first is of the function that the user has called; it may be there several times.
    first = [n for n, entry in enumerate(entries) if entry.tb_frame is entries[0].tb_frame][-1]
    kept = [
        entry
        for n, entry in enumerate(entries)
        if n == first or not is_fnloop(_file(entry)) or (n > users[-1] and not _dispatches(entry))
    ]
    for entry, following in zip(kept, [*kept[1:], None], strict=True):
        entry.tb_next = following
    error.__traceback__ = kept[0]
    return len(entries) - len(kept)


def _users_line(error: BaseException) -> str:
    """The user's last line, if the traceback goes on below it."""
    entries = _entries(error.__traceback__)
    users = [entry for entry in entries if is_users(_file(entry))]
    if not users or users[-1] is entries[-1]:
        return ""
    file, number = _file(users[-1]), users[-1].tb_lineno
    line = linecache.getline(file, number).strip()
    return f"your line is {file}:{number}, {line}; "


def _entries(traceback: TracebackType | None) -> list[TracebackType]:
    entries: list[TracebackType] = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    return entries


def _file(entry: TracebackType) -> str:
    return entry.tb_frame.f_code.co_filename


def _dispatches(entry: TracebackType) -> bool:
    return entry.tb_frame.f_code.co_name in ("__torch_dispatch__", "__torch_function__")


def _hands_on(entry: TracebackType) -> bool:
    """Whether PyTorch raises what came in a data worker, whose traceback is in the message."""
    return entry.tb_frame.f_code is ExceptionWrapper.reraise.__code__
