from __future__ import annotations

import numpy as np
import pytest
import torch

from fnloop.cli.messages import Problem
from fnloop.cli.outputs import write_outputs


def test_batches_are_joined(tmp_path):
    batches = torch.arange(10.0).reshape(5, 2).split(2)
    write_outputs(batches, str(tmp_path / "a.npy"))
    assert np.load(tmp_path / "a.npy").tolist() == np.arange(10.0).reshape(5, 2).tolist()


def test_trees_keep_their_paths_and_integers_stay_integers(tmp_path, capsys):
    outputs = [{"label": torch.tensor([3, 4]), "score": torch.tensor([[0.5], [0.25]])}]
    write_outputs(outputs, None)
    assert capsys.readouterr().out == "label,score\n3,0.5\n4,0.25\n"
    write_outputs(outputs, str(tmp_path / "a.npz"))
    assert np.load(tmp_path / "a.npz")["label"].tolist() == [3, 4]


def test_bfloat16_which_numpy_has_not(tmp_path):
    write_outputs([torch.ones(2, dtype=torch.bfloat16)], str(tmp_path / "a.npy"))
    assert np.load(tmp_path / "a.npy").dtype == np.float32


def test_images_are_no_csv():
    with pytest.raises(Problem, match=r"has shape \[2, 3, 4\] a batch; use --output FILE.npz"):
        write_outputs([torch.ones(2, 3, 4)], None)


@pytest.mark.parametrize("output", [3.0, torch.tensor(1.0)])
def test_outputs_without_a_batch(output):
    with pytest.raises(ValueError, match="first dimension is the batch's"):
        write_outputs([output], None)
