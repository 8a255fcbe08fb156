"""Conditions that only decide whether a step raises: recorded, to be looked at after it has run."""

from __future__ import annotations

import ast
import dis
import functools
import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_aten: Any = torch.ops.aten
_ASK = (_aten._local_scalar_dense.default, _aten.item.default, _aten.is_nonzero.default)
_TORCH, _FNLOOP = Path(torch.__file__).parent, Path(__file__).parents[1]


class Check(NamedTuple):
    """A condition of the step.

    Attributes:
        tensor: A 0-d bool.
        holds: What it is if the step goes on.
        lines: Where it is asked for: a line of text, and the user's line if the first is PyTorch's.
    """

    tensor: Tensor
    holds: bool
    lines: str


class Checks(TorchDispatchMode):
    """A dispatch mode that goes on where Python would look at a condition only to raise.

    That is so in ``assert condition`` and ``if not condition: raise ...``, unless somebody catches
    the error, who makes a choice of it. Other values that are asked for are left to fail.

    Attributes:
        found: The conditions.
    """

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the first step would import the compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Check] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ASK and args[0].dtype is torch.bool:
            frame = _asking()
            holds = _to_go_on(frame.f_code, frame.f_lasti)
            if holds is not None and not _is_caught(frame):
                condition = args[0].clone().reshape(())  # the step may write to the original
                self.found.append(Check(condition, holds, _lines(frame)))
                return holds
        return func(*args, **(kwargs or {}))


def _asking() -> FrameType:
    """The frame that asks for a value; there are other modes in between."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_name in _MODES or frame.f_code.co_filename == _OPERATIONS
    ):
        frame = frame.f_back
    return frame


_MODES = ("__torch_dispatch__", "__torch_function__")
_OPERATIONS = sys.modules["torch._ops"].__file__


@functools.lru_cache(maxsize=256)
def _to_go_on(code: CodeType, place: int) -> bool | None:
    """What a condition is if the code does not raise; None if it decides something else too.

    Args:
        code: Asks for the condition.
        place: Offset of the instruction that does.
    """
    found = [each for each in dis.get_instructions(code) if each.opname not in _EMPTY]
    at = next((i for i, each in enumerate(found) if each.offset == place), len(found) - 1)
    at = _used(found, at)
    jump = found[at]
    if not jump.opname.startswith("POP_JUMP") or not jump.opname.endswith(("TRUE", "FALSE")):
        return None
    taken = jump.opname.endswith("TRUE")
    after = next((i for i, each in enumerate(found) if each.offset >= jump.argval), len(found))
    stays, leaves = _raises(found, at + 1), _raises(found, after)
    return None if stays is leaves else (taken if stays else not taken)


_EMPTY = ("CACHE", "PRECALL", "EXTENDED_ARG", "NOT_TAKEN")


def _used(found: list[dis.Instruction], at: int) -> int:
    """The place of what uses the condition that the instruction at a place asks for."""
    # Since Python 3.13, comparing may make the bool.
    if found[at].opname == "COMPARE_OP" and found[at].argrepr.startswith("bool("):
        return at + 1
    if found[at].opname == "CALL" and at > 0 and found[at - 1].argval == "item":
        at += 1
    return at + (found[at].opname == "TO_BOOL")


def _raises(found: list[dis.Instruction], start: int) -> bool:
    """Whether every way from an instruction on ends in a ``raise``."""
    seen, waiting = {len(found)}, [start]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        each = found[place]
        if each.opname.startswith(("RETURN", "YIELD")):
            return False
        if each.opcode in _JUMPS:
            waiting.append(next(i for i, at in enumerate(found) if at.offset >= each.argval))
        if not each.opname.startswith(("JUMP_FORWARD", "JUMP_BACKWARD", *_RAISE)):
            waiting.append(place + 1)
    return True


_RAISE = ("RAISE_VARARGS", "RERAISE")
_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))


def _is_caught(frame: FrameType) -> bool:
    """Whether what is raised may be caught before it leaves the step, by code of the user."""
    for each in _users(frame):
        if not each.f_code.co_exceptiontable:
            continue  # neither try nor with
        spans = _catching(each.f_code.co_filename)
        if spans is None or any(a <= each.f_lineno <= b for a, b in spans):
            return True
    return False


def _users(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames from this one to the recording that are neither PyTorch's nor fnloop's."""
    while frame is not None and not (frame.f_code.co_name == "_record" and _is_in(_FNLOOP, frame)):
        if not _is_in(_FNLOOP, frame) and not _is_in(_TORCH, frame):
            yield frame
        frame = frame.f_back


def _is_in(home: Path, frame: FrameType) -> bool:
    return home in Path(frame.f_code.co_filename).parents


@functools.lru_cache(maxsize=64)
def _catching(file: str) -> tuple[tuple[int, int], ...] | None:
    """The first and last lines of what is tried in a file; None if its text is not known."""
    if file == "<string>":  # which all that is given to exec is called, and since 3.13 python -c
        return None
    try:
        text = "".join(linecache.getlines(file))
        nodes = list(ast.walk(ast.parse(text))) if text else []
    except SyntaxError:  # a cell of a notebook, with its commands
        nodes = []
    if not nodes:
        return None
    tried: list[Any] = [node for node in nodes if _catches(node)]
    return tuple((node.body[0].lineno, node.body[-1].end_lineno) for node in tried)


def _catches(node: ast.AST) -> bool:
    if isinstance(node, ast.With):
        return any("suppress" in ast.dump(item.context_expr) for item in node.items)
    return isinstance(node, (ast.Try, ast.TryStar)) and bool(node.handlers)


def _lines(frame: FrameType) -> str:
    own = next(_users(frame), frame)
    return "\n".join([_line(each) for each in ([frame] if own is frame else [frame, own])])


def _line(frame: FrameType) -> str:
    name, line = frame.f_code.co_filename, frame.f_lineno
    code = linecache.getline(name, line).strip()
    return f"  {Path(name).name}, line {line}, in {frame.f_code.co_name}: {code}"
