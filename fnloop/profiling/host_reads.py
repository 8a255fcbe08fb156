"""Values of tensors that Python reads within a step, and the lines of the user's that do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fnloop.names.whose import is_fnloop, is_users

_TYPED = ("<stdin>", "<ipython", "<doctest")
_HERE = str(Path(__file__).parent)


class HostRead(NamedTuple):
    """A value of a tensor that the user's code reads within the step: ``loss.item()``.

    Attributes:
        where: Such as ``"train.py:12"``.
        times: In a step.
        operator: What reads it.
    """

    where: str
    times: int
    operator: str


def is_read(operator: str, args: tuple[Any, ...], kwargs: Any) -> bool:
    """Whether an operation gives a value, or a size that depends on one, to Python."""
    if operator in ("_local_scalar_dense", "is_nonzero", "equal"):
        return True
    on_device = bool(args) and isinstance(args[0], Tensor) and args[0].device.type != "cpu"
    if operator in ("nonzero", "unique_dim", "_unique2", "masked_select"):
        return on_device
    return operator == "_to_copy" and on_device and str((kwargs or {}).get("device")) == "cpu"


def user_line(outermost: Callable[..., Any]) -> str | None:
    """The user's line that runs within the step; None if fnloop runs, which that line has called.

    Metrics are not meant: to read one, ``float(metrics["loss"])``, is what the line is for.

    Args:
        outermost: A function that has called the step; lines outside of it are not looked at.
    """
    code, frame = outermost.__code__, sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        kind = _whose(frame.f_code.co_filename)
        if kind == "user":
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        if kind == "fnloop":
            return None
        frame = frame.f_back
    return None


@functools.cache
def _whose(file: str) -> str:
    if is_users(file) or file.startswith(_TYPED):
        return "user"
    if not is_fnloop(file) or file.startswith(_HERE):
        return ""
    path = Path(file)
    if path.parent.name == "_torch":  # modes, which are between an operation and its line
        return ""
    return "" if "metrics" in (path.stem, path.parent.name) or path.stem == "merging" else "fnloop"
