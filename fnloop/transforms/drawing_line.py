"""Which line draws from Python's or NumPy's random numbers."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from fnloop.values.host_random import GLOBAL, same

_FNLOOP = Path(__file__).parents[1]


def drawing_line(
    run: Callable[[], Any], is_users: Callable[[str], bool]
) -> traceback.FrameSummary | None:
    """The first line of the user that draws while `run()` runs, whatever that raises.

    It looks at the generators after each line, which is slow, and meant for an error's message.

    Args:
        run: Draws.
        is_users: Whether a file is the user's.
    """
    drawing: list[traceback.FrameSummary] = []
    line: traceback.FrameSummary | None = None
    known: list[Any] = []

    def entered(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal known
        if drawing or not is_users(frame.f_code.co_filename):
            return None
        caller = frame.f_back
        if caller is not None and _FNLOOP in Path(caller.f_code.co_filename).parents:
            known = _states()  # fnloop has seeded them
        return at_line

    def at_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal line, known
        now = _states()
        if line is not None and not drawing and not all(map(same, now, known)):
            drawing.append(line)
        code = frame.f_code
        line = traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name)
        known = now
        return at_line

    before = sys.gettrace()
    sys.settrace(entered)
    try:
        run()
    except Exception:
        pass  # known already: this run only looks for its line
    finally:
        sys.settrace(before)
    return drawing[0] if drawing else None


def _states() -> list[Any]:
    return [source.save() for source in GLOBAL]
