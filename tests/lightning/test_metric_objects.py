"""Objects of torchmetrics that a module keeps."""

from __future__ import annotations

import torch
import torchmetrics
from torch import nn

from fnloop.lightning.metric_objects import MetricObjects, put_back


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()
        self.all = torchmetrics.CatMetric()


def contents(module):
    return [{**vars(m), "copy": list(getattr(m, "value", []))} for m in module.modules()]


def test_a_call_leaves_nothing_in_them():
    model = Model()
    before = contents(model)
    with put_back(model, torch.device("cpu")):
        model.error(torch.ones(2), torch.zeros(2))
        model.all.update(torch.ones(3))
        model.eval()
    for old, new in zip(before, contents(model), strict=True):
        assert old.keys() == new.keys()
        assert all([old[name] is new[name] for name in old if name != "copy"])
        assert old["copy"] == new["copy"] == [] or "error" not in new


def test_they_are_on_the_device_of_the_state():
    model = Model()
    with put_back(model, torch.device("meta")):
        assert model.error.sum_squared_error.device.type == "meta"
        assert model.error._defaults["total"].device.type == "meta"
    assert model.error.sum_squared_error.device.type == "cpu"
    assert model.error._defaults["total"].device.type == "cpu"
    assert model.error.device.type == "cpu"


def test_states_are_taken_merged_and_filled_in():
    model = Model()
    objects, parts = MetricObjects(model), []
    for value in (1.0, 3.0):
        with put_back(model, torch.device("cpu")):
            read = objects.reader(model)
            model.error.update(torch.full((2,), value), torch.zeros(2))
            model.all.update(torch.tensor(value))
            assert float(read(model.error)) == value**2
            parts.append(objects.updated(model))
    merged = {path: parts[0][path].merge(parts[1][path]) for path in parts[0]}
    other = Model()
    objects.fill(other, merged)
    assert float(other.error.compute()) == 5.0
    assert other.all.compute().tolist() == [1.0, 3.0]
