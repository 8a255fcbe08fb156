"""What is offered for a recipe's flags."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fnloop.cli.completion_command import candidates
from tests.cli.test_chosen import BESIDE, CONFIG, OTHERS, RECIPE


@pytest.fixture(autouse=True)
def files():
    Path("r.py").write_text(f"{RECIPE}\nraise SystemExit('it ran')\n")
    Path("others.py").write_text(OTHERS)
    Path("beside.py").write_text(BESIDE)
    Path("runs/a").mkdir(parents=True)
    Path("c.yaml").write_text(CONFIG)
    Path("runs/a/config.yaml").write_text(CONFIG.replace("r.py", "../../r.py"))


def words(*typed):
    """The words that may stand for the last one."""
    *before, last = typed
    return [word for word, _ in candidates(["fit", *before], last)]


def arguments(*typed):
    """The last names of the words."""
    return [word.rpartition(".")[2] for word in words(*typed)]


def test_arguments_of_the_class_that_is_chosen():
    of_net, of_deep = ["width", "drop", "help"], ["width", "layers", "help"]
    assert words("r.py", "--model.w") == ["--model.width"]
    assert arguments("r.py", "--model.") == of_net  # the default
    assert arguments("r.py", "--model", "beside.Deep", "--model.") == of_deep
    assert arguments("r.py", "--model=beside.Deep", "--model.") == of_deep
    assert arguments("--config", "c.yaml", "--model.") == of_net
    assert "weight_decay" in arguments("--config=c.yaml", "--optimizer.")  # of adamw, not of sgd
    assert "b1" in arguments("r.py", "--optimizer", "lion", "--optimizer.")
    assert "patience" in arguments("r.py", "--callbacks+", "fl.early_stopping", "--callbacks.")
    nested = ["r.py", "--model", "Twice", "--model.inner", "nn.Linear", "--model.inner."]
    assert arguments(*nested)[:2] == ["in_features", "out_features"]
    assert arguments("others.py", "--sizes.") == ["width", "help"]
    assert words("r.py", "--model")[:2] == ["--model", "--model.width"]
    assert words("r.py", "--rows.") == words("r.py", "--nothing.") == []


def test_flags_after_a_configuration_and_a_run():
    assert words("--config", "c.yaml", "--ro") == ["--rows"]
    assert [word for word, _ in candidates(["resume", "runs/a"], "--ro")] == ["--rows"]
    Path("broken.yaml").write_text("a: [")
    assert words("--config", "broken.yaml", "--ro") == []


def test_names_of_classes_and_words():
    assert words("r.py", "--model", "")[:2] == ["Net", "Twice"]
    assert words("r.py", "--model", "nn.Lin") == ["nn.Linear", "nn.LinearCrossEntropyLoss"]
    assert words("r.py", "--model.help", "Ne") == ["Net"]
    assert words("r.py", "--model", "=", "Ne") == ["Net"]  # as bash has it
    assert words("r.py", "--model=Ne") == ["--model=Net"]
    assert words("r.py", "--optimizer", "fl.optim.ada") == [
        f"fl.optim.{name}"
        for name in ("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw")
    ]
    assert "Net" not in words("r.py", "--rate", "") != []
    assert words("others.py", "--color", "") == ["red", "green"]
    assert words("r.py", "--folder", "") == []  # a file, which is the shell's
    assert "it ran" not in str(sys.modules.get("r"))
