"""``fnloop runs``: runs beside one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fnloop.cli.app import main
from tests.cli.conftest import NESTED, RECIPE


@pytest.fixture
def runs():
    """Two runs that ended, and one that has no checkpoint yet."""
    Path("line.py").write_text(RECIPE)
    for name, lr in (("a", "0.05"), ("b", "0.2")):
        assert (
            main(["fit", "line.py", "--lr", lr, "--epochs", "2", "--folder", f"runs/{name}"]) == 0
        )
    Path("runs/deep/c").mkdir(parents=True)
    Path("runs/deep/c/config.yaml").write_text("recipe: ../../../line.py\nlr: 0.05\n")


def table(capsys, *arguments):
    """The rows by column."""
    assert main(["runs", *arguments]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    starts = [word.start() for word in re.finditer(r"\S+", header)]
    ends = [*starts[1:], None]
    return [
        {header[s:e].strip(): row[s:e].strip() for s, e in zip(starts, ends, strict=True)}
        for row in rows
        if row
    ]


def test_what_they_reached_and_where_they_differ(runs, capsys):
    capsys.readouterr()
    a, b, c = table(capsys)
    assert (a["run"], b["run"], c["run"]) == ("runs/a", "runs/b", "runs/deep/c")
    assert (a["status"], a["epoch"], a["batches"]) == ("completed", "2", "10")
    assert float(b["val/loss"]) < float(a["val/loss"])
    assert (a["lr"], b["lr"]) == ("0.05", "0.2")
    assert "epochs" in a  # c has none
    assert c["status"] == "no checkpoint" and c["val/loss"] == "-"
    assert "epochs" not in table(capsys, "runs/a", "runs/b")[0]


def test_one_that_cannot_be_read_hides_no_other(runs, capsys):
    for name, text in {"d/config.yaml": "lr: [", "e/sweep.yaml": "recipe: ../../line.py\n"}.items():
        Path("runs", name).parent.mkdir()
        Path("runs", name).write_text(text)
    capsys.readouterr()
    assert main(["runs", "--sort", "run"]) == 0
    out = capsys.readouterr().out
    assert out.count("damaged:") == 2 and "runs/b" in out


def test_sorted_by_a_metric_and_drawn(runs, capsys):
    capsys.readouterr()
    rows = table(capsys, "runs/a", "runs/b", "--sort", "val/loss", "--metric", "val/loss,loss")
    assert [row["run"] for row in rows] == ["runs/b", "runs/a"]
    assert float(rows[0]["loss"]) < float(rows[1]["loss"])
    assert main(["runs", "--plot", "together.png", "--metric", "loss"]) == 0
    assert Path("together.png").stat().st_size > 10_000


def test_a_sweep_is_a_row_of_its_best_member(capsys):
    Path("line.py").write_text(RECIPE)
    assert main(["fit", "line.py", "--lr", "0.05", "--epochs", "2"]) == 0
    swept = ["sweep", "line.py", "--lr", "0.05,0.1,0.01"]
    assert main([*swept, "--epochs", "2", "--folder", "runs/s"]) == 0
    capsys.readouterr()
    line, best = table(capsys, "--metric", "val/loss,loss")
    assert (line["member"], best["member"], best["status"]) == ("-", "1 of 3", "completed")
    assert (line["lr"], best["lr"], best["batches"]) == ("0.05", "0.1", "10")
    assert main(["show", "runs/s", "--member", "best"]) == 0
    shown = capsys.readouterr().out
    assert f"val/loss={best['val/loss']}" in shown and f" loss={best['loss']}," in shown
    (own,) = table(capsys, "runs/s")
    assert own["val/loss"] == best["val/loss"]
    rows = table(capsys, "--sort", "val/loss", "--plot", "both.png")
    assert [row["run"] for row in rows[:2]] == ["runs/s", "runs/line"]
    assert Path("both.png").stat().st_size > 10_000
    # What is not known of a sweep without a result and without what is monitored:
    Path("runs/s/sweep.csv").unlink()
    text = Path("line.py").read_text()
    Path("line.py").write_text(text.replace(', monitor="val/loss"', ""))
    assert main([*swept, "--epochs", "1", "--folder", "runs/t"]) == 0
    Path("runs/t/sweep.csv").unlink()
    capsys.readouterr()
    known, unknown = table(capsys, "runs/s", "runs/t")
    assert known["member"] == "1 of 3"
    assert (unknown["member"], unknown["lr"]) == ("? of 3", "0.05,0.1,0.01")


def test_a_flag_within_another_is_a_column_of_its_own(capsys):
    Path("line.py").write_text(NESTED)
    assert main(["fit", "line.py", "--opt.lr", "0.05", "--epochs", "1"]) == 0
    swept = ["sweep", "line.py", "--opt.lr", "0.01,0.1", "--epochs", "1", "--folder", "runs/s"]
    assert main(swept) == 0
    capsys.readouterr()
    line, best = table(capsys)
    assert (line["opt.lr"], best["opt.lr"], best["member"]) == ("0.05", "0.1", "1 of 2")
    assert "opt" not in line and "opt.momentum" not in line
    assert main(["show", "runs/s", "--member", "best"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "opt={'lr': 0.1, 'momentum': 0.5}" in shown and "opt.lr=" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "There is no folder nowhere."),
        (["empty"], "There is no run in empty."),
        (["--metric", "val/los"], "Did you mean val/loss?"),
        (["--sort", "size"], "There are: run, status, epoch, batches, val/loss, lr"),
        (["--sort", "statu"], "Did you mean status?"),
        (["--plot", "a.txt"], "expected a file called"),
    ],
)
def test_what_cannot_be_shown(runs, capsys, arguments, message):
    Path("empty").mkdir()
    assert main(["runs", *arguments]) > 0
    assert message in capsys.readouterr().err
