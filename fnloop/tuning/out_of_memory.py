"""Whether an error says that there is not enough memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_WORDS = (
    "can't allocate memory",  # DefaultCPUAllocator, on Linux
    "not enough memory",  # DefaultCPUAllocator, elsewhere
    "out of memory",  # CUDA, MPS and others, where the error has no class of its own
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, or an error that it was made of, says that memory has run out.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    return any(
        isinstance(each, MemoryError | torch.OutOfMemoryError)
        or (isinstance(each, RuntimeError) and any(words in str(each) for words in _WORDS))
        for each in _causes(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
