"""``data``: a ``LightningDataModule``, or the loaders of a module, as `fl.Data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fnloop.data.beside import together
from fnloop.data.bundle import Data
from fnloop.data.concatenating import concat
from fnloop.lightning.overridden import is_lightning, overrides
from fnloop.trees.show import short

_LOADERS = {
    "train": ("train_dataloader", "fit"),
    "validate": ("val_dataloader", "fit"),
    "test": ("test_dataloader", "test"),
    "predict": ("predict_dataloader", "predict"),
}

_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def data(given: Any) -> Data:
    """The data of a ``LightningDataModule`` (or of a module with loaders of its own).

    ``prepare_data`` runs once on each machine, ``setup`` in each process, both when a part is first
    read; ``setup`` for each stage that there are loaders for, of a module for ``"fit"`` alone. The
    order of a loader is a function of the state's key and of the epoch, so that a run resumes to
    the bit; `fl.Batches` is what does it without loading again.

    Several training loaders, as a dict or a list, are read side by side as Lightning does
    (``max_size_cycle``: until the longest ends); a ``CombinedLoader`` keeps its mode. Several
    loaders for validation or test are sets by name: ``"0"``, ``"1"``, ... for a list.

    Args:
        given: A ``LightningDataModule``, or a ``LightningModule`` with ``train_dataloader``.

    Raises:
        TypeError: It is neither, or has no ``train_dataloader``.
        ValueError: It changes batches in a hook of its own, which belongs to the module.

    >>> import torch, pytorch_lightning as pl
    >>> class Line(pl.LightningDataModule):
    ...     def setup(self, stage):
    ...         self.x = torch.linspace(0, 1, 6)
    ...     def train_dataloader(self):
    ...         return torch.utils.data.DataLoader(self.x, batch_size=2)
    >>> next(iter(data(Line()).train))
    tensor([0.0000, 0.2000])
    """
    name = type(given).__name__
    if not (is_lightning(given, "LightningDataModule") or is_lightning(given)):
        raise TypeError(
            f"fl.lightning.data takes a LightningDataModule, got {name}. Loaders go into fl.Data "
            "as they are: fl.Data(train=loader, validate=other)."
        )
    if not overrides(given, "train_dataloader"):
        raise TypeError(f"{name} has no train_dataloader, so there is nothing to train on.")
    if is_lightning(given, "LightningDataModule"):
        for hook in (
            "on_before_batch_transfer",
            "transfer_batch_to_device",
            "on_after_batch_transfer",
        ):
            if overrides(given, hook):
                raise ValueError(
                    f"{name} defines {hook}. What changes batches is a part of the step here: "
                    "define it in the LightningModule, where its random numbers follow from the "
                    "state."
                )
    there = {part: own for part, own in _LOADERS.items() if overrides(given, own[0])}

    def setup() -> Data:
        stages = dict.fromkeys([stage for _, stage in there.values()])
        if is_lightning(given):  # a module makes its layers there, once
            stages = {"fit": None}
        for stage in stages if overrides(given, "setup") else ():
            given.setup(stage)
        found = {part: getattr(given, loader)() for part, (loader, _) in there.items()}
        return Data(
            **{
                part: side_by_side(own) if part == "train" else sets(own)
                for part, own in found.items()
            }
        )

    prepare = given.prepare_data if overrides(given, "prepare_data") else None
    return Data(prepare=prepare, setup=setup)


def completed(parts: Data, module: Any) -> Data:
    """Training data, with the other parts of the module's own loaders."""
    found = {
        part: sets(getattr(module, loader)())
        for part, (loader, _) in _LOADERS.items()
        if part != "train" and overrides(module, loader)
    }
    return Data(train=parts.train, **found)


_MODES = {"min_size": "shortest", "max_size": "longest", "max_size_cycle": "restart"}


def side_by_side(loaders: Any) -> Any:
    """Training data of what a ``train_dataloader`` returns: one loader, or several at once."""
    mode = "max_size_cycle"
    if type(loaders).__name__ == "CombinedLoader":
        mode, loaders = loaders._mode, loaders.iterables
    if isinstance(loaders, Mapping):
        parts, listed = {str(name): each for name, each in loaders.items()}, []
    elif isinstance(loaders, (list, tuple)):
        parts, listed = {}, list(loaders)
    else:
        return loaders
    if mode == "sequential":
        return concat(*(listed or parts.values()))
    if any([isinstance(each, (Mapping, list, tuple)) for each in (listed or parts.values())]):
        raise TypeError(
            f"The loaders {short(loaders)} are nested; they are read side by side from one dict or "
            "one list: fl.data.together(a=loader, b=other)."
        )
    return together(*listed, mode=_MODES[mode], **parts)  # type: ignore[arg-type]


def sets(loaders: Any) -> Any:
    """Evaluation data: one loader, or several by name, or as a ``CombinedLoader`` reads them."""
    if type(loaders).__name__ == "CombinedLoader":
        if loaders._mode != "sequential":
            return side_by_side(loaders)
        loaders = loaders.iterables
    if isinstance(loaders, (list, tuple)):
        loaders = {str(i): each for i, each in enumerate(loaders)}
    if isinstance(loaders, Mapping) and len(loaders) == 1:
        return next(iter(loaders.values()))
    return dict(loaders) if isinstance(loaders, Mapping) else loaders
