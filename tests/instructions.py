"""Every instruction of Python that runs in some files, seen before it runs."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable, Generator, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

Seen = Callable[[CodeType, int], None]


@contextlib.contextmanager
def instructions(files: frozenset[str], seen: Seen) -> Generator[None]:
    """Call `seen` with the code and the offset of each instruction; what it raises comes there.

    Args:
        files: The paths of the files.
        seen: It is called for nothing more after it has raised.
    """
    watch = _monitored if sys.version_info >= (3, 12) else _traced
    with watch(files, seen):
        yield


@contextlib.contextmanager
def _traced(files: frozenset[str], seen: Seen) -> Generator[None]:
    def tracer(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen(frame.f_code, frame.f_lasti)
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _monitored(files: frozenset[str], seen: Seen) -> Generator[None]:
    """Since Python 3.12, tracing leaves out the instructions of some calls."""
    monitoring: Any = sys.monitoring  # pyright: ignore[reportAttributeAccessIssue]
    tool, event = monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION
    closed = False

    def callback(code: CodeType, at: int) -> None:
        nonlocal closed
        if not closed:
            closed = True
            seen(code, at)
            closed = False

    monitoring.use_tool_id(tool, __name__)
    monitoring.register_callback(tool, event, callback)
    codes = _codes(files, len(sys.modules))
    for code in codes:
        monitoring.set_local_events(tool, code, event)
    try:
        yield
    finally:
        for code in codes:
            monitoring.set_local_events(tool, code, 0)
        monitoring.register_callback(tool, event, None)
        monitoring.free_tool_id(tool)


@functools.cache
def _codes(files: frozenset[str], modules: int) -> list[CodeType]:
    """All code of the functions of some files, as far as so many modules have been imported."""
    whole = {each.__code__ for each in gc.get_objects() if type(each) is FunctionType}
    return list({c for code in whole if code.co_filename in files for c in _within(code)})


def _within(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _within(constant)
