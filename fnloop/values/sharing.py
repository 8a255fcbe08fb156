"""``Sharing``: a model runs on parameters that are cut among the ranks that share it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop._torch import parallel
from fnloop._torch.tracing import opaque
from fnloop.values.slices import Slices


class Sharing:
    """Parameters of which each rank has slices; operations compute each rank's part of them.

    Args:
        layout: The parameters' layout.
        slices: This rank's slices by name.

    Attributes:
        params: The whole parameters by name, of which each rank has a part.

    Raises:
        ValueError: The step is compiled.
    """

    def __init__(self, layout: Slices, slices: Mapping[str, Tensor]) -> None:
        if opaque():
            raise ValueError(
                'A step whose ranks share a model (the plan "tensor") cannot be compiled, vmapped '
                'or differentiated: call it without fl.compile. The plans "replicate", "zero2" and '
                '"zero3" compile.'
            )
        grid = layout.mesh.grid
        axis = grid[grid.mesh_dim_names[1]]
        self.params: dict[str, Tensor] = {
            name: parallel.shared(_logical(slices[name], name in layout.pairs), axis, dim)
            for name, dim in zip(layout.names, layout.dims, strict=True)
        }

    def running(self) -> contextlib.AbstractContextManager[Any]:
        """A context manager for the model's forward and backward pass."""
        return parallel.sharing()

    def result(self, result: Any) -> Any:
        """What the loss function returns, whole on each rank."""
        return parallel.whole(result)

    def weigh(self, weight: Tensor) -> None:
        """Nothing: these ranks have one part of the batch, and its weight."""


def _logical(tensor: Tensor, pair: bool) -> Tensor:
    return torch.view_as_complex(tensor) if pair else tensor
