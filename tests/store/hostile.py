"""Hostile checkpoints, built by code; and what fnloop makes of each, in a process of its own.

Whoever makes a checkpoint can compute its digests, so nearly all of these have the right ones.
Run as a script (``hostile.py FOLDER``) this builds the corpus in an empty folder, has every reader
look at every checkpoint of it, each in a forked process with bounded memory and time, in which
Python's audit hook notes what must not happen, and prints a JSON line for each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import by_hand
from by_hand import Array, manifest_bytes, signed

COUNT = 3
MARKER = "the payload ran"
ONE = struct.pack("<f", 1.0)


class Case(NamedTuple):
    """A hostile checkpoint.

    Attributes:
        build: Changes an honest one, in the folder that it is given, into this one.
        readers: Who must refuse it. The others may not look so far, and must do no harm.
        memory: MB that refusing it may cost at most, beyond those of an honest one.
    """

    build: Callable[[Path], None]
    readers: tuple[str, ...]
    memory: int = 64


BY_STATE = ("load", "load folder")
BY_CONTENT = (*BY_STATE, "diff")
BY_FILE = (*BY_CONTENT, "latest", "best")
BY_ALL = (*BY_FILE, "read_manifest", "show")
CORPUS: dict[str, Case] = {}


def arrays() -> dict[str, Array]:
    """A state with one parameter of two numbers, as a linear layer without bias has."""
    return {
        "step": Array("int64", (), bytes(8)),
        "calls": Array("int64", (), bytes(8)),
        "cursor": Array("int64", (3,), struct.pack("<3q", 0, COUNT, COUNT)),
        "params/weight": Array("float32", (1, 2), ONE + ONE),
        "key": Array("int64", (), bytes(8)),
    }


MONITOR = {"name": "loss", "mode": "min", "value": 0.5}


def honest(root: Path) -> Path:
    return by_hand.write(root, arrays(), monitor=MONITOR)


# How checkpoints are changed


def case(readers: tuple[str, ...], name: str, memory: int = 64) -> Callable[[Any], Any]:
    def register(build: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in CORPUS, name
        CORPUS[name] = Case(build, readers, memory)
        return build

    return register


def manifest_case(name: str, readers: tuple[str, ...] = BY_ALL, **changes: Any) -> None:
    """A manifest with other entries, rightly signed."""

    @case(readers, name)
    def build(folder: Path) -> None:
        given = by_hand.manifest_of(arrays(), monitor=MONITOR)
        put(folder, "manifest.json", manifest_bytes({**given, **changes}))


def text_case(name: str, change: Callable[[bytes], bytes], memory: int = 64) -> None:
    """A manifest with other text, rightly signed."""

    @case(BY_ALL, name, memory)
    def build(folder: Path) -> None:
        file = folder / "manifest.json"
        put(folder, "manifest.json", signed(change(file.read_bytes()[78:])))


def entry_case(name: str, entry: bytes, memory: int = 64) -> None:
    """A manifest whose configuration is this text."""
    text_case(name, lambda body: body.replace(b'"config": {}', b'"config": ' + entry), memory)


def leaf_case(
    name: str, readers: tuple[str, ...] = BY_ALL, path: str = "params/weight", **changes: Any
) -> None:
    """A manifest that says something else about a leaf, or of one more."""

    @case(readers, name)
    def build(folder: Path) -> None:
        given = by_hand.manifest_of(arrays(), monitor=MONITOR)
        leaf = {**given["leaves"]["params/weight"], **changes}
        given["leaves"] = {**given["leaves"], path: leaf}
        put(folder, "manifest.json", manifest_bytes(given))


def state_case(
    name: str,
    readers: tuple[str, ...],
    claimed: int | None = None,
    sparse: bool = False,
    **leaves: Any,
) -> None:
    """A checkpoint of other tensors, whole and rightly signed; the last may only be claimed."""

    @case(readers, name)
    def build(folder: Path) -> None:
        given = {path: array for path, array in {**arrays(), **leaves}.items() if array}
        for name in ("manifest.json", "state.safetensors"):
            (folder / name).unlink()
        file = by_hand.tensors_bytes(given)
        manifest = by_hand.manifest_of({**arrays(), **given}, monitor=MONITOR)
        manifest["leaves"] = {path: manifest["leaves"][path] for path in given}
        manifest["bytes"] = len(file)
        if claimed is not None:
            big = {**given, "slots/x": Array("uint8", (claimed,), b"")}
            file = by_hand.header_bytes(big) + b"".join(
                given[path].data for path in by_hand.order(given)
            )
            leaf = {"dtype": "uint8", "shape": [claimed], "sha256": by_hand.sha256(b"")}
            manifest["leaves"]["slots/x"] = leaf
            manifest["bytes"] = len(file) + claimed
        put(folder, "state.safetensors", file)
        if sparse:
            os.truncate(folder / "state.safetensors", manifest["bytes"])
        put(folder, "manifest.json", manifest_bytes(manifest))


def header_case(name: str, change: Callable[[bytes], bytes]) -> None:
    """A file of tensors of the right size with another header."""

    @case(BY_CONTENT, name)
    def build(folder: Path) -> None:
        header = by_hand.header_bytes(arrays())
        changed = change(header)
        assert changed != header and len(changed) == len(header), (header, changed)
        file = folder / "state.safetensors"
        file.write_bytes(changed + file.read_bytes()[len(header) :])


def file_case(name: str, replace: Callable[[Path], None]) -> None:
    """Something else in the place of each of the two files."""
    for file, readers in (("manifest.json", BY_ALL), ("state.safetensors", BY_FILE)):

        @case(readers, f"{name} for {file}")
        def build(folder: Path, file: str = file) -> None:
            replace(folder / file)


def put(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


# Payloads


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.where}'",)


def payload(file: Path) -> Any:
    return Payload(file.parents[1] / MARKER)


def put_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(payload(file)))


def put_torch(file: Path) -> None:
    import torch

    file.unlink()
    torch.save({"params/weight": payload(file)}, file)


def put_npy(file: Path) -> None:
    import numpy as np

    large = "x" * 1000  # else it is as long as the right file where the path is of some length
    with file.open("wb") as stream:
        np.save(stream, np.array([payload(file), large], dtype=object), allow_pickle=True)


def put_bomb(file: Path) -> None:
    """A hundred kilobytes that unpack to a hundred megabytes."""
    file.unlink()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(100 * 2**20))


def put_view(file: Path) -> None:
    """A torch.save file of a kilobyte, a view of a thousand million elements."""
    import torch

    file.unlink()
    torch.save(torch.zeros(1).expand(10**9), file)


def put_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def put_socket(file: Path) -> None:
    file.unlink()
    here = Path.cwd()
    os.chdir(file.parent)  # the name of a socket has at most 107 characters
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(here)


def put_device(file: Path) -> None:
    file.unlink()
    os.mknod(file, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero; needs root


def put_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def put_link(file: Path) -> None:
    """To a file that is right in all else."""
    away = file.parents[1] / f"outside-{file.name}"
    file.rename(away)
    file.symlink_to(away)


def put_link_to_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def put_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


for name, replace in {
    "nothing": lambda file: file.unlink(),
    "an empty file": lambda file: file.write_bytes(b""),
    "a pickle": put_pickle,
    "a torch.save file": put_torch,
    "a huge view by torch.save": put_view,
    "an object array by numpy": put_npy,
    "a zip bomb": put_bomb,
    "a pipe": put_fifo,
    "a socket": put_socket,
    "a device": put_device,
    "a folder": put_folder,
    "a link to the right file": put_link,
    "a link to /dev/zero": put_link_to_device,
    "a link to itself": put_loop,
}.items():
    file_case(name, replace)


@case(BY_ALL, "the two files swapped")
def _(folder: Path) -> None:
    (folder / "manifest.json").rename(folder / "x")
    (folder / "state.safetensors").rename(folder / "manifest.json")
    (folder / "x").rename(folder / "state.safetensors")


@case(BY_ALL, "a sparse manifest of a terabyte")
def _(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 2**40)


# The text of the manifest

text_case("no JSON", lambda body: b"\n what?")
text_case("a list", lambda body: b"\n[]")
text_case("nothing but the first line", lambda body: b"")
text_case("no end", lambda body: body[:-1])
text_case("two documents", lambda body: body + body)
text_case("a comment", lambda body: b"\n/* */" + body[1:])
text_case("a comma too many", lambda body: body[:-1] + b",}")
text_case("a NUL at the end", lambda body: body + b"\0")
text_case("a UTF-8 BOM", lambda body: b"\n\xef\xbb\xbf" + body[1:])
text_case("invalid UTF-8", lambda body: body.replace(b"by hand", b"\xff\xfe"))
text_case("overlong UTF-8", lambda body: body.replace(b"by hand", b"\xc0\xaf"))
text_case("a letter beyond ASCII", lambda body: body.replace(b"by hand", "ü".encode()))
text_case("UTF-16", lambda body: b"\n" + body[1:].decode().encode("utf-16"))
text_case("a control character", lambda body: body.replace(b"by hand", b"a\x1b[2Jb"))
text_case("an entry twice", lambda body: body.replace(b'"format": 1', b'"format": 1, "format": 1'))
text_case(
    "a leaf twice",
    lambda body: body.replace(b'"leaves": {', b'"leaves": {"key": {}, '),
)
text_case("a second digest", lambda body: b'\n"sha256": "",' + body[1:])
text_case("34 MB of spaces", lambda body: body + b" " * (34 * 10**6))
text_case("a name of 10 MB", lambda body: body.replace(b"params/weight", b"params/" + b"x" * 10**7))
text_case(
    "a million leaves",
    lambda body: body.replace(
        b'"leaves": {',
        b'"leaves": {' + b"".join(b'"%x":{},' % i for i in range(10**6)),
    ),
)
entry_case("lists to the depth of 100,000", b"[" * 100_000 + b"]" * 100_000)
entry_case("objects to the depth of 100,000", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
entry_case("lists to the depth of 900", b'{"a":' + b"[" * 900 + b"]" * 900 + b"}")
entry_case("objects to the depth of 66", b'{"a":' * 66 + b"1" + b"}" * 66)
entry_case("ten million empty lists", b'{"a":[' + b"[]," * (10**7) + b"[]]}")
# As many as are allowed: what these cost is the most that any checkpoint can cost.
entry_case("a million empty lists", b'{"a":[' + b"[]," * (2**20 // 2 - 100) + b"1}", 160)
entry_case(
    "a quarter of a million names",
    b'{"a":{' + b"".join(b'"%x":0,' % i for i in range(2**18 - 100)) + b"}}",
    160,
)
for text in ("NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 20, "9" * 10**6, "-1e400"):
    entry_case(f"the number {text[:20]} of {len(text)} characters", b'{"a":' + text.encode() + b"}")
entry_case("an int as text of a million digits", b'{"a":{"$int":"' + b"9" * 10**6 + b'"}}')
for text in (
    '{"$int":"12"}',
    '{"$int":" 99999999999999999999"}',
    '{"$int":"9_9999999999999999999"}',
    '{"$int":"\\u0669\\u0669"}',
    '{"$int":5}',
    '{"$int":[]}',
    '{"$int":{"$int":"99999999999999999999"}}',
    '{"$float":"1.5"}',
    '{"$float":"infinity"}',
    '{"$float":true}',
    '{"$float":{}}',
    '{"$import":"os.system"}',
    '{"$":1}',
):
    entry_case(f"the special value {text}", b'{"a":' + text.encode() + b"}")

# Entries

manifest_case("a later format", format=2)
manifest_case("a later format of 600 digits", format={"$int": "9" * 600})
manifest_case("format 0", format=0)
manifest_case("a format that is true", format=True)
for given in (
    "../x.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    "manifest.json",
    "state.safetensors\n",
    "state.safetensors\0",
    "./state.safetensors",
    "STATE.SAFETENSORS",
    "state-0.safetensors",
    "state-\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661.safetensors",
):
    manifest_case(f"the file {given!r}", file=given)
manifest_case("a monitor with another mode", monitor={**MONITOR, "mode": "exec"})
manifest_case("a monitor with a value that is text", monitor={**MONITOR, "value": "nan"})
manifest_case("a negative cursor", cursor={"epoch": 0, "index": 0, "count": -1})
manifest_case("another count than the folder's", cursor={"epoch": 0, "index": 0, "count": 99})
manifest_case("a step to the depth of 900", step=json.loads("[" * 900 + "]" * 900))

# Leaves

for path in (
    "../x",
    "/etc/passwd",
    "params/../../x",
    "params/./x",
    "params//x",
    "params",
    "params/",
    "",
    "step/x",
    "Params/weight",
    "evil/x",
    "__class__/x",
    "__metadata__",
    "os.system",
    "params/a\0b",
    "params/\x1b[2J",
    "params/\u202etxt",
    "params/\ud800",
    "params/" + "x" * 1000,
):
    leaf_case(f"the leaf {path[:20]!r} of {len(path)} characters", path=path)
for dtype in (
    "load",
    "os.system",
    "__class__",
    "torch.float32",
    "float7",
    "FLOAT32",
    "complex256",
    "object",
    "float32\0",
    "quint8",
    None,
    [],
    {"a": "float32"},
):
    leaf_case(f"the dtype {dtype!r}", dtype=dtype)
for shape in (
    [-1],
    [1, -2],
    [2**31, 2**31],
    [2**62],
    [2**63 - 1],
    [0, 2**60],
    [{"$int": "9" * 600}],
    [1.0, 2],
    [True, 2],
    ["1", 2],
    [[1], 2],
    "12",
    "",
    {},
    None,
    2,
    [1] * 65,
    [1] * 100_000,
):
    leaf_case(f"the shape {str(shape)[:20]} of {len(str(shape))} characters", shape=shape)
for digest in ("", "0" * 63, "0" * 65, "G" * 64, "A" * 64, None, 0, ["0" * 64]):
    leaf_case(f"the digest {digest!r}", sha256=digest)
leaf_case("a digest of something else", BY_CONTENT, sha256="0" * 64)
leaf_case("a digest of nothing", BY_CONTENT, sha256=by_hand.sha256(b""))
leaf_case("another dtype of the same size", BY_CONTENT, dtype="int32")
leaf_case("another shape of the same size", BY_CONTENT, shape=[2, 1])
leaf_case("a shape that is smaller", BY_FILE, shape=[1, 1])
leaf_case("an exabyte", shape=[2**30, 2**28])
leaf_case("a hundred petabytes", BY_FILE, shape=[2**30, 2**25])
leaf_case("one more leaf than the file has", BY_FILE, path="params/bias")
manifest_case("a negative number of bytes", bytes=-1)
manifest_case("an exabyte in all", BY_FILE, bytes=2**60)
manifest_case("no leaves", BY_FILE, leaves={})

# The header of the file of tensors, which must be the one that follows from the manifest

header_case("a header of 2**63 bytes", lambda header: struct.pack("<Q", 2**63) + header[8:])
header_case("a header of 2**64-1 bytes", lambda header: b"\xff" * 8 + header[8:])
header_case("a header of no bytes", lambda header: bytes(8) + header[8:])
header_case("a header of lists", lambda header: header[:8] + b"[" * (len(header) - 8))
header_case("a header that is no UTF-8", lambda header: header[:8] + b"\xff" * (len(header) - 8))
header_case("overlapping tensors", lambda header: header.replace(b"[32,40]", b"[24,32]"))
header_case("a tensor beyond the end", lambda header: header.replace(b"[48,56]", b"[88,96]"))
header_case("a negative offset", lambda header: header.replace(b"[48,56]", b"[-8,56]"))
header_case("a tensor of another name", lambda header: header.replace(b'"key"', b'"yek"'))
header_case("a hole", lambda header: header.replace(b"[32,40]", b"[33,40]"))
header_case(
    "tensors in another order",
    lambda header: (
        header.replace(b'"key"', b'"KEY"').replace(b'"step"', b'"key"').replace(b'"KEY"', b'"step"')
    ),
)
header_case("a tensor of another dtype", lambda header: header.replace(b"F32", b"I32"))
header_case("a tensor twice", lambda header: header.replace(b'"step"', b'"key"', 1) + b" ")
header_case("tabs after the header", lambda header: header.rstrip(b" ").ljust(len(header), b"\t"))

# Tensors

state_case(
    "a parameter of another shape", BY_STATE, **{"params/weight": Array("float32", (1,), ONE)}
)
state_case("one more parameter", BY_STATE, **{"params/more": Array("float32", (1,), ONE)})
state_case("no cursor", BY_FILE, cursor=None)
state_case(
    "a leaf below a leaf",
    BY_ALL,
    **{"slots/a": Array("float32", (1,), ONE), "slots/a/b": Array("float32", (1,), ONE)},
)
state_case(
    "two names for one place",
    BY_STATE,
    **{"slots/a/~2": Array("float32", (1,), ONE), "slots/a/~02": Array("float32", (1,), ONE)},
)
state_case("a terabyte that is claimed", BY_FILE, claimed=2**40)
state_case("a terabyte of holes in a slot that nobody knows", BY_STATE, claimed=2**40, sparse=True)


# Looking at them


def readers(root: Path, folder: Path) -> dict[str, Callable[[], Any]]:
    import fnloop as fl
    from fnloop.cli.app import main

    like = fl.load(root / "honest" / folder.name, like=state())
    other = root / "honest" / folder.name
    return {
        "load": lambda: fl.load(folder, like=like),
        "load folder": lambda: fl.load(folder.parent, like=like),
        "latest": lambda: fl.latest(folder.parent),
        "best": lambda: fl.best(folder.parent),
        "read_manifest": lambda: fl.store.read_manifest(folder),
        "show": lambda: main(["show", str(folder)]),
        "diff": lambda: main(["diff", str(other), str(folder)]),
    }


def state() -> Any:
    import torch

    from fnloop.values.start import start

    return start(torch.nn.Linear(2, 1, bias=False), seed=0)


def outcome(call: Callable[[], Any]) -> str:
    """ "refused: why", "accepted", or "crashed: ..."."""
    from fnloop.store.checkpoint_errors import CheckpointError

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            result = call()
        except CheckpointError as error:
            return f"refused: {error}"
        except BaseException as error:
            return f"crashed: {''.join(traceback.format_exception(error))[-2000:]}"
    if isinstance(result, int) and result:
        return f"refused: {err.getvalue()}"
    if result is None:  # latest and best
        return f"refused: {[str(w.message) for w in warned]}"
    return "accepted"


SUSPICIOUS = (
    "exec",
    "compile",
    "import",
    "code.",
    "pickle.",
    "marshal.",
    "ctypes.",
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "tempfile.",
    "urllib.",
    "webbrowser.",
)
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")
_watched: dict[str, Any] = {"root": None, "seen": []}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    root = _watched["root"]
    if root is None:
        return
    if event == "open":
        path, mode, flags = arguments
        written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        source = str(path).endswith(".py")  # tracebacks show lines of fnloop
        if not written and (source or isinstance(path, int)):
            return
        place = os.path.realpath(os.path.dirname(path))  # no link in it is followed
        follows = os.path.islink(path) and not flags & os.O_NOFOLLOW
        if written or follows or not place.startswith(root):
            _watched["seen"].append(f"open {path} {mode} {flags}")
    elif event.startswith(SUSPICIOUS) and event not in HARMLESS:
        _watched["seen"].append(f"{event} {str(arguments)[:200]}")


def look(root: Path, folders: Mapping[str, Path]) -> None:
    """Print what all readers make of each checkpoint, in this process, not used for more."""
    # Room for threads, which ask for far more than they use.
    limit = _status("VmSize") * 2**20 + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
    signal.alarm(500)
    before = _status("VmRSS")
    for name, folder in folders.items():
        outcomes, seconds = {}, {}
        for reader, call in readers(root, folder).items():
            _watched["root"], began = os.path.realpath(root), time.process_time()
            outcomes[reader] = outcome(call)
            _watched["root"], seconds[reader] = None, time.process_time() - began
        memory, seen, _watched["seen"] = _status("VmHWM") - before, _watched["seen"], []
        row = {"name": name, "outcomes": outcomes, "seconds": seconds, "memory": memory}
        print(json.dumps({**row, "seen": seen}), flush=True)


def _status(entry: str) -> int:
    """An entry of this process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) // 1024
    raise KeyError(entry)


