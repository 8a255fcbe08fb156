"""``read``: weights and hyperparameters of a checkpoint that Lightning wrote."""

from __future__ import annotations

import os
import pickle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.names.keywords import explained
from fnloop.store.checkpoint_errors import CheckpointError


class SavedModule(NamedTuple):
    """What `read` found.

    Attributes:
        weights: Parameters and buffers by name.
        hyperparameters: What ``save_hyperparameters`` kept: the module's arguments.
        epoch: Epochs done; None if it is not there.
        step: Optimizer steps done; None if it is not there.
    """

    weights: dict[str, Tensor]
    hyperparameters: dict[str, Any]
    epoch: int | None = None
    step: int | None = None


@explained
def read(path: str | os.PathLike[str]) -> SavedModule:
    """Read a ``.ckpt`` of Lightning, on the CPU, without running code from it.

    ``module = Net(**saved.hyperparameters)`` and ``module.load_state_dict(saved.weights)`` make the
    module again, and `fl.lightning.step` goes on from it. Optimizers and schedulers begin anew:
    theirs are states of objects, with other contents.

    Args:
        path: The file.

    Raises:
        CheckpointError: It holds more than tensors and plain values, or no ``"state_dict"``.

    >>> import tempfile
    >>> contents = {"state_dict": {"w": torch.ones(1)}, "hyper_parameters": {"lr": 0.1}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(contents, f"{folder}/last.ckpt")
    ...     read(f"{folder}/last.ckpt")
    SavedModule(weights={'w': tensor([1.])}, hyperparameters={'lr': 0.1}, epoch=None, step=None)
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{os.fspath(path)} holds more than tensors and plain values, such as hyperparameters "
            f"that are objects, and to read these would run code from the file: {error}. Where it "
            "was written, save its weights alone: torch.save(module.state_dict(), path), which "
            "fl.store.load_state_dict reads."
        ) from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise CheckpointError(
            f"{os.fspath(path)} is no checkpoint of Lightning: it has no 'state_dict'. Weights of "
            "other programs are read by fl.store.load_state_dict(path, like=state)."
        )
    hyperparameters = dict(found.get("hyper_parameters") or {})
    return SavedModule(
        dict(found["state_dict"]), hyperparameters, found.get("epoch"), found.get("global_step")
    )
