from __future__ import annotations

import sys

import pytest


@pytest.fixture
def message(cli):
    """What fit says about a recipe file that cannot be used."""

    def read(file, code=2):
        found, out, err = cli("fit", file)
        assert found == code and out == "" and "Traceback" not in err, err
        return err

    return read


def test_a_missing_recipe(recipe, message):
    err = message("lime.py")
    assert "There is no recipe lime.py. Did you mean line.py?" in err


def test_a_folder_for_a_recipe(tmp_path, message):
    (tmp_path / "code.py").mkdir()
    assert "code.py is a folder" in message("code.py")


def test_a_configuration_for_a_recipe(tmp_path, message):
    (tmp_path / "a.yaml").write_text("lr: 0.1\n")
    assert "a.yaml is a configuration, and no recipe: --config a.yaml." in message("a.yaml")


def test_no_recipe_at_all(cli):
    code, _, err = cli("fit")
    assert code == 2 and "fnloop fit RECIPE.py" in err


def test_a_file_without_the_function(edited, message):
    assert "has no function recipe" in message(edited("def recipe(", "def train("))


def test_an_error_while_it_is_imported(edited, message):
    err = message(edited("import torch\n", "import torch\nimport nonexistent_thing\n"), code=1)
    assert "ModuleNotFoundError: No module named 'nonexistent_thing'" in err
    assert "line.py:5" in err and "import nonexistent_thing" in err


def test_an_error_in_the_function(edited, message):
    recipe = edited("make = torch", "{}['missing']\n    make = torch")
    err = message(recipe, code=1)
    assert "KeyError: missing" in err
    assert "in recipe" in err and "{}['missing']" in err


def test_an_error_of_fnloops_own_shows_the_users_line(edited, message):
    err = message(edited("batch_size),\n", "0),\n"), code=1)
    assert "fnloop fit: Batches(batch_size=...) takes a whole number of at least 1, got 0" in err
    assert "line.py:" in err and "train=fl.Batches((x[:160], y[:160]), 0)" in err


def test_a_syntax_error(edited, message):
    err = message(edited("def loss(model, batch):", "def loss(model, batch:"), code=1)
    assert "SyntaxError" in err and "line.py:" in err and err.count("def loss") == 1


def test_the_wrong_return_value(tmp_path, message):
    (tmp_path / "a.py").write_text("def recipe(lr: float = 1.0):\n    return 3\n")
    assert "must return fl.Recipe(step, model, data, ...); it returned int" in message("a.py", 1)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ("lr=0.1", "parameter 'lr' without a type; write lr: float"),
        ("config: str = ''", "--config is fnloop's own"),
        ("**options: int", "takes *options"),
        ("lr: float = 1.0, /", "by position only"),
    ],
)
def test_parameters_that_cannot_be_flags(parameters, expected, tmp_path, message):
    (tmp_path / "a.py").write_text(f"def recipe({parameters}): ...\n")
    assert expected in message("a.py")


def test_it_leaves_nothing_behind(recipe, cli, tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 0.5\n")
    recipe.write_text("from beside import VALUE\n" + recipe.read_text())
    path = list(sys.path)
    assert cli("fit", recipe, "--print-config")[0] == 0
    assert sys.path == path
    assert not list(tmp_path.rglob("__pycache__")) and "beside" not in sys.modules


def test_it_does_not_replace_a_module_of_the_same_name(edited, cli, tmp_path):
    import json

    file = tmp_path / "json.py"
    file.write_text(edited("import os", "import os").read_text())
    assert cli("fit", file, "--print-config")[0] == 0
    assert sys.modules["json"] is json


def test_its_classes_may_be_dataclasses_with_postponed_annotations(edited, cli):
    recipe = edited(
        "def loss(",
        "import dataclasses, typing\n\n\n@dataclasses.dataclass\nclass Size:\n"
        "    width: 'typing.ClassVar[int]' = 3\n\n\ndef loss(",
    )
    assert cli("fit", recipe, "--print-config")[0] == 0
