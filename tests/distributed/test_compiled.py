"""Compiled sharded steps: scenarios of ``compiled.py`` and ``inductor.py`` on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.launch import check, scenarios

RECORDED, BUILT = (Path(__file__).with_name(name) for name in ("compiled.py", "inductor.py"))


@pytest.mark.parametrize("name", scenarios(RECORDED))
def test_recorded(name):
    check(RECORDED, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", scenarios(BUILT))
def test_built_by_inductor(name):
    check(BUILT, name, 2, seconds=1800)
