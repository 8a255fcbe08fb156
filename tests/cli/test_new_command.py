"""``fnloop new``: what it writes passes its own tests, and it writes over nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fnloop as fl
from fnloop.cli.new_command import TEMPLATES
from fnloop.cli.templates.own_callback import new_callback

KINDS = {
    "grad": ("stage", "auto_clip"),
    "step": ("stage", "mean_of_all", "--kind", "step"),
    "callback": ("callback", "lowest"),
    "optimizer": ("optimizer", "slow_descent"),
    "effect": ("effect", "loss_file"),
    "tracker": ("tracker", "number_file"),
}


def test_what_is_written_passes_its_tests(cli, tmp_path):
    """All six, in a process of their own, as users run them, and with warnings as errors."""
    for words in KINDS.values():
        code, out, err = cli("new", *words)
        assert (code, err) == (0, "")
        assert out.splitlines()[0].startswith(f"{words[1]}.py ")
    assert len(list(tmp_path.glob("*.py"))) == 2 * len(KINDS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout


def test_a_callback_reads_one_value_of_a_metric_with_several():
    def matrix(model, x):
        return {"matrix": fl.metrics.confusion(model(x), (x[:, 0] > 0.2).long())}

    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    x = torch.linspace(-1, 1, 16).reshape(8, 2)
    data = fl.Batches(x, 4)
    validate = fl.every(1, fl.validate(matrix, data), unit="epoch")
    lowest = new_callback("val/matrix/accuracy")
    state = step.init(lambda: nn.Linear(2, 2), seed=0)
    _, history = fl.fit(step, state, data, epochs=3, callbacks=[validate, lowest])
    shown = history["val/matrix/accuracy"]
    assert history["new_callback"] == [min(shown[: i + 1]) for i in range(3)]


def test_no_name_of_a_template_is_left(cli, tmp_path):
    for words in KINDS.values():
        assert cli("new", *words)[0] == 0
    text = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.py"))
    assert "templates" not in text
    assert not [word for t in TEMPLATES.values() for word in (t.word, t.file) if word in text]
    assert "class AutoClip(" in text and "class lowest(" in text and "class LossFile(" in text


def test_a_stage_may_be_a_callback(cli, tmp_path):
    cli("new", "stage", "a_callback", "--kind", "callback")
    cli("new", "callback", "b_callback")
    a, b = ((tmp_path / f"{name}_callback.py").read_text() for name in "ab")
    assert a.replace("a_callback", "b_callback") == b


def test_it_writes_over_nothing(cli, tmp_path):
    (tmp_path / "test_mine.py").write_text("kept")
    code, _, err = cli("new", "stage", "mine")
    assert code == 1 and "test_mine.py is there already" in err
    assert (tmp_path / "test_mine.py").read_text() == "kept" and not Path("mine.py").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model", "a"), "makes one of stage, optimizer, callback, effect, tracker"),
        (("stage", "AutoClip"), "lower-case letters"),
        (("stage", "../a"), "lower-case letters"),
        (("stage", "lambda"), "lambda is a word of Python's own. Take another, such as my_lambda"),
        (("stag", "a"), "was asked for 'stag'. Did you mean stage?"),
        (("stage", "torch"), "There is a module torch already"),
        (("stage", "a", "--kind", "loss"), "--kind is one of grad, step, callback"),
        (("optimizer", "a", "--kind", "grad"), "--kind is that of a stage"),
        (("stage",), "Missing: NAME"),
    ],
)
def test_what_is_meant_is_said(cli, tmp_path, words, said):
    code, _, err = cli("new", *words)
    assert code == 2 and said in err
    assert list(tmp_path.iterdir()) == []
