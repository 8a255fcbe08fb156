from __future__ import annotations

import csv
import io
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fnloop.store.folders import latest


def _outputs(checkpoint):
    weights = load_file(f"{checkpoint}/state.safetensors")
    x = torch.randn(240, 2, generator=torch.Generator().manual_seed(0))[200:]
    return (x @ weights["slots/ema/weight"].T + weights["slots/ema/bias"]).numpy()


def _test_loss(checkpoint):
    x = torch.randn(240, 2, generator=torch.Generator().manual_seed(0))[200:]
    y = (x @ torch.tensor([[1.0], [-2.0]]) + 0.5).numpy()
    return float(np.square(_outputs(checkpoint) - y).mean())


@pytest.mark.lightning("M2", "I1")
def test_test_prints_what_fit_printed(recipe, cli, numbers):
    fitted = numbers(cli("fit", recipe)[1])
    code, out, err = cli("test", "runs/line")
    assert code == 0 and "step-00000015" in err
    assert numbers(out) == {"test": fitted["test"]}


def test_validate_uses_the_validation_data(recipe, cli, numbers):
    fitted = numbers(cli("fit", recipe)[1])
    assert numbers(cli("validate", "runs/line")[1]) == {"val": fitted["val"]}


@pytest.mark.parametrize("which", ["runs/line/step-00000005", "latest", "best"])
def test_a_chosen_checkpoint(which, trained, cli, numbers):
    name = which if "step" in which else "runs/line/step-00000015"
    out = cli("test", "runs/line", "--checkpoint", which)[1]
    assert numbers(out)["test"]["loss"] == pytest.approx(_test_loss(name), rel=1e-3)


def test_a_checkpoint_for_the_run(trained, cli, numbers):
    out = cli("test", "runs/line/step-00000005")[1]
    expected = _test_loss("runs/line/step-00000005")
    assert numbers(out)["test"]["loss"] == pytest.approx(expected, rel=1e-3)


def test_from_another_directory(trained, cli, monkeypatch, tmp_path):
    os.mkdir("elsewhere")
    monkeypatch.chdir("elsewhere")
    assert cli("test", tmp_path / "runs" / "line")[0] == 0


def test_no_such_checkpoint(trained, cli):
    code, _, err = cli("test", "runs/line", "--checkpoint", "newest")
    assert code == 2 and "expected best, latest, or a folder" in err


def test_no_best_checkpoint(edited, cli):
    recipe = edited(', monitor="val/loss"', "")
    assert cli("fit", recipe)[0] == 0
    code, _, err = cli("test", "runs/line", "--checkpoint", "best")
    assert code == 1 and "Say --checkpoint latest" in err
    assert cli("test", "runs/line")[0] == 0


def test_no_such_run(trained, cli):
    code, _, err = cli("test", "runs/lime")
    assert code == 2 and "There is no run runs/lime. Did you mean runs/line?" in err


def test_a_folder_that_is_no_run(tmp_path, cli):
    (tmp_path / "other").mkdir()
    code, _, err = cli("test", "other")
    assert code == 2 and "other is not the folder of a run: it has no config.yaml" in err


def test_a_file_for_a_run(recipe, cli):
    code, _, err = cli("test", recipe)
    assert code == 2 and "line.py is a file" in err


def test_a_run_without_checkpoints(edited, cli):
    recipe = edited('fl.checkpoint(folder, monitor="val/loss"),', "")
    assert cli("fit", recipe)[0] == 0
    code, _, err = cli("test", "runs/line")
    assert code == 1 and "runs/line has no checkpoint" in err


def test_a_recipe_that_is_gone(trained, recipe, cli):
    recipe.rename("moved.py")
    code, _, err = cli("test", "runs/line")
    assert code == 2 and "runs/line/config.yaml:2" in err and "--recipe FILE.py" in err
    assert cli("test", "runs/line", "--recipe", "moved.py")[0] == 0


def test_a_model_that_has_changed_since(trained, edited, cli):
    edited("torch.nn.Linear(2, 1)", "torch.nn.Linear(2, 3)")
    code, _, err = cli("test", "runs/line")
    assert code == 1 and "does not fit" in err and "params/weight" in err


def test_data_that_is_not_there(edited, cli):
    recipe = edited("        test=fl.Batches((x[200:], y[200:]), 16),\n", "")
    assert cli("fit", recipe)[0] == 0
    code, _, err = cli("test", "runs/line")
    assert code == 1 and "test=..." in err


def test_metrics_of_the_recipes_own(edited, cli, numbers):
    edited(
        "def recipe(",
        "def gap(model, batch):\n    d = model(batch[0]) - batch[1]\n"
        "    return {'loss': d.square().mean(), 'gap': d.abs().mean()}\n\n\ndef recipe(",
    )
    recipe = edited('params="ema", folder', 'params="ema", metrics=gap, folder')
    code, out, _ = cli("fit", recipe)
    assert code == 0 and set(numbers(out)["test"]) == {"loss", "gap"}


