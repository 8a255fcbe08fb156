"""``self.log`` outside of a Trainer."""

from __future__ import annotations

import pytest
import torch

from fnloop.lightning.logged import Log


@pytest.mark.lightning("L10")
def test_means_are_weighted_by_the_size_of_the_batch():
    log = Log()
    for size, value in ((3, 1.0), (1, 5.0)):
        log.batch = torch.zeros(size, 2)
        log.log("loss", torch.tensor(value))
        log.log("own", value, batch_size=10 if size == 3 else 30)
        for name in ("min", "max", "sum"):
            log.log(name, value, reduce_fx=name)
        log.log("function", value, reduce_fx=torch.mean)
    found = {name: float(metric) for name, metric in log.metrics.items()}
    assert found == {"loss": 2, "own": 4, "min": 1, "max": 5, "sum": 6, "function": 2}


def test_what_cannot_be_logged_says_so():
    log = Log()
    with pytest.raises(ValueError, match=r"given a dict; self\.log_dict logs"):
        log.log("a", {"b": 1})
    with pytest.raises(
        ValueError, match=r"'a', \.\.\.\) was given f32\[2\]; what is logged is one"
    ):
        log.log("a", torch.zeros(2))
    with pytest.raises(ValueError, match=r"a metric is reduced by 'mean'"):
        log.log("a", 1.0, reduce_fx="median")
