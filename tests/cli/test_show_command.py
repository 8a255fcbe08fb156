from __future__ import annotations

from safetensors.torch import load_file


def test_show_lists_a_runs_checkpoints_and_the_latest_state(trained, cli):
    code, out, _ = cli("show", trained)
    assert code == 0
    for name in ("step-00000005", "step-00000010", "step-00000015"):
        assert f"runs/line/{name}" in out
    assert "val/loss" in out and "best" in out
    assert "epoch 3, index 0, 15 batches" in out
    assert "update(sgd(lr=0.05))" in out
    assert "lr=0.05" in out


def test_show_of_a_checkpoint_has_every_leaf(trained, cli):
    path = trained / "step-00000005"
    out = cli("show", path)[1]
    lines = [line.split() for line in out.splitlines()]
    assert ["weight", "f32[1,2]", "2", "values,", "8", "B"] in lines
    leaves = load_file(path / "state.safetensors")
    assert sum(line[1][-1:] == "]" for line in lines if len(line) > 2) == len(leaves)


def test_show_needs_no_recipe(trained, recipe, cli):
    recipe.unlink()
    assert cli("show", trained)[0] == 0


def test_show_of_nothing(tmp_path, cli):
    code, _, err = cli("show", "nothing")
    assert code == 2 and "There is no nothing" in err
    (tmp_path / "empty").mkdir()
    code, _, err = cli("show", "empty")
    assert code == 2 and "empty has no checkpoint in it" in err
