from __future__ import annotations

import torch

import fnloop as fl
from fnloop.cli.forward import _that_matter


def test_validation_that_nobody_reads_is_left_out():

    check = fl.every(2, fl.validate(lambda m, b: m(b).mean(), [torch.ones(1, 1)]))
    stopping = fl.early_stopping("val/loss")
    assert _that_matter([check]) == []
    assert _that_matter([check, stopping, check]) == [check, stopping]
