"""Digits in folds, and the folds together."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def kfold(example):
    return example("kfold")


def test_folds_together_do_better_and_a_stop_in_mid_fold_leaves_no_trace(
    kfold, tmp_path, monkeypatch
):
    whole = kfold.cross_validate(tmp_path / "a", k=3, epochs=8)
    assert whole.together > sum(whole.unseen) / 3 > 0.85
    assert (tmp_path / "a" / "kfold.png").stat().st_size > 1000
    calls, loss = [], kfold.loss

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 100:  # in the second fold, in mid-epoch
            raise KeyboardInterrupt
        return loss(model, batch)

    monkeypatch.setattr(kfold, "loss", failing)
    with pytest.raises(KeyboardInterrupt):
        kfold.cross_validate(tmp_path / "b", k=3, epochs=8)
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["fold-0", "fold-1"]
    monkeypatch.setattr(kfold, "loss", loss)
    assert kfold.cross_validate(tmp_path / "b", k=3, epochs=8) == whole


def test_together_is_the_mean_of_each_alone(kfold):
    images, _ = kfold.everything()
    states = [fl.grad(kfold.loss).init(lambda: kfold.network(0.2), seed=i) for i in range(3)]
    alone = [fl.to_module(state).eval()(images[:20]).softmax(1) for state in states]
    found = kfold.together(states, images[:20])
    torch.testing.assert_close(found, torch.stack(alone).mean(0).detach())
