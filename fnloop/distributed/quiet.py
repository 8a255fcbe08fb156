"""One rank that speaks for all: what every rank would print is printed by rank zero."""

from __future__ import annotations

import logging
import warnings
from typing import Any

_log = logging.getLogger("fnloop")


def be_quiet() -> None:
    """Show no warnings in this process, and of fnloop's log only errors."""
    if _log.level == logging.NOTSET:  # else somebody has chosen
        _log.setLevel(logging.ERROR)
    warnings.showwarning = _show_nothing


def _show_nothing(*warning: Any, **place: Any) -> None:
    """In place of ``warnings.showwarning``: filters that make errors of warnings still do."""
