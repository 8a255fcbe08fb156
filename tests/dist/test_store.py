"""Checkpoints of many ranks: the scenarios of ``store.py``, and every pair of ranks and plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dist.launch import outcomes
from tests.dist.test_laws import scenarios

SCRIPT = Path(__file__).with_name("store.py")
