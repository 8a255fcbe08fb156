"""Let torchvision be imported where its compiled operators do not load."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_libraries: list[torch.library.Library] = []
"""The declared names live as long as this object."""


def declare() -> None:
    """Declare the operators that torchvision describes as it is imported, if they are not there.

    They are built for one build of PyTorch and do not load beside another (CUDA's beside the
    CPU's); then ``import torchvision`` fails with "operator torchvision::nms does not exist", and
    with it timm and parts of transformers. With the names declared it works. Only the models that
    detect objects call these operators.
    """
    if _libraries or _load():
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)


def _load() -> bool:
    """Whether torchvision's operators are there, or are not needed."""
    found = importlib.util.find_spec("torchvision")  # without importing it
    if found is None or found.origin is None:
        return True
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except (ImportError, OSError):
        return False
    return True
