"""Finetuning on a few digits."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


@pytest.fixture
def finetune(example):
    return example("finetune")


def test_what_is_known_helps_and_the_plot_is_drawn(finetune, tmp_path, capsys):
    found = finetune.run(tmp_path, epochs=24, first=6)
    assert found["gradually"] > found["from scratch"] + 0.1
    assert "All BatchNorms kept their bits: True" in capsys.readouterr().out
    assert (tmp_path / "finetune.png").stat().st_size > 1000


def test_a_stop_within_a_phase_leaves_no_trace(finetune, tmp_path):
    model, data = finetune.Net(), finetune.noisy()
    phases = {0: ["top", "middle", "stem"], 3: ["middle", "stem"], 6: finetune.NORMS}
    step = finetune.finetuning(phases)
    ways = [(tmp_path / name, copy.deepcopy(model)) for name in "ab"]
    (folder, same), (other, again) = ways
    start, whole, _ = finetune.learn(step, same, data, folder, epochs=8)
    for epochs in (2, 5):  # before and after the thaw
        finetune.learn(step, again, data, other, epochs=epochs)
    _, resumed, accuracies = finetune.learn(step, again, data, other, epochs=8)
    assert resumed == whole
    assert len(accuracies) == 8
    moved = [n for n, v in start.params.items() if not torch.equal(v, whole.params[n])]
    assert {name.split(".")[0] for name in moved} == {"head", "top", "middle", "stem"}


def test_a_smoke_run_leaves_no_file(finetune, tmp_path):
    finetune.run(tmp_path / "none", smoke=True)
    assert not (tmp_path / "none").exists()
