"""How many objects refer to a tensor and to its memory."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.tracing import without_transforms

storage_of: Callable[[Tensor], Any] = Tensor.untyped_storage
"""The tensor's storage; its attribute ``_cdata`` is the address of the storage object."""

users_of: Callable[[int], int] = torch._C._storage_Use_Count  # pyright: ignore
"""The reference count of the storage at an address: `LONE`, plus one per view."""

with without_transforms():  # fnloop may be imported inside one
    _lone = torch.empty(1, device="cpu")
    LONE = users_of(storage_of(_lone)._cdata)
"""The result of `users_of` for a storage that only one tensor uses."""

holders_of: Callable[[Tensor], int] = torch.Tensor._use_count  # pyright: ignore
"""PyTorch's reference count of a tensor: one for Python, one per view of it, and so on."""
