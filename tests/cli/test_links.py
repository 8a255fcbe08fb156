"""References among flags, in configurations and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fnloop.cli.yaml_dialect import load
from tests.cli.test_chosen import BESIDE
from tests.cli.test_chosen import RECIPE as CHOSEN

LINKED = r"""
recipe: r.py
rows: ${model.width}
model:
  class_path: beside.Deep
  init_args: {width: 16, layers: "${callbacks.0.patience}"}
callbacks:
- class_path: fl.early_stopping
  init_args: {monitor: loss, patience: 3}
folder: runs/w${rows}-${optimizer.momentum}-\${x}
"""


@pytest.fixture(autouse=True)
def files(recipe):
    Path("r.py").write_text(CHOSEN)
    Path("beside.py").write_text(BESIDE)
    Path("linked.yaml").write_text(LINKED)


@pytest.fixture
def printed(cli):
    def run(*arguments):
        code, out, err = cli("fit", *arguments, "--print-config")
        assert code == 0, err
        return load(out)

    return run


@pytest.fixture
def refused(cli):
    def run(*arguments):
        code, _, err = cli("fit", *arguments, "--print-config")
        assert code == 2
        return err

    return run


@pytest.mark.lightning("I5")
def test_a_value_refers_to_another_by_its_path(printed):
    found = printed("--config", "linked.yaml")
    assert found["rows"] == 16
    assert found["model"]["init_args"] == {"width": 16, "layers": 3}
    # Printed is what each stands for, and a text that is no reference as such a text.
    assert found["folder"] == r"runs/w16-0.9-\${x}"


def test_references_hold_after_all_is_put_together(printed, monkeypatch):
    Path("more.yaml").write_text("model: {class_path: Net, init_args: {drop: 0.5}}\n")
    found = printed("--config", "linked.yaml", "--config", "more.yaml")
    assert found["rows"] == 8  # Net's own default: the 16 was of another class
    assert printed("--config", "linked.yaml", "--model.width=5")["rows"] == 5
    monkeypatch.setenv("T_ROWS", "4")
    found = printed("r.py", "--env", "T", "--model.width", "${rows}")
    assert found["model"]["init_args"]["width"] == 4


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["--rows", "${model.init_args.width}"], 8),
        (["--rows=${model.width}", "--model.width", "3"], 3),
        (["--model", "{class_path: Net, init_args: {width: 3}}", "--rows", "${model.width}"], 3),
        (["--model", '{class_path: Net, init_args: {width: "${rows}"}}', "--rows", "7"], 7),
    ],
)
def test_in_flags(printed, arguments, rows):
    found = printed("r.py", *arguments)
    assert (found["rows"], found["model"]["init_args"]["width"]) == (rows, rows)


def test_defaults_of_a_class_that_is_chosen_by_its_short_name(printed):
    found = printed("r.py", "--optimizer", "lion", "--folder", "runs/${optimizer.b1}")
    assert found["folder"] == "runs/0.9"


def test_a_reference_within_a_text_is_its_words(printed):
    found = printed(
        "line.py", "--epochs", "${batch_size}", "--folder", "a${epochs}-${early}-${note}"
    )
    assert (found["epochs"], found["folder"]) == (32, "a32-false-null")


def test_a_saved_configuration_makes_the_same_run(cli, recipe, caplog):
    code, _, err = cli(
        "fit", recipe, "--note", r"\${lr}", "--epochs", "1", "--folder", "runs/${lr}"
    )
    assert code == 0, err
    saved = Path("runs/0.05/config.yaml").read_text()
    assert "folder: runs/0.05\n" in saved and "note: \\${lr}\n" in saved
    _, out, _ = cli("fit", "--config", "runs/0.05/config.yaml", "--print-config")
    assert load(out) == {**load(saved), "recipe": "line.py"}
    code, _, err = cli("resume", "runs/0.05")
    assert code == 0 and "has changed" not in caplog.text and "note=${lr}" in err


def test_what_is_swept_is_referred_to_as_well(cli, edited):
    edited("fl.optim.sgd(lr)", "fl.optim.sgd(lr, momentum=momentum)")
    file = edited("lr: float = 0.05,", "lr: float = 0.05, momentum: float = 0.0,")
    code, _, err = cli("sweep", file, "--lr", "0.1,0.2", "--momentum", "${lr}", "--epochs", "1")
    assert code == 0 and "sgd.momentum" in err, err


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("rows: ${row}", "c.yaml:2: ${row} refers to nothing. Did you mean ${rows}? The flags: "),
        ("rows: ${model.widht}", "c.yaml:2: ${model.widht} refers to nothing: model has no"),
        (
            "model:\n  class_path: Net\n  init_args:\n    width: ${row}",
            "c.yaml:5: ${row} refers to nothing.",
        ),
        ("rows: ${rows}", "${rows} refers to itself: rows -> rows. One of them needs a value."),
        (
            "rows: ${model.width}\nmodel:\n  class_path: Net\n  init_args:\n    width: ${rows}",
            "refers to itself: rows -> model.width -> rows",
        ),
        ("rows: ${folder}", "c.yaml:2: rows takes int, got 'runs/a'. (rows is from ${folder})"),
        (
            'model: {class_path: Net, init_args: {width: "${folder}"}}',
            "model.width takes int, got 'runs/a'. (model.width is from ${folder})",
        ),
        ("model: {class_path: Net, init_args: {width: ${rows}}}", "braces stands in quotes"),
    ],
)
def test_what_is_wrong_with_a_reference(refused, config, said):
    Path("c.yaml").write_text(f"recipe: r.py\n{config}\n")
    assert said in refused("--config", "c.yaml")


def test_a_wrong_type_on_the_command_line(refused):
    text = refused("line.py", "--epochs", "${folder}")
    assert "--epochs takes int, got 'runs/line'. (epochs is from ${folder})" in text


def test_a_flag_without_a_value_is_no_source(cli, edited):
    file = edited("lr: float = 0.05,", "lr: float,")
    code, _, err = cli("fit", file, "--note", "${lr}")
    assert code == 2 and "${lr} has no value: lr is given nowhere, and has no default." in err
