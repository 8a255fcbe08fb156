from __future__ import annotations

import json

import pytest
import torch

from fnloop.cli import config
from fnloop.cli.settings import Settings, segments_in
from fnloop.effects.effect import Run
from fnloop.values.cursor import Cursor
from fnloop.values.start import start


def opened(tmp_path, flags, count, past=None, total=5):
    settings = Settings(tmp_path / "recipe.py", flags, tmp_path / "run")
    if past is not None:
        settings.recall(json.loads(json.dumps(past)))
    state = start(torch.nn.Linear(2, 1)).replace(cursor=Cursor(0, count, count).tensor())
    settings.open(Run(step=None, state=state, total=total))
    return settings


def test_each_part_of_a_run_has_its_flags(tmp_path):
    first = opened(tmp_path, {"lr": 0.1}, 0).memo()
    same = opened(tmp_path, {"lr": 0.1}, 5, first).memo()
    other = opened(tmp_path, {"lr": 0.2}, 9, same).memo()
    assert segments_in(other) == [(0, {"lr": 0.1}), (9, {"lr": 0.2})]
    assert config.Config(tmp_path / "run" / config.NAME).values["lr"] == 0.2


def test_what_came_after_the_checkpoint_that_is_resumed_is_forgotten(tmp_path):
    past = [{"from": 0, "flags": {"lr": 0.1}}, {"from": 8, "flags": {"lr": 0.5}}]
    assert segments_in(opened(tmp_path, {"lr": 0.2}, 6, past).memo()) == [
        (0, {"lr": 0.1}),
        (6, {"lr": 0.2}),
    ]


def test_a_run_that_does_nothing_changes_nothing(tmp_path):
    past = [{"from": 0, "flags": {"lr": 0.1}}]
    assert opened(tmp_path, {"lr": 0.2}, 6, past, total=0).memo() == past
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("memo", [3, [3], [{"from": "x", "flags": {}}], [{"from": 0}]])
def test_a_memo_that_is_none_is_refused(memo):
    with pytest.raises((TypeError, ValueError, KeyError)):
        segments_in(memo)
