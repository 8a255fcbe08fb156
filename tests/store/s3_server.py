"""S3 servers that can be killed; `s3_killed.py` starts this file as a script.

moto keeps objects in memory. Here each one is a file too, before its request is answered, and a
server begins with the files that it finds. So one that is killed and started anew has all that it
had acknowledged, and has forgotten uploads in parts that were not completed.

moto is imported once: each server is a fork, so that it is there again at once. A relay is a
process that passes connections to a server; if it is killed, the server lives, with its uploads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import s3_backends
from werkzeug.serving import make_server

BUCKET = "bucket"


class Kept:
    """An application whose objects are files, ``<folder>/<key>``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._application: Any = DomainDispatcherApplication(create_backend_app)
        backend = s3_backends["123456789012"]["aws"]
        backend.create_bucket(BUCKET, "us-east-1")
        for file in folder.rglob("*"):
            if file.is_file() and not file.name.endswith(".part"):
                backend.put_object(BUCKET, file.relative_to(folder).as_posix(), file.read_bytes())
        self._uploads: Any = backend.buckets[BUCKET].multiparts
        self._objects: Any = backend.buckets[BUCKET].keys
        self._known = {key: found.etag for key, found in list(self._objects.items())}

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        query = parse_qs(environ["QUERY_STRING"])
        if not {*query.get("uploadId", [])} <= {*self._uploads}:  # moto says 500, unlike S3
            start_response("404 Not Found", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NoSuchUpload</Code><Message>It is not there</Message></Error>"]
        answer = [*self._application(environ, start_response)]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            with self._lock:
                self._keep()
        return answer

    def _keep(self) -> None:
        now = dict(list(self._objects.items()))
        for key in self._known.keys() - now.keys():
            (self._folder / key).unlink()
        for key, found in now.items():
            if self._known.get(key) != found.etag:
                file = self._folder / key
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_name(f"{file.name}.part")
                part.write_bytes(found.value)
                os.replace(part, file)
        self._known = {key: found.etag for key, found in now.items()}


def serve(port: int, folder: Path, ready: Callable[[], None]) -> None:
    server = make_server(
        "127.0.0.1", port, Kept(folder), threaded=True, request_handler=MotoRequestHandler
    )
    ready()
    server.serve_forever()


def relay(port: int, target: int, ready: Callable[[], None]) -> None:
    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    listener = socket.create_server(("127.0.0.1", port))
    ready()
    while True:
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", target))
        except OSError:
            client.close()
            continue
        for ends in ((client, server), (server, client)):
            threading.Thread(target=pump, args=ends, daemon=True).start()


def fork(work: Callable[[Callable[[], None]], None]) -> int:
    """A process that does `work`; returns when it is ready."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        assert os.read(reader, 1), "it did not start"
        os.close(reader)
        return process
    try:
        sys.stdin.close()
        work(lambda: os.close(writer) if os.write(writer, b".") else None)
    finally:
        os._exit(1)


def main(folder: Path, port: int, relayed: int) -> None:
    """Obey the lines of the standard input: ``start NAME`` or ``kill NAME``."""
    works: dict[str, Any] = {
        "server": lambda ready: serve(port, folder, ready),
        "relay": lambda ready: relay(relayed, port, ready),
    }
    living: dict[str, int] = {}
    try:
        for line in sys.stdin:
            verb, name = line.split()
            if verb == "start":
                living[name] = fork(works[name])
            else:
                os.kill(living[name], signal.SIGKILL)
                os.waitpid(living.pop(name), 0)
            print(living.get(name, 0), flush=True)
    finally:
        for process in living.values():
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    Path(sys.argv[1]).mkdir(parents=True)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
