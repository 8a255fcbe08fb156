"""The end of a run on an Aim server, which may be away by then."""

from __future__ import annotations

import time
from typing import Any


def all_sent(run: Any, patience: float = 10.0) -> bool:
    """Wait for what is on its way to the server; False if nothing arrives for so many seconds.

    Aim itself waits for ever.

    Args:
        run: An ``aim.Run`` on a server.
        patience: Seconds.
    """
    queue = run.repo._client.get_queue()._queue
    left, since = queue.unfinished_tasks, time.monotonic()
    while left:
        if time.monotonic() - since > patience:
            return False
        time.sleep(0.02)
        if queue.unfinished_tasks < left:
            left, since = queue.unfinished_tasks, time.monotonic()
    return True


def let_go(run: Any) -> None:
    """Take back all that would ask the server, so that the program can end without it."""
    from aim.ext import cleanup

    finalizers: Any = cleanup.AutoClean._finalizers  # pyright: ignore[reportGeneralTypeIssues]
    client = run.repo._client
    client._heartbeat_sender._shutdown = client.get_queue()._shutdown = True
    for _, finalizer in list(finalizers.values()):
        if (alive := finalizer.peek()) is None:
            continue
        owner: Any = getattr(alive[1], "__self__", None)  # it is a method of what cleans up
        repo = getattr(owner, "repo", owner)
        if client in (getattr(owner, "rpc_client", None), getattr(repo, "_client", None)):
            finalizer.detach()
