"""A real S3 server that can be killed, stopped and started again with what it had acknowledged."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ports import free_port

from . import s3

PART = 5 * 2**20
"""Bytes; the smallest part of an upload that S3 takes."""


class Mortal:
    """A server (`s3_server.py`), and a relay before it; each is a process of its own.

    Attributes:
        files: Where the server keeps its objects: a checkpoint there can be read as on a disk.
        ports: Of the server and of the relay.
    """

    def __init__(self, files: Path) -> None:
        self.files = files
        self.ports = {"server": free_port(), "relay": free_port()}
        self._processes: dict[str, int] = {}
        script = Path(__file__).with_name("s3_server.py")
        ports = map(str, self.ports.values())
        self._nursery = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script), str(files), *ports],
            env={**os.environ, **s3.ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.start("server")
        self.start("relay")

    def start(self, name: str) -> None:
        self._processes[name] = self._say("start", name)

    def kill(self, name: str) -> None:
        """SIGKILL: connections are reset, and refused from then on."""
        assert self._say("kill", name) == 0

    def stop(self, name: str) -> None:
        """SIGSTOP: connections are taken by the system, and never answered."""
        os.kill(self._processes[name], signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        os.kill(self._processes[name], signal.SIGCONT)

    def end(self) -> None:
        assert self._nursery.stdin and self._nursery.stdout
        self._nursery.stdin.close()
        self._nursery.wait(20)
        self._nursery.stdout.close()

    def _say(self, verb: str, name: str) -> int:
        assert self._nursery.stdin and self._nursery.stdout
        self._nursery.stdin.write(f"{verb} {name}\n")
        self._nursery.stdin.flush()
        answer = self._nursery.stdout.readline()
        assert answer, f"{verb} {name}: the servers' parent has ended"
        return int(answer)


@contextlib.contextmanager
def living(files: Path) -> Iterator[Mortal]:
    server = Mortal(files)
    try:
        yield server
    finally:
        server.end()
        shutil.rmtree(files, ignore_errors=True)


def folder(server: Mortal, through: str, name: str, client: Any, **options: Any) -> Any:
    """A folder in the bucket, seen through the server or the relay."""
    return s3.folder_at(server.ports[through], name, client, **options)