def _forked(work: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if status:
        print(json.dumps({"name": "a process", "died": status}), flush=True)


def run(root: Path) -> None:
    """Build all, look at all: a few in a process, and what may cost more memory alone."""
    sys.addaudithook(_hook)
    import torch

    torch.set_num_threads(1)
    good = honest(root / "honest")
    warm = honest(root / "warm" / "a")
    for _ in range(2):  # what is imported when it is first used is imported now
        for call in readers(root, warm).values():
            outcome(call)
        put(warm, "manifest.json", b"")
    _forked(lambda: look(root, {"honest": good}))
    waiting: dict[str, Path] = {}
    for number, (name, hostile) in enumerate(CORPUS.items()):
        folder = honest(root / str(number))
        try:
            hostile.build(folder)
        except (OSError, AttributeError) as error:  # no device without root, no file so large
            print(json.dumps({"name": name, "skipped": str(error)}), flush=True)
            continue
        if hostile.memory == 64:
            waiting[name] = folder
        else:
            _forked(lambda name=name, folder=folder: look(root, {name: folder}))
        if len(waiting) == 10:
            _forked(lambda folders=waiting: look(root, folders))
            waiting = {}
    _forked(lambda: look(root, waiting))
    for marker in root.rglob(MARKER):
        print(json.dumps({"name": "the marker", "ran": str(marker)}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
