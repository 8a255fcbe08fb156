"""Errors for code that cannot be part of one graph: the user's line, and a fix."""

from __future__ import annotations

import contextlib
import linecache
import traceback
from pathlib import Path
from typing import Any

import torch

from fnloop._torch.draws import RandomnessError
from fnloop._torch.graph import DATA_DEPENDENT, DYNAMIC_SHAPE, NO_META
from fnloop.transforms.cache_errors import cache_fault, remedy

_HOMES = (
    Path(torch.__file__).parent,
    Path(__file__).parents[1],
    Path(contextlib.__file__).parent,  # the standard library, without its site-packages
)


class CompileError(RuntimeError):
    """A step cannot be compiled into one graph; the message names the line and a fix."""


def translated(error: Exception) -> Exception:
    """`error` as a `CompileError` if recording caused it; otherwise `error` itself."""
    if isinstance(error, DATA_DEPENDENT) or "FakeTensor.__format__" in str(error):
        what = (
            "a value of a tensor is asked for (by item(), float(), a format, an if), and values "
            "are known only when the step runs"
        )
        fix = (
            "Choose with torch.where instead of an if; report numbers as metrics; use a tensor "
            "where a Python number is computed from one."
        )
    elif isinstance(error, DYNAMIC_SHAPE):
        what = "the shape of a result depends on values (a mask as an index, nonzero, unique)"
        fix = (
            "Keep the shape and weigh: return fl.Mean((w * losses).sum(), w.sum()) with w = "
            "mask.float()."
        )
    elif isinstance(error, NO_META):
        what = f"an operation does not say what shape its result has: {error}"
        fix = "Give it a fake implementation: torch.library.register_fake."
    elif isinstance(error, RandomnessError):
        what, fix = str(error), ""
    elif "InvalidCxxCompiler" in repr(error):
        what, fix = "there is no C++ compiler", "Install one (g++), or say where it is: CXX=..."
    elif "numpy" in str(error) and isinstance(error, (RuntimeError, TypeError)):
        what = f"a tensor is taken out of PyTorch ({str(error).rstrip('.')})"
        fix = "Compute it in PyTorch, or after the step, from its metrics."
    elif fault := cache_fault(error):
        what, fix = f"its cache fails ({fault})", remedy()
    else:
        return error
    text = f"fl.compile makes one graph of a step, and cannot here: {what}."
    if where := _users_line(error):
        text += f"\n  {where}"
    text += f"\n{fix} Without fl.compile the step runs as it is.".replace("\n ", "\n")
    translation = CompileError(text)
    for note in getattr(error, "__notes__", ()):
        translation.add_note(note)
    return translation


def _users_line(error: Exception) -> str:
    """The innermost line that is neither PyTorch's nor fnloop's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        *ours, library = _HOMES
        standard = library in path.parents and "site-packages" not in path.parts
        inside = standard or any(home in path.parents for home in ours)
        if not inside and frame.filename[:1] != "<":
            line = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
            return f"{path.name}, line {frame.lineno}, in {frame.name}: {line}"
    return ""


def check_leaf(path: str, leaf: Any) -> None:
    """Refuse a leaf that a graph cannot take: only dense tensors and plain values are allowed."""
    if isinstance(leaf, torch.Tensor):
        if leaf.layout is not torch.strided:
            raise CompileError(
                f"A compiled step takes dense tensors, but {path or 'the batch'} is of "
                f"{leaf.layout}: make it dense before the step, or run it without fl.compile."
            )
        if leaf.requires_grad:
            raise CompileError(
                f"{path or 'The batch'} requires gradients, but nothing can be differentiated "
                "through a compiled step: detach it, or run the step without fl.compile."
            )
        return
    if isinstance(leaf, (int, float, complex, str, bytes, torch.dtype, torch.device)):
        return
    kind = f"{type(leaf).__module__}.{type(leaf).__name__}".removeprefix("builtins.")
    fix = (
        "make it a tensor before the step: torch.as_tensor(array)"
        if kind == "numpy.ndarray"
        else "make its class a tree (fl.tree), or leave it out of the batch"
    )
    raise CompileError(
        f"A compiled step takes batches of tensors, but {path or 'the batch'} is a {kind}: {fix}."
    )
