"""Whose code a file holds."""

from __future__ import annotations

import sysconfig
from pathlib import Path

_FNLOOP = Path(__file__).resolve().parents[1]
_STDLIB = Path(sysconfig.get_path("stdlib")).resolve()

LEFT_OUT = "of its own frames left out above"
"""What a note on a traceback says that was shortened."""


def is_users(filename: str) -> bool:
    """Whether a file is the user's: not fnloop's, no installed package's, not Python's.

    >>> is_users("train.py"), is_users(__file__), is_users(sysconfig.__file__), is_users("<string>")
    (True, False, False, False)
    """
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    return (
        not is_fnloop(filename)
        and not {"site-packages", "dist-packages"} & set(path.parts)
        and not path.is_relative_to(_STDLIB)
    )


def is_fnloop(filename: str) -> bool:
    """Whether a file is fnloop's."""
    return Path(filename).resolve().is_relative_to(_FNLOOP)
