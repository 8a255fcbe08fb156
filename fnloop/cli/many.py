"""``--nproc N``: one command in many processes that train together, and one that speaks for all."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from fnloop.cli.messages import Problem, usage
from fnloop.distributed.launch import launched


def processes_in(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """The number that ``--nproc`` gives, None without it; and the other arguments.

    >>> processes_in(["a.py", "--nproc", "2", "--lr", "0.1"])
    (2, ['a.py', '--lr', '0.1'])
    """
    found, rest, left = None, list[str](), iter(arguments)
    for token in left:
        if token == "--nproc":
            found = next(left, "")
        elif token.startswith("--nproc="):
            found = token.removeprefix("--nproc=")
        else:
            rest.append(token)
    if found is None:
        return None, rest
    if not found.isdecimal() or int(found) < 1:
        raise usage(f"--nproc takes a number of processes, 1 or more, got {found!r}.")
    return int(found), rest


def launch(count: int, arguments: Sequence[str]) -> int:
    """Run a command of ``fnloop`` in many processes on this machine, by torchrun's launcher."""
    own = launched()
    if own is not None and own.size > 1:
        raise usage(
            f"--nproc {count} starts processes, and this is one of {own.size} that {own.launcher} "
            "has started already: leave --nproc out."
        )
    from fnloop._torch.launcher import launch as start

    code, rank, failure = start("fnloop", arguments, count)
    if failure < 0:
        name = signal.Signals(-failure).name
        print(f"fnloop {arguments[0]}: rank {rank} was ended by {name}", file=sys.stderr)
    return code


def is_first() -> bool:
    """Whether this process speaks for all."""
    own = launched()
    return own is None or own.rank == 0


def speaker(error: BaseException) -> str:
    """Whose error it is, for the beginning of a message; empty for what all ranks have refused."""
    own = launched()
    if own is None or own.size == 1 or _is_common(error):
        return ""
    return f": rank {own.rank}"


def speaks(error: BaseException) -> bool:
    """Whether this process shows an error; the others do not show what rank zero, or the rank that
    has failed, shows as well.
    """
    if is_first():
        return True
    from fnloop.distributed.whereabouts import RankError

    told = isinstance(error, RankError) or isinstance(error.__cause__, RankError)
    return not (told or _is_common(error))


def _is_common(error: BaseException) -> bool:
    return isinstance(error, Problem) and error.__cause__ is None
