from __future__ import annotations

import warnings

import pytest

import fnloop as fl


@pytest.mark.parametrize("name", ["val/accuracy", "acc", "val/report/f1", "AUROC", "val/acc_top5"])
def test_the_smallest_of_a_metric_that_should_be_large_is_warned_of(name, tmp_path):
    for make in (fl.early_stopping, lambda name, **o: fl.checkpoint(tmp_path, monitor=name, **o)):
        with pytest.warns(UserWarning, match='mode="max"'):
            make(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(name, mode="max")


@pytest.mark.parametrize("name", ["val/loss", "accuracy_error", "val/map", "accident"])
def test_other_names_are_not(name):
    fl.early_stopping(name)


def test_a_mode_that_is_none():
    with pytest.raises(ValueError, match='early_stopping takes mode="min" or mode="max", got'):
        fl.early_stopping("val/loss", mode="larger")
