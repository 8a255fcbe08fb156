"""Restore a signal handler, whatever comes in the meantime."""

from __future__ import annotations

import signal
from typing import Any


def restore(signum: int, handler: Any) -> None:
    """Make `handler` the handler of a signal again.

    ``signal.signal`` first runs the handlers of signals that have come, and one of them may raise
    before anything is restored. So it is called again.
    """
    try:
        signal.signal(signum, handler)
    finally:
        signal.signal(signum, handler)
