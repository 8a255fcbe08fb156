"""A port for a server of a test."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A port that nobody listens on.

    It is below those that a system gives to whoever asks for any port (Linux: from 32768), so that
    no connection takes it before the server does.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
