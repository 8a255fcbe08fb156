"""What the ranges in a trace are called."""

from __future__ import annotations

STEP = "fnloop step"
STAGE = "stage: "
MODULE = "module: "


def trace_name(kind: str, name: str) -> str:
    """The name of a range; PyTorch's profiler writes names into JSON as they are.

    >>> trace_name(STAGE, 'amp("fp16")')
    "stage: amp('fp16')"
    """
    plain = name.replace('"', "'").replace("\\", "/")
    return kind + "".join(c if c.isprintable() else " " for c in plain)
