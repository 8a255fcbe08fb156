"""Errors for code that cannot be part of one graph: the user's line, and a fix."""

from __future__ import annotations

import contextlib
import linecache
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fnloop._torch import autograd
from fnloop._torch.draws import RandomnessError
from fnloop._torch.graph import DATA_DEPENDENT, DYNAMIC_SHAPE, NO_META, packet_name

_HOMES = (
    Path(torch.__file__).parent,
    Path(__file__).parents[1],
    Path(contextlib.__file__).parent,  # the standard library, without its site-packages
)


class CompileError(RuntimeError):
    """A step cannot be compiled into one graph; the message names the line and a fix."""


class _Advice(NamedTuple):
    """What cannot be recorded, and what to do instead."""

    what: str
    fix: str


_VALUE = _Advice(
    "a value of a tensor is asked for (by item(), float(), a format, an if), and values are known "
    "only when the step runs",
    "Choose with torch.where instead of an if; report numbers as metrics; use a tensor where a "
    "Python number is computed from one.",
)
_CLASSES = _Advice(
    "a value of a tensor is asked for: one_hot looks for the largest class",
    "Say how many classes there are: F.one_hot(y, n).",
)
_SHAPE = _Advice(
    "the shape of a result depends on values (a mask as an index, nonzero, unique)",
    "Keep the shape and weigh: return fl.Mean((w * losses).sum(), w.sum()) with w = mask.float().",
)
_SPARSE = _Advice(
    "in the backward pass, the shape of a result depends on values",
    "The usual cause is nn.Embedding(sparse=True, padding_idx=...), which drops rows of its "
    "gradient: leave sparse=True out. A step makes gradients dense in any case.",
)
_SHAPES = {
    "_pack_padded_sequence": _Advice(
        "the shape of a packed sequence depends on the lengths",
        "Run the recurrent layer on the padded batch, and leave the padding out by weights: "
        "fl.Mean((w * losses).sum(), w.sum()). With the padding at the end, the forward direction "
        "gives the same up to each length, and its last state is output[range(n), lengths - 1]; "
        "for a backward direction, reverse each sequence within its length before the layer.",
    ),
    "_ctc_loss": _Advice(
        "the working memory of F.ctc_loss depends on the lengths of the targets",
        "Make it an operation whose results have known shapes, by torch.library.custom_op: the "
        "losses, one for each example, and their gradient, of the shape of the scores. It takes "
        '20 lines, which are in the documentation: "Compile a step", "CTC".',
    ),
    "repeat_interleave": _Advice(
        "the length of what repeat_interleave returns depends on values",
        "Say how long it is: repeat_interleave(..., output_size=n).",
    ),
    "bincount": _Advice(
        "the length of what bincount returns depends on values",
        "Count into a tensor of known length: torch.zeros(n).index_add(0, x, weights).",
    ),
}
"""By the name of the operation."""

_GROUPED = _Advice(
    "PyTorch records its grouped matrix product (grouped_mm) for bfloat16 only",
    "Multiply by torch.bmm, with the weights of each row's group: torch.bmm(x[:, None], w[group]). "
    'For the experts of transformers that is a setting: experts_implementation="batched_mm".',
)
_FORWARD_MODE = _Advice(
    "PyTorch does not record some forward-mode derivatives under vmap",
    "The usual cause is torch.func.hessian, which is jacfwd(jacrev(f)): "
    "torch.func.jacrev(torch.func.jacrev(f)) gives the same and is recorded.",
)
_COMPILER = _Advice("there is no C++ compiler", "Install one (g++), or say where it is: CXX=...")


def translated(error: Exception) -> Exception:
    """`error` as a `CompileError` if recording caused it; otherwise `error` itself."""
    frames = _frames(error)
    advice = _advice(error, frames)
    if advice is None:
        return error
    text = f"fl.compile makes one graph of a step, and cannot here: {advice.what}."
    for frame in frames:
        text += f"\n  {_line(frame)}"
    fix = advice.fix
    if len(frames) > 1:
        fix += " The first line is a library's: look for a setting of it that does without."
    text += f"\n{fix} Without fl.compile the step runs as it is.".replace("\n ", "\n")
    translation = CompileError(text)
    for note in getattr(error, "__notes__", ()):
        translation.add_note(note)
    return translation


def _advice(error: Exception, frames: list[traceback.FrameSummary]) -> _Advice | None:
    text = str(error)
    if isinstance(error, DATA_DEPENDENT) or "FakeTensor.__format__" in text:
        return _CLASSES if frames and "one_hot(" in _code(frames[0]) else _VALUE
    if isinstance(error, DYNAMIC_SHAPE):
        backward = not frames and _is_in_backward(error)
        return _SHAPES.get(packet_name(error), _SPARSE if backward else _SHAPE)
    if isinstance(error, NO_META):
        return _Advice(
            f"an operation does not say what shape its result has: {error}",
            "Give it a fake implementation: torch.library.register_fake.",
        )
    if isinstance(error, RandomnessError):
        return _Advice(text, "")
    if "InvalidCxxCompiler" in repr(error):
        return _COMPILER
    if "numpy" in text and isinstance(error, (RuntimeError, TypeError)):
        return _Advice(
            f"a tensor is taken out of PyTorch ({text.rstrip('.')})",
            "Compute it in PyTorch, or after the step, from its metrics.",
        )
    if "BF16" in text and any(
        "grouped_mm" in frame.name for frame in traceback.extract_tb(error.__traceback__)
    ):
        return _GROUPED
    if "same device" in text and "meta" in text:  # the tangents that are lost are on that device
        return _FORWARD_MODE
    return None


def _frames(error: Exception) -> list[traceback.FrameSummary]:
    """The innermost line outside of PyTorch and fnloop; if it is a library's, the user's too."""
    found = [f for f in reversed(traceback.extract_tb(error.__traceback__)) if not _inside(f)]
    own = [f for f in found if not _in_library(f)]
    return found[:1] if found[:1] == own[:1] else [*found[:1], *own[:1]]


def _is_in_backward(error: Exception) -> bool:
    found = traceback.extract_tb(error.__traceback__)
    return any(f.name == "backward" and f.filename == autograd.__file__ for f in found)


def _inside(frame: traceback.FrameSummary) -> bool:
    *ours, standard = _HOMES
    parents = Path(frame.filename).parents
    library = standard in parents and not _in_library(frame)
    return library or any(home in parents for home in ours) or frame.filename[:1] == "<"


def _in_library(frame: traceback.FrameSummary) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(frame.filename).parts)


def _line(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: {_code(frame)}"


def _code(frame: traceback.FrameSummary) -> str:
    return (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()


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
    raise CompileError(
        f"A compiled step takes batches of tensors, but {path or 'the batch'} is a {kind}: "
        f"{_as_tensors(leaf, kind)}."
    )


def _as_tensors(leaf: Any, kind: str) -> str:
    """How to give the contents of a foreign object to a compiled step."""
    if kind == "numpy.ndarray":
        return "make it a tensor before the step: torch.as_tensor(array)"
    if isinstance(leaf, Mapping):
        return "give a plain dict instead: dict(batch)"
    if callable(getattr(leaf, "to_dict", None)):
        return "give its tensors as a plain dict: batch.to_dict()"
    return (
        "give its tensors in a dict or tuple, as in {'x': batch.x, 'y': batch.y}; or make its "
        "class a tree (fl.tree)"
    )
