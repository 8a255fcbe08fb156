"""Operations a second that devices can do at most, by their makers' data sheets."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Products = Literal["bf16", "fp16", "tf32", "fp32"]
"""In what matrices are multiplied."""

_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H100 PCIe", {"half": 756e12, "tf32": 378e12, "fp32": 51e12}),
    ("H100", {"half": 989.4e12, "tf32": 494.7e12, "fp32": 67e12}),
    ("H200", {"half": 989.4e12, "tf32": 494.7e12, "fp32": 67e12}),
    ("A100", {"half": 312e12, "tf32": 156e12, "fp32": 19.5e12}),
    ("L40S", {"half": 362e12, "tf32": 183e12, "fp32": 91.6e12}),
    ("L4", {"half": 121e12, "tf32": 60e12, "fp32": 30.3e12}),
    ("A10G", {"half": 70e12, "tf32": 35e12, "fp32": 35e12}),
    ("V100-SXM2", {"fp16": 125e12, "fp32": 15.7e12}),
    ("T4", {"fp16": 65e12, "fp32": 8.1e12}),
)
"""Without sparsity; ``half`` is bf16 and fp16. The first that a device's name contains counts.

NVIDIA's data sheets: H100 Tensor Core GPU (2023), H200 (2024), A100 (2021), L40S (2023), L4 (2023),
V100 (2020), T4 (2019); for the A10G, AWS's page of G5 instances. Those that give numbers with
sparsity are halved.
"""


def peak_flops(device: torch.device, dtype: Products | None) -> float | None:
    """Operations a second of a device that multiplies in `dtype`; None if they are not known.

    Args:
        device: The device.
        dtype: ``"bf16"``, ``"fp16"``, ``"tf32"`` or ``"fp32"``; None for one that is not known.

    Raises:
        ValueError: There is no such dtype.

    >>> peak_flops(torch.device("cpu"), "bf16")
    >>> named_peak("NVIDIA H100 80GB HBM3", "bf16")
    989400000000000.0
    """
    if dtype is not None and dtype not in get_args(Products):
        known = ", ".join(f'"{name}"' for name in get_args(Products))
        raise ValueError(f"throughput(dtype={dtype!r}): expected one of {known}.")
    if dtype is None or device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device), dtype)


def named_peak(name: str, dtype: Products) -> float | None:
    """The same for the name of a device, as torch gives it."""
    for part, peaks in _PEAKS:
        if part in name:
            return peaks.get(dtype, peaks.get("half") if dtype in ("bf16", "fp16") else None)
    return None
