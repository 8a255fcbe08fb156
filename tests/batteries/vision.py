"""Models of timm and torchvision."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .entry import Entry


def timm(name: str, **settings: Any) -> nn.Module:
    """A model of timm with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=3, **settings)


def mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(num_classes=3, img_size=32, patch_size=8, num_blocks=2, embed_dim=16)


def torchvision(name: str, **settings: Any) -> nn.Module:
    """A model of torchvision with random weights, by its name or that of its class."""
    from torchvision import models

    return operator.attrgetter(name)(models)(num_classes=3, **settings)


def pictures(size: int = 32, examples: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(examples, 3, size, size), torch.randint(3, (examples,))


def large_pictures() -> tuple[torch.Tensor, torch.Tensor]:
    return pictures(64)


def scenes() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 32, 32), torch.randint(3, (4, 32, 32))


def class_loss(model: Any, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def with_helpers_loss(model: Any, batch: Any) -> torch.Tensor:
    """The loss of a model with auxiliary classifiers."""
    x, y = batch
    out = model(x)
    return F.cross_entropy(out.logits, y) + 0.3 * sum(
        F.cross_entropy(each, y) for each in (out.aux_logits1, out.aux_logits2)
    )


def scene_loss(model: Any, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x)["out"], y)


def _timm(name: str, tests: str, *, batch: Any = pictures, more: Any = None, **how: Any) -> Entry:
    return Entry(
        f"timm {name}", "timm", lambda: timm(name, **(more or {})), batch, class_loss, tests, **how
    )


def _torchvision(
    name: str, tests: str, *, batch: Any = pictures, loss: Any = class_loss, more: Any = None,
    of: str = "", **how: Any,
) -> Entry:  # fmt: skip
    def build() -> nn.Module:
        return torchvision(of or name, **(more or {}))

    return Entry(name, "torchvision", build, batch, loss, tests, **how)


STATISTICS: dict[str, Any] = {"uncut": "batch statistics", "double": True}

VISION = [
    _timm("resnet10t", "batch statistics", **STATISTICS),
    _timm("test_efficientnet", "batch statistics", **STATISTICS),
    _timm("test_vit", "a picture in patches", batch=large_pictures, more={"img_size": 64}),
    _timm("test_convnext", "layer scale"),
    Entry("timm mixer", "timm", mixer, pictures, class_loss, "only linear layers"),
    _torchvision("resnet18", "batch statistics", **STATISTICS),
    _torchvision("mobilenet_v3_small", "batch statistics, squeeze and excitation",
                 more={"dropout": 0.0}, **STATISTICS),
    _torchvision("shufflenet", "batch statistics, channels swapped", of="ShuffleNetV2", more={
        "stages_repeats": [1, 1, 1], "stages_out_channels": [8, 16, 32, 64, 64]}, **STATISTICS),
    _torchvision("densenet", "features joined", of="DenseNet", more={
        "block_config": (2, 2), "growth_rate": 4, "num_init_features": 8}, **STATISTICS),
    _torchvision("googlenet", "auxiliary classifiers", batch=large_pictures, loss=with_helpers_loss,
                 more={"aux_logits": True, "init_weights": False, "dropout": 0.0,
                       "dropout_aux": 0.0}, **STATISTICS),
    _torchvision("swin transformer", "shifted windows", of="SwinTransformer", more={
        "patch_size": [4, 4], "embed_dim": 8, "depths": [2], "num_heads": [2],
        "window_size": [4, 4], "stochastic_depth_prob": 0.0}),
    _torchvision("segmentation", "a class for each pixel", batch=scenes, loss=scene_loss,
                 of="segmentation.lraspp_mobilenet_v3_large", more={"weights_backbone": None},
                 **STATISTICS),
]  # fmt: skip
