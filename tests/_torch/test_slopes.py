"""Forward mode does not tell users of what PyTorch calls in it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HESSIAN_PRODUCT = """
import torch, fnloop as fl
gradients = fl.grad(lambda model, batch: (batch * model.weight.square()).sum())
state, batch = gradients.init(torch.nn.Linear(2, 1)), torch.ones(1, 2)
fl.schemes.hessian_product(gradients, state, batch, {"weight": torch.ones(1, 2)})
"""
FORWARD_GRADIENT = """
import torch, fnloop as fl
gradients = fl.schemes.forward_gradient(fl.grad(lambda model, batch: model(batch).mean()))
gradients(gradients.init(torch.nn.Linear(2, 1), seed=0), torch.ones(3, 2))
"""


@pytest.mark.parametrize("program", [HESSIAN_PRODUCT, FORWARD_GRADIENT])
def test_a_program_that_uses_forward_mode_is_not_warned_of_torch_jit(program):
    command = [sys.executable, "-W", "error", "-c", program]  # what is loaded once warns once
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
