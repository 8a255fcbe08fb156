"""Many ranks train as one process does: each scenario of ``laws.py`` on 2, 3 and 4 ranks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.dist.launch import outcomes

SCRIPT = Path(__file__).with_name("laws.py")


def scenarios(script):
    """The names of a script's scenarios."""
    tree = ast.parse(script.read_text())
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.decorator_list]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", scenarios(SCRIPT))
def test_laws(name, ranks):
    failed = [text for text in outcomes(SCRIPT, ranks)[name] if text]
    assert not failed, failed[0]
