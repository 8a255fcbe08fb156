"""Errors for code that cannot be part of one graph: the user's line, and a fix."""

from __future__ import annotations

import contextlib
import linecache
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fnloop._torch.draws import HostRandomnessError
from fnloop._torch.graph import DATA_DEPENDENT
from fnloop.stages.remedies import remedy
from fnloop.transforms.advice import advice_for, is_of_a_layer
from fnloop.transforms.drawing_line import drawing_line
from fnloop.values.changed_kind import ChangedKindError
from fnloop.values.state import State

_HOMES = (
    Path(torch.__file__).parent,
    Path(__file__).parents[1],
    Path(contextlib.__file__).parent,  # the standard library, without its site-packages
)


class CompileError(RuntimeError):
    """A step cannot be compiled into one graph; the message names the line and a fix."""


def add_remedy(error: Exception, state: State, batch: Any) -> None:
    """Say in the traceback what helps against an error of the user's code, if that is known."""
    if not hasattr(error, "__notes__") and (helps := remedy(error, state, batch)):
        error.add_note(f"fnloop: {helps}")


def translated(error: Exception, again: Callable[[], Any]) -> Exception:
    """`error` as a `CompileError` if recording caused it; otherwise `error` itself.

    Args:
        error: From the recording.
        again: Records once more, to find a line that the error does not know.
    """
    if isinstance(error, ChangedKindError):
        return CompileError(str(error))
    frames = _frames(error)
    if isinstance(error, HostRandomnessError):
        line = drawing_line(again, lambda file: not _inside(file) and not _in_library(file))
        frames = [line] if line else []
    layers = bool(frames) and is_of_a_layer(frames[0].filename)
    advice = advice_for(error, _code(frames[0]) if frames else "", layers)
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


def _frames(error: Exception) -> list[traceback.FrameSummary]:
    """The innermost line outside of PyTorch and fnloop; if it is a library's, the user's too.

    A layer or distribution of PyTorch that asks for a value counts as a library's.
    """
    asks = isinstance(error, DATA_DEPENDENT)
    found = [
        frame
        for frame in reversed(traceback.extract_tb(error.__traceback__))
        if not _inside(frame.filename) or (asks and is_of_a_layer(frame.filename))
    ]
    own = [f for f in found if not (_in_library(f.filename) or _inside(f.filename))]
    return found[:1] if found[:1] == own[:1] else [*found[:1], *own[:1]]


def _inside(file: str) -> bool:
    *ours, standard = _HOMES
    parents = Path(file).parents
    library = standard in parents and not _in_library(file)
    return library or any(home in parents for home in ours) or file[:1] == "<"


def _in_library(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _line(frame: traceback.FrameSummary) -> str:
    return f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}: {_code(frame)}"


def _code(frame: traceback.FrameSummary) -> str:
    return (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()


def check_dense(path: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor of another layout: its memory is not one block of numbers."""
    if tensor.layout is not torch.strided:
        raise CompileError(
            f"A compiled step takes dense tensors, but {path or 'the batch'} is of "
            f"{tensor.layout}: make it dense before the step (x.to_dense()), or give its indices "
            "and values, which are dense; or run the step without fl.compile."
        )


def check_observed(state: State) -> None:
    """Refuse observers of quantization that have seen no batch: what they grow is not recorded."""
    module = getattr(state.skeleton, "module", None)
    modules = dict(module.named_modules()) if module is not None else {}
    for name, buffer in zip(state.buffers.names, state.buffers.peek(), strict=True):
        owner = type(modules.get(name.rpartition(".")[0]))
        if not buffer.numel() and owner.__module__.startswith("torch.ao.quantization"):
            raise CompileError(
                f"The buffer {name!r} of {owner.__name__} is empty until it has seen a batch, and "
                "a compiled step keeps its shapes. Run one batch through the model before init: "
                "model(x)."
            )


def check_leaf(path: str, leaf: Any) -> None:
    """Refuse a leaf that a graph cannot take: only dense tensors and plain values are allowed."""
    if isinstance(leaf, torch.Tensor):
        check_dense(path, leaf)
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
