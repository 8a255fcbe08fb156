"""DTensors: tensors of which each rank computes a part, as a model sees them that ranks share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator
from typing import Any

import optree
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def shared(slice_: Tensor, axis: Any, dim: int | None) -> Tensor:
    """The whole tensor of which each rank has a slice along `dim`, or all if that is None.

    Its gradient comes back as that of the slice.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    placement = Replicate() if dim is None else Shard(dim)
    return DTensor.from_local(slice_, axis, [placement], run_check=False)


@contextlib.contextmanager
def sharing() -> Generator[None]:
    """A context manager in which tensors that are not shared are the same on all ranks.

    Attention is composed of products on a CPU: its kernel there does not say how to be divided.
    """
    from torch.distributed.tensor.experimental import implicit_replication

    math = contextlib.nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    with warnings.catch_warnings(), implicit_replication(), math:
        # Of plain tensors with one value, such as the count in a mean.
        warnings.filterwarnings("ignore", message="Found a non-scalar tensor with numel=1")
        yield


def whole(tree: Any) -> Any:
    """The same, with whole plain tensors for those that are shared."""
    from torch.distributed.tensor import DTensor

    return optree.tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, tree)
