"""Recipes whose parameters are stored in another precision."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_batches_are_converted_wherever_a_command_evaluates(precision, edited, cli, numbers):
    recipe = edited("fl.pipe(loss, fl.grad, ", "fl.pipe(loss, fl.grad, amp, ")
    text = Path(recipe).read_text()
    text = text.replace("fl.validate(loss, ", "fl.validate(amp(loss), ")
    text = text.replace("    step = ", f'    amp = fl.amp("{precision}")\n    step = ')
    Path(recipe).write_text(text)
    assert cli("fit", recipe, "--smoke")[0] == 0
    code, out, err = cli("fit", recipe)
    assert code == 0, err
    assert set(numbers(out)) == {"train", "val", "test"}
    assert cli("test", "runs/line")[0] == 0
    assert cli("predict", "runs/line", "--output", "out.npy")[0] == 0
