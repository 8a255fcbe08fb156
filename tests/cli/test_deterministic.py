"""``fnloop fit --deterministic``."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def strict(edited):
    """A recipe that fails where kernels need not be deterministic, when imported and in a step."""
    line = "assert torch.are_deterministic_algorithms_enabled()"
    return edited("def loss(model, batch):\n", f"{line}\n\n\ndef loss(model, batch):\n    {line}\n")


def test_fit_and_resume(strict, cli):
    code, _, err = cli("fit", strict)
    assert code == 1 and "AssertionError" in err
    assert cli("fit", strict, "--deterministic", "--epochs", "1")[0] == 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert cli("resume", "runs/line", "--epochs", "2")[0] == 1
    assert cli("resume", "runs/line", "--deterministic", "--epochs", "2")[0] == 0


def test_a_recipe_cannot_have_a_flag_of_that_name(edited, cli):
    recipe = edited("early: bool = False", "early: bool = False, deterministic: bool = False")
    code, _, err = cli("fit", recipe)
    assert code == 2 and "--deterministic is fnloop's own" in err