@pytest.mark.filterwarnings("ignore:The data ended")
def test_training_data_that_cannot_be_read_again_has_no_row(edited, cli, numbers):
    edited("train=fl.Batches((x[:160], y[:160]), batch_size)", "train=iter([(x, y)] * 9)")
    recipe = edited('unit="epoch"', 'unit="step"')
    code, out, err = cli("fit", recipe)
    assert code == 0, err
    assert set(numbers(out)) == {"val", "test"}


@pytest.mark.lightning("M3")
def test_predict_prints_csv(trained, cli):
    code, out, _ = cli("predict", "runs/line")
    assert code == 0
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["output"]
    expected = _outputs(latest("runs/line"))
    assert np.array(rows[1:], float) == pytest.approx(expected, rel=1e-5)


@pytest.mark.lightning("C19")
@pytest.mark.parametrize("suffix", ["csv", "npy", "npz"])
def test_predict_writes_a_file(suffix, trained, cli):
    code, out, _ = cli("predict", "runs/line", "--output", f"out.{suffix}")
    assert code == 0 and out == f"out.{suffix}\n"
    if suffix == "csv":
        found = np.loadtxt("out.csv", skiprows=1)[:, None]
    else:
        found = np.load(f"out.{suffix}")
        found = found["output"] if suffix == "npz" else found
    assert found == pytest.approx(_outputs(latest("runs/line")), rel=1e-5)


def test_predict_with_a_function_of_the_recipes_own(edited, cli):
    recipe = edited(
        'params="ema", folder', 'params="ema", predict=lambda m, x: {"y": m(x), "x": x}, folder'
    )
    assert cli("fit", recipe)[0] == 0
    head, *rows = csv.reader(io.StringIO(cli("predict", "runs/line")[1]))
    assert head == ["x.0", "x.1", "y"] and len(rows) == 40
    code, _, err = cli("predict", "runs/line", "--output", "a.npy")
    assert code == 1 and "one array" in err


def test_predict_to_an_unknown_kind_of_file(trained, cli):
    code, _, err = cli("predict", "runs/line", "--output", "out.pkl")
    assert code == 2 and ".csv, .npy, .npz" in err


def test_predict_to_a_place_that_cannot_be_written(trained, cli):
    code, _, err = cli("predict", "runs/line", "--output", "nowhere/out.npy")
    assert code == 1 and "nowhere/out.npy cannot be written" in err


@pytest.mark.parametrize(
    "data",
    [
        "fl.Batches(x[200:], 16)",
        "torch.utils.data.DataLoader(x[200:], 16, shuffle=True)",
        "fl.data.prefetch(torch.utils.data.DataLoader(x[200:], 16, shuffle=True, num_workers=1))",
        "lambda epoch: (x[int(i)][None] for i in torch.randperm(9))",
    ],
)
def test_predictions_of_shuffled_data_are_refused(data, edited, cli):
    recipe = edited("fl.Batches(x[200:], 16, shuffle=False)", data)
    assert cli("fit", recipe)[0] == 0
    code, out, err = cli("predict", "runs/line")
    assert code == 1 and out == "" and "in the order of the data, but " in err


def test_predict_to_a_folder_goes_on_where_it_was_cut(edited, cli, tmp_path):
    recipe = edited('params="ema", folder', 'params="ema", predict=scores, folder')
    function = (
        "def scores(model, x):\n    if os.path.exists('broken') and len(x) < 16:\n"
        "        raise OSError('the disk is gone')\n    return model(x)\n\n\n"
    )
    edited("def recipe(", f"{function}def recipe(")
    assert cli("fit", recipe)[0] == 0
    (tmp_path / "broken").touch()
    code, _, err = cli("predict", "runs/line", "--output", "preds/")
    assert code == 1 and "the disk is gone" in err
    assert (tmp_path / "preds.unfinished").is_dir() and not (tmp_path / "preds").exists()
    (tmp_path / "broken").unlink()
    for _ in range(2):
        code, out, _ = cli("predict", "runs/line", "--output", "preds/")
        assert code == 0 and out == "preds\n"
    expected = _outputs(latest("runs/line"))
    assert np.load("preds/output.npy") == pytest.approx(expected, rel=1e-5)
    assert np.load("preds/index.npy").tolist() == list(range(40))
    first = "runs/line/step-00000005"
    code, _, err = cli("predict", "runs/line", "--output", "preds", "--checkpoint", first)
    assert code == 1 and "preds holds other predictions" in err and "Traceback" not in err


def test_predict_to_a_parquet_file(trained, cli):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    code, out, _ = cli("predict", "runs/line", "--output", "preds.parquet")
    assert code == 0 and out == "preds.parquet\n"
    found = np.stack(pd.read_parquet("preds.parquet")["output"].to_list())
    assert found == pytest.approx(_outputs(latest("runs/line")), rel=1e-5)
