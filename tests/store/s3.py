"""A real S3 server on the loopback (moto's), behind a gate that can be shut or made to fail."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from tests.ports import free_port

BUCKET = "bucket"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# No retries, so that the test sees what the store makes of a failure, not what botocore does.
CLIENT = {"retries": {"max_attempts": 0}, "connect_timeout": 2, "read_timeout": 2}


class Gate:
    """Passes connections to a server.

    Attributes:
        mode: "open"; "shut" (connections are refused); "slow" (each packet waits); "silent"
            (connections are taken, and never answered); "lost" (requests are passed on, and their
            answers are not); "cut" (connections are reset when so many bytes have passed one way,
            once); or a status such as "503".
        only: What of requests is given a status, lost or cut: a pattern for their first line.
        bytes: After how many bytes a connection is cut.
        requests: First lines of the requests that were given a status, lost or cut.
    """

    def __init__(self, port: int) -> None:
        self.server, self.mode, self.only, self.requests = port, "open", "", list[str]()
        self.bytes = 0
        self._links = list[socket.socket]()
        self._listener: Any = None
        self.port = 0
        self.set("open")

    def set(self, mode: str, only: str = "") -> None:
        self.mode, self.only = mode, only
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._links.clear()
        if mode == "shut" and self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None
        elif mode != "shut" and self._listener is None:
            self._listen()

    def _listen(self) -> None:
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    gate._pass(self.request)

        class Listener(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            block_on_close = False

        self._listener = Listener(("127.0.0.1", self.port), Handler)
        self.port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        self._links.append(client)
        if self.mode == "silent":
            client.recv(1)
            while self.mode == "silent":
                time.sleep(0.02)
            return
        with socket.create_connection(("127.0.0.1", self.server)) as server:
            self._links.append(server)
            chosen = list[str]()  # this connection's request, if it is to be lost or cut
            pumped = (server, client, chosen)
            threading.Thread(target=self._pump, args=pumped, daemon=True).start()
            passed = 0
            while data := client.recv(1 << 16):
                first = data.split(b"\r\n", 1)[0].decode("latin-1")
                if self._fails(first) and self.mode.isdigit():
                    client.sendall(self._refusal(first))
                    return
                if self._fails(first):
                    chosen.append(first)
                if self.mode == "slow":
                    time.sleep(0.02)
                passed += len(data)
                if chosen and self.mode == "cut" and passed > self.bytes:
                    self._reset(client, server)
                    return
                server.sendall(data)

    def _fails(self, first: str) -> bool:
        fails = self.mode.isdigit() or self.mode in ("lost", "cut")
        fails = fails and re.match(r"[A-Z]+ /", first) is not None
        fails = fails and re.search(self.only, first) is not None
        if fails:
            self.requests.append(first)
        return fails

    def _refusal(self, first: str) -> bytes:
        body = b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"
        body = b"" if first.startswith("HEAD") else body
        head = f"HTTP/1.1 {self.mode} Error\r\nConnection: close\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + body

    def _reset(self, *links: socket.socket) -> None:
        """Let both ends see a reset (RST), not the end of what was sent (FIN)."""
        self.mode = "open"
        for link in links:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.shutdown(socket.SHUT_RD)  # wakes the thread that reads from it
            link.close()

    def _pump(self, source: socket.socket, target: socket.socket, chosen: list[str]) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if chosen and self.mode == "lost" and not _is_continue(data):
                    break
                passed += len(data)
                if chosen and self.mode == "cut" and passed > self.bytes:
                    target.sendall(data[: self.bytes - passed])
                    self._reset(target, source)
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


def _is_continue(data: bytes) -> bool:
    """Whether it asks for the body of a request, and is not yet the answer."""
    return data.startswith(b"HTTP/1.1 100") and data.count(b"HTTP/1.1 ") == 1


@contextlib.contextmanager
def serving() -> Iterator[Gate]:
    """A server with one empty bucket, and the gate before it."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    environment = {**os.environ, **ENVIRONMENT}
    server = subprocess.Popen(
        [*command, str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            assert server.poll() is None, "moto's server has ended"
            with contextlib.suppress(OSError):
                request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                break
            time.sleep(0.05)
        yield Gate(port)
    finally:
        server.kill()
        server.wait()


def folder(gate: Gate, name: str) -> Any:
    """A folder in the bucket, as fnloop takes it."""
    return folder_at(gate.port, name, CLIENT)


def folder_at(port: int, name: str, client: Any, **options: Any) -> Any:
    """A folder in the bucket, seen through a port, with options of the client and of s3fs."""
    from upath import UPath

    return UPath(
        f"s3://{BUCKET}/{name}",
        key="test",
        secret="test",
        endpoint_url=f"http://127.0.0.1:{port}",
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs=client,
        **options,
    )
