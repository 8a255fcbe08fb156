"""Tensors by name in one file: the safetensors format, streamed.

Tensors are written one at a time, so saving needs no second copy of the state; another thread
computes the digests meanwhile. Any safetensors reader opens the file.

Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from fnloop.store.checkpoint_errors import CheckpointError, DamagedError
from fnloop.store.files import Files, Output, write_all
from fnloop.store.helper import Helper
from fnloop.store.leaves import CODES, DTYPES, Leaf
from fnloop.store.patience import opened
from fnloop.store.task import Task

P = ParamSpec("P")
T = TypeVar("T")

_PIECE = 8 * 2**20  # bytes that are read and hashed at a time
_SMALL = 2**16  # up to so many bytes are hashed in the same thread


def check_storable(path: str, leaf: Any) -> Tensor:
    """The leaf as a detached tensor.

    Raises:
        TypeError: It is no tensor, or no plain dense one with values.
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


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Number of bytes that `write` writes."""
    return bytes_of(_leaves(tensors))


def bytes_of(leaves: Mapping[str, Leaf]) -> int:
    """Size in bytes of a file with these leaves."""
    return len(_header(leaves)) + _data_of(leaves)


def write(
    output: Output, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors`.

    Args:
        output: An open file.
        tensors: By name.
        metadata: Text by name, for other readers; `read` here refuses a file with metadata.
    """
    leaves = _leaves(tensors)
    small = bytearray(_header(leaves, metadata))  # a buffer: each write is a system call
    for path in _order(leaves):
        data = _bytes(tensors[path])
        if len(small) + data.nbytes <= _PIECE // 8:
            small += memoryview(data)
            continue
        write_all(output, small)
        write_all(output, data)
        small = bytearray()
    write_all(output, small)


def digests(tensors: Mapping[str, Tensor]) -> dict[str, Leaf]:
    """The manifest's entries for `tensors`."""
    return {
        path: leaf._replace(sha256=hashlib.sha256(_bytes(tensors[path])).hexdigest())
        for path, leaf in _leaves(tensors).items()
    }


def check(files: Files, file: Path, tensors: Mapping[str, Tensor]) -> dict[str, Leaf]:
    """Read a written file back, compare it with `tensors`, and compute digests.

    Raises:
        DamagedError: The file differs from what was written.
    """
    leaves, taken = _leaves(tensors), dict[str, Task[str]]()
    with opened(files, file) as stream, Helper() as helper:
        _check_header(stream, file, leaves)
        pieces = _reused()
        for path in _order(leaves):
            data, digest = _bytes(tensors[path]), hashlib.sha256()
            for start in range(0, data.nbytes, _PIECE):
                expected = data[start : start + _PIECE]
                piece, used = next(pieces)
                piece = piece[: expected.nbytes]
                _read_into(stream, memoryview(piece))
                if not (piece == expected).all():  # `array_equal` swallows an alarm's exception
                    raise DamagedError(
                        f"{file}: the bytes of tensor {path!r} are not those in memory: the disk "
                        "has lost some, or the tensor was changed in place while it was saved"
                    )
                used.append(_later(helper, data.nbytes, digest.update, piece))
            taken[path] = _later(helper, data.nbytes, digest.hexdigest)
        return {path: leaf._replace(sha256=taken[path].result()) for path, leaf in leaves.items()}


def read(
    files: Files,
    file: Path,
    leaves: Mapping[str, Leaf],
    only: Callable[[str], bool] = lambda path: True,
) -> Iterator[tuple[str, Tensor]]:
    """Read and verify leaves, each into its own memory, in the order of the file.

    Args:
        files: The file system.
        file: The file.
        leaves: The manifest's entries for all its leaves.
        only: Whether to read the leaf of a path; default all.

    Raises:
        DamagedError: The file is missing, or differs from the manifest.
        UnreadableError: It cannot be read now.
    """
    with opened(files, file) as stream, Helper() as helper:
        position = _check_header(stream, file, leaves)
        waiting: deque[tuple[str, Tensor, Task[str]]] = deque()
        for path in _order(leaves):
            begin, position = position, position + leaves[path].nbytes
            if only(path):
                stream.seek(begin)
                memory = memory_for(file, path, leaves[path].nbytes)
                waiting.append((path, memory, _fill(stream, memory.numpy(), helper)))
            if len(waiting) > 2:  # hash some while others are read
                yield _checked(file, leaves, *waiting.popleft())
        for entry in waiting:
            yield _checked(file, leaves, *entry)


def _check_header(stream: Any, file: Path, leaves: Mapping[str, Leaf]) -> int:
    """Check the header, whose bytes follow from the manifest; the offset of the first tensor."""
    header = _header(leaves)
    expected = len(header) + _data_of(leaves)
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


def _fill(stream: Any, memory: Any, helper: Helper) -> Task[str]:
    """Read a leaf into `memory`, and hash it meanwhile."""
    digest = hashlib.sha256()
    for start in range(0, memory.nbytes, _PIECE):
        piece = memory[start : start + _PIECE]
        _read_into(stream, memoryview(piece))
        _later(helper, memory.nbytes, digest.update, piece)
    return _later(helper, memory.nbytes, digest.hexdigest)


def _later(
    helper: Helper, nbytes: int, call: Callable[P, T], *arguments: P.args, **named: P.kwargs
) -> Task[T]:
    """Call it in the other thread if the tensor is large; else here."""
    if nbytes > _SMALL:
        return helper.later(call, *arguments, **named)
    job = Task(functools.partial(call, *arguments, **named))
    job.run()
    return job


def _reused() -> Iterator[tuple[Any, list[Task[None]]]]:
    """Buffers in turn, each when the hashing of its last contents is done."""
    pieces = [(np.empty(_PIECE, np.uint8), list[Task[None]]()) for _ in range(3)]
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
    file: Path, leaves: Mapping[str, Leaf], path: str, memory: Tensor, digest: Task[str]
) -> tuple[str, Tensor]:
    leaf = leaves[path]
    if digest.result() != leaf.sha256:
        raise DamagedError(
            f"{file}: the bytes of tensor {path!r} are not those that were saved (their sha256 "
            "differs): the file is damaged."
        )
    # Kernels expect bools to be 0 or 1; the bytes of a forged file may be others.
    values = memory.ne(0) if leaf.dtype == torch.bool else memory.view(leaf.dtype)
    return path, values.reshape(leaf.shape)


def memory_for(file: Path, path: str, nbytes: int) -> Tensor:
    """Memory for a tensor of a file: bytes.

    Raises:
        CheckpointError: There is not so much.
    """
    try:
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    except RuntimeError as error:
        raise CheckpointError(
            f"{file}: there is no memory for the tensor {path!r}, which has {nbytes} bytes."
        ) from error


def _leaves(tensors: Mapping[str, Tensor]) -> dict[str, Leaf]:
    return {path: Leaf(t.dtype, tuple(t.shape), "") for path, t in tensors.items()}


def _data_of(leaves: Mapping[str, Leaf]) -> int:
    return sum(leaf.nbytes for leaf in leaves.values())


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
        if code is None:  # safetensors lacks this dtype: store bytes; the manifest has the dtype
            code, shape = "U8", [leaf.nbytes]
        header[path] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    """The tensor's bytes, row-major, on the CPU; not copied if they are so already."""
    dense = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # Not reshape(-1): a single element may keep a stride of 2, which view() refuses.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy()
