"""Tensors by name in one file: the safetensors format, written and read in a stream.

A tensor at a time is on its way, so that saving costs no second copy of the state; digests are
taken by another thread while the bytes move. Any safetensors reader opens the file.

Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnloop.store.errors import CheckpointError, DamagedError
from fnloop.store.files import Files, Output, write_all
from fnloop.store.leaves import CODES, DTYPES
from fnloop.store.leaves import Leaf as Leaf

_PIECE = 8 * 2**20  # bytes that are read, and whose digest is taken, at once
_SMALL = 2**16  # bytes that are not worth handing to another thread


def check_storable(path: str, leaf: Any) -> Tensor:
    """The leaf as a detached tensor.

    Raises:
        TypeError: It is none, or one whose values are not at hand.
    """
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"The state's leaf {path!r} is {type(leaf).__name__} {leaf!r}, and only tensors are "
            "saved. Every leaf of a State is a tensor: put torch.tensor(...) there."
        )
    leaf = leaf.detach()
    if type(leaf) is not Tensor or leaf.layout != torch.strided or leaf.is_meta:
        raise TypeError(
            f"The state's leaf {path!r} is a {type(leaf).__name__} ({leaf.layout}, on "
            f"{leaf.device}), and only plain dense tensors are saved."
        )
    if leaf.dtype not in DTYPES.values():
        raise TypeError(f"The state's leaf {path!r} has dtype {leaf.dtype}, which cannot be saved.")
    return leaf


def size_of(tensors: Mapping[str, Tensor | Leaf]) -> int:
    """How many bytes `write` writes."""
    leaves = {path: Leaf(t.dtype, tuple(t.shape), "") for path, t in tensors.items()}
    return len(_header(leaves)) + sum(leaf.nbytes for leaf in leaves.values())


def write(
    output: Output, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> dict[str, Leaf]:
    """Write `tensors`, and say what was written.

    Args:
        output: An open file.
        tensors: By name.
        metadata: Text by name, for other readers; a file that has some cannot be `read` here.
    """
    leaves = {path: Leaf(t.dtype, tuple(t.shape), "") for path, t in tensors.items()}
    small = bytearray(_header(leaves, metadata))  # collected, as each write costs a system call
    digests: dict[str, Future[str]] = {}
    copies: deque[Future[str]] = deque()
    with ThreadPoolExecutor(1, "fnloop-digest") as pool:
        for path in _order(leaves):
            data = _bytes(tensors[path])
            digests[path] = pool.submit(_sha256, data)
            if len(small) + data.nbytes <= _PIECE // 8:
                small += memoryview(data)
                continue
            for part in (small, data):
                write_all(output, part)
            small = bytearray()
            copies.append(digests[path])
            if len(copies) > 2:  # memory that is not the state's own is to be let go
                copies.popleft().result()
        write_all(output, small)
    return {path: leaf._replace(sha256=digests[path].result()) for path, leaf in leaves.items()}


def read(
    files: Files,
    file: Path,
    leaves: Mapping[str, Leaf],
    only: Callable[[str], bool] = lambda path: True,
) -> Iterator[tuple[str, Tensor]]:
    """Read and verify leaves, each into memory of its own, in the order of the file.

    Args:
        files: What reads.
        file: Which file.
        leaves: All that the manifest says is in it.
        only: Which of them are read; default all.

    Raises:
        DamagedError: The file is missing or is not what the manifest says.
    """
    for path, memory in _verified(files, file, leaves, only, keep=True):
        dtype, shape, _ = leaves[path]
        # A bool is 0 or 1 to every kernel, and made-up bytes need not be.
        yield path, (memory.ne(0) if dtype == torch.bool else memory.view(dtype)).reshape(shape)


def verify(files: Files, file: Path, leaves: Mapping[str, Leaf]) -> None:
    """Read a file and compare its digests; no tensor is kept.

    Raises:
        DamagedError: The file is missing or is not what the manifest says.
    """
    for _ in _verified(files, file, leaves, lambda path: True, keep=False):
        pass


def _verified(
    files: Files,
    file: Path,
    leaves: Mapping[str, Leaf],
    only: Callable[[str], bool],
    keep: bool,
) -> Iterator[tuple[str, Tensor]]:
    """Leaves as bytes; the next ones are read while another thread takes the digests."""
    try:
        with files.open(file) as stream, ThreadPoolExecutor(1, "fnloop-digest") as pool:
            position = _check_header(stream, file, leaves)
            reused = _reused() if not keep else None
            waiting: deque[tuple[str, Tensor, Future[str]]] = deque()
            for path in _order(leaves):
                begin, position = position, position + leaves[path].nbytes
                if only(path):
                    stream.seek(begin)
                    memory = _memory(file, path, leaves[path].nbytes if keep else 0)
                    digest = _fill(stream, leaves[path].nbytes, memory, reused, pool)
                    waiting.append((path, memory, digest))
                if len(waiting) > 2:
                    yield _checked(file, leaves, *waiting.popleft())
            for entry in waiting:
                yield _checked(file, leaves, *entry)
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise DamagedError(f"{file} cannot be read: {why}.") from error


def _check_header(stream: Any, file: Path, leaves: Mapping[str, Leaf]) -> int:
    """Where the first tensor begins. The header follows from the manifest, byte by byte."""
    header = _header(leaves)
    expected = len(header) + sum(leaf.nbytes for leaf in leaves.values())
    size = stream.seek(0, io.SEEK_END)
    if size != expected:
        raise DamagedError(
            f"{file} has {size} bytes, and its manifest says {expected}: it is truncated, or not "
            "this checkpoint's."
        )
    stream.seek(0)
    found = bytearray(len(header))
    _read_into(stream, memoryview(found))
    if bytes(found) != header:
        raise DamagedError(
            f"{file} does not begin with the safetensors header that its manifest describes: it "
            "is damaged, or not this checkpoint's."
        )
    return len(header)


def _fill(
    stream: Any, nbytes: int, memory: Tensor, reused: Any, pool: ThreadPoolExecutor
) -> Future[str]:
    """Read a leaf into `memory`, or into reused memory, and take its digest meanwhile."""
    if nbytes <= _SMALL:
        small: Any = bytearray(nbytes) if reused is not None else memory.numpy()
        _read_into(stream, memoryview(small))
        done: Future[str] = Future()
        done.set_result(_sha256(small))
        return done
    digest = hashlib.sha256()
    for start in range(0, nbytes, _PIECE):
        length = min(_PIECE, nbytes - start)
        if reused is None:
            piece: Any = memory[start : start + length].numpy()
            _read_into(stream, memoryview(piece))
            pool.submit(digest.update, piece)
        else:
            buffer, free = next(reused)
            _read_into(stream, buffer[:length])
            free.append(pool.submit(digest.update, buffer[:length]))
    return pool.submit(digest.hexdigest)


def _memory(file: Path, path: str, nbytes: int) -> Tensor:
    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file}: there is no memory for the tensor {path!r}, which has {nbytes} bytes."
        ) from error


def _reused() -> Iterator[tuple[memoryview, list[Future[None]]]]:
    """Pieces of memory in turn, each as soon as the digest of what was in it is taken."""
    pieces = [(memoryview(bytearray(_PIECE)), list[Future[None]]()) for _ in range(3)]
    while True:
        for piece, used in pieces:
            while used:
                used.pop().result()
            yield piece, used


def _read_into(stream: Any, memory: memoryview) -> None:
    while memory:
        got = stream.readinto(memory)
        if not got:
            raise EOFError("it ends too early")
        memory = memory[got:]


def _checked(
    file: Path, leaves: Mapping[str, Leaf], path: str, memory: Tensor, digest: Future[str]
) -> tuple[str, Tensor]:
    if digest.result() != leaves[path].sha256:
        raise DamagedError(
            f"{file}: the bytes of tensor {path!r} are not those that were saved (their sha256 "
            "differs): the file is damaged."
        )
    return path, memory


def _order(leaves: Mapping[str, Leaf]) -> list[str]:
    # Wide elements first, so that each tensor starts at a multiple of its element's size.
    return sorted(leaves, key=lambda path: (-leaves[path].dtype.itemsize, path))


def _header(leaves: Mapping[str, Leaf], metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for path in _order(leaves):
        leaf = leaves[path]
        start, end = end, end + leaf.nbytes
        code, shape = CODES.get(leaf.dtype), list(leaf.shape)
        if code is None:  # safetensors has no name for it: its bytes, and the manifest's dtype
            code, shape = "U8", [leaf.nbytes]
        header[path] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes, row-major, on the CPU; without a copy where they are there already."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Not reshape(-1): a single element may keep a stride of 2, which view() refuses.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()


def _sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
