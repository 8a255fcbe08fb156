"""The forms that ``configure_optimizers`` may return, as Lightning's documentation lists them."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from fnloop.lightning.configured import Scheduled, configured, floors


@pytest.fixture
def two():
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1) for _ in range(2)]
    return optimizers, [ExponentialLR(o, 0.9) for o in optimizers]


@pytest.mark.lightning("H2")
def test_all_forms(two):
    (a, b), (s, t) = two
    forms = {
        "one": (a, [(a, [])]),
        "list": ([a, b], [(a, []), (b, [])]),
        "tuple": ((a, b), [(a, []), (b, [])]),
        "lists": (([a, b], [s, t]), [(a, [s]), (b, [t])]),
        "lists, settings": (([a], [{"scheduler": s, "interval": "step"}]), [(a, [s])]),
        "dict": ({"optimizer": a, "lr_scheduler": s}, [(a, [s])]),
        "dict, settings": ({"optimizer": a, "lr_scheduler": {"scheduler": s}}, [(a, [s])]),
        "dicts": ([{"optimizer": a, "lr_scheduler": s}, {"optimizer": b}], [(a, [s]), (b, [])]),
    }
    for name, (result, expected) in forms.items():
        found = configured(result, "Model")
        assert [(c.optimizer, [x.scheduler for x in c.schedulers]) for c in found] == expected, name


def test_settings_of_a_scheduler(two):
    (a, _), (s, _) = two
    settings = {"scheduler": s, "interval": "step", "frequency": 3, "name": "lr", "strict": True}
    ((found,),) = (c.schedulers for c in configured(([a], [settings]), "Model"))
    assert (found.interval, found.frequency) == ("step", 3)


def test_what_is_wrong_is_told(two):
    (a, b), (s, _) = two
    with pytest.raises(TypeError, match=r"Model.configure_optimizers returned None\. Without an"):
        configured(None, "Model")
    with pytest.raises(ValueError, match=r"the setting 'intervall'; there are: frequency, inter"):
        configured(([a], [{"scheduler": s, "intervall": "step"}]), "Model")
    with pytest.raises(ValueError, match=r"the interval 'batch'; it is 'epoch' or 'step'"):
        configured(([a], [{"scheduler": s, "interval": "batch"}]), "Model")
    with pytest.raises(ValueError, match=r"the frequency 0; it is a whole number of at least 1"):
        configured(([a], [{"scheduler": s, "frequency": 0}]), "Model")
    with pytest.raises(ValueError, match=r"ExponentialLR of an optimizer that it does not return"):
        configured(([b], [s]), "Model")
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau without the metric"):
        configured(([a], [ReduceLROnPlateau(a)]), "Model")
    with pytest.raises(TypeError, match=r"returned a dict of 'lr_scheduler'; it needs"):
        configured({"lr_scheduler": s}, "Model")


def groups(*rates):
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in rates]
    pairs = zip(parameters, rates, strict=True)
    return torch.optim.SGD([{"params": [p], "lr": rate} for p, rate in pairs])


def plateau(optimizer, **settings):
    return optimizer, {"scheduler": ReduceLROnPlateau(optimizer, **settings), "monitor": "loss"}


@pytest.mark.parametrize("low", [0.003, [0.003, 0.001]])
def test_a_min_lr_that_is_another_share_in_each_group_is_refused(low):
    optimizer, settings = plateau(groups(0.01, 0.1), min_lr=low)
    with pytest.raises(ValueError, match=r"another share of the lr in each group \(0\.3, 0\.0"):
        configured(([optimizer], [settings]), "Model")


def test_an_eps_that_leaves_reductions_out_is_refused():
    optimizer, settings = plateau(groups(0.1), eps=0.002)
    with pytest.raises(ValueError, match=r"with eps=0\.002, .* leave eps out"):
        configured(([optimizer], [settings]), "Model")


def test_the_same_share_of_each_group_is_kept():
    optimizer, settings = plateau(groups(0.01, 0.0, 0.1), min_lr=[0.003, 0.0, 0.03])
    ((found,),) = (c.schedulers for c in configured(([optimizer], [settings]), "Model"))
    assert floors(found.scheduler) == pytest.approx([0.3, 0.3])


def test_a_frequency_is_counted_in_steps(two):
    (a, _), (s, _) = two
    plateau = Scheduled(ReduceLROnPlateau(a), "step", 4, "loss")
    assert plateau.counted(batches=8, accumulate=2).frequency == 2
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau .* of the 6 batches of an epoch some"):
        plateau.counted(batches=6, accumulate=1)
    with pytest.raises(ValueError, match=r"ExponentialLR counts the batches .* Give the data, or"):
        Scheduled(s, "step", 4).counted(batches=None, accumulate=1)
    assert Scheduled(s, "step", 1).counted(None, 1) == Scheduled(s, "step", 1)
    assert Scheduled(s, "epoch", 3).counted(6, 2) == Scheduled(s, "epoch", 3)
