"""``fnloop find-lr`` and ``fnloop find-batch-size``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import NESTED

SIZE = "fl.Batches((x[:160], y[:160]), batch_size)"


def suggested(text):
    """The line of the suggestion, without its title."""
    return re.search(r"^suggestion +(.*)$", text, re.MULTILINE)[1]


def test_a_learning_rate_as_a_flag_that_trains(recipe, cli, numbers):
    code, out, err = cli("find-lr", recipe)
    assert code == 0, err
    flag, value = suggested(out).split()
    assert flag == "--lr" and 0.003 < float(value) < 1.0
    assert out.splitlines()[0].split() == ["lr", "loss", "smoothed"]
    assert f"{float(value):.3g}" in next(line for line in out.splitlines() if "<-" in line)
    assert not Path("runs").exists()
    code, out, _ = cli("fit", recipe, flag, value, "--epochs", "10")
    assert code == 0 and numbers(out)["val"]["loss"] < 0.1


def test_options_and_flags(recipe, cli):
    options = ["--from", "1e-4", "--to", "0.5", "--candidates", "20", "--plot", "a/lr.png"]
    code, out, _ = cli("find-lr", recipe, *options, "--batch-size", "40")
    assert code == 0 and "plot        a/lr.png" in out
    assert Path("a/lr.png").read_bytes()[:4] == b"\x89PNG"
    rows = [line.split()[0] for line in out.splitlines()[1:] if line and line[0] == " "]
    assert rows[0] == "0.0001" and float(rows[-1]) <= 0.5


def test_one_of_several_rates(edited, cli):
    recipe = edited(
        "fl.optim.sgd(lr)",
        'fl.optim.by_label({"a": fl.optim.sgd(lr), "b": fl.optim.adam(0.1)}, {"bias": "b", "*": "a"'
        "})",
    )
    code, _, err = cli("find-lr", recipe)
    assert code == 2 and "--of NAME, one of: a.sgd.lr, b.adam.lr" in err
    code, out, _ = cli("find-lr", recipe, "--of", "b.adam.lr")
    assert code == 0 and suggested(out).startswith("b.adam.lr = ")  # no flag is known to set it
    code, _, err = cli("find-lr", recipe, "--of", "adam.lr")
    assert code == 2 and "--of adam.lr: there is no such learning rate. There are: a.sgd.lr" in err


def test_a_learning_rate_within_a_flag(cli):
    Path("line.py").write_text(NESTED)
    code, out, err = cli("find-lr", "line.py")
    assert code == 0, err
    flag, value = suggested(out).split()
    assert flag == "--opt.lr"
    assert cli("fit", "line.py", flag, value, "--epochs", "1")[0] == 0
    Path("line.py").write_text(NESTED.replace("epochs: int = 3", "epochs: int = 3, my_lr: int = 1"))
    assert suggested(cli("find-lr", "line.py")[1]).startswith("--my_lr ")  # the nearest one


def test_negative_numbers(edited, cli):
    recipe = edited("fl.optim.sgd(lr)", "fl.optim.sgd(10**lr)")
    code, _, err = cli("find-lr", recipe, "--lr", "-1e0")
    assert code == 0, err
    assert (
        "above 0, to --to, which is larger; got -0.001"
        in cli("find-lr", recipe, "--from", "-1e-3")[2]
    )


def test_no_suggestion_is_an_error_that_says_why(recipe, cli):
    code, out, err = cli("find-lr", recipe, "--to", "1e-6")
    assert code == 1 and "smoothed" in out and "suggestion" not in out
    assert "There is no suggestion for sgd.lr: the loss does not fall" in err
    assert "try other limits (--from, --to), more --candidates, or larger batches." in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which recipe? fnloop find-lr RECIPE.py"),
        (["line.py", "--plot", "lr.txt"], "expected a file called .png, .pdf, .svg"),
        (["line.py", "--lrr", "3"], "There is no flag --lrr. Did you mean --lr?"),
        (["line.py", "--from", "x"], "--from takes float, got 'x'."),
        (["line.py", "--from", "None"], "--from takes float, got 'None'."),
        (["line.py", "--from", "1", "--to", "0.1"], "--to, which is larger; got 1 and 0.1."),
        (
            ["line.py", "--from", "0"],
            "from --from, above 0, to --to, which is larger; got 0 and 10",
        ),
        (["line.py", "--candidates", "1"], "--candidates takes a number, 2 or more, got 1."),
    ],
)
def test_a_wrong_command_line(recipe, cli, arguments, message):
    code, _, err = cli("find-lr", *arguments)
    assert code == 2 and message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "0"], "--from takes a size, 1 or more, got 0."),
        (["--to", "-2"], "--to takes a size, 1 or more, got -2."),
        (["--search", "all"], "--search takes power or binary, got 'all'."),
    ],
)
def test_a_wrong_search_of_batch_sizes(recipe, cli, arguments, message):
    code, _, err = cli("find-batch-size", recipe, *arguments)
    assert code == 2 and message in err


def test_a_flag_with_the_name_of_an_option(edited, cli):
    recipe = edited("note: str | None", "plot: str | None")
    code, _, err = cli("find-lr", recipe)
    assert code == 2 and "a parameter 'plot', and --plot is an option of fnloop find-lr" in err
    assert cli("find-batch-size", recipe, "--to", "2")[0] == 0


def test_the_largest_batch_that_fits(edited, cli):
    recipe = edited(
        "    x, y = batch\n", "    x, y = batch\n    if len(x) > 50: raise MemoryError\n"
    )
    code, out, err = cli("find-batch-size", recipe)
    assert code == 0, err
    assert suggested(out) == "--batch_size 32" and "because     64 does not fit" in out
    assert "       64  not enough memory" in out
    code, out, _ = cli("find-batch-size", recipe, "--search", "binary", "--from", "40")
    assert suggested(out) == "--batch_size 50"
    recipe = edited("len(x) > 50", "True")
    code, out, err = cli("find-batch-size", recipe)
    assert code == 1 and "no suggestion for --batch_size: not even a batch of 1 fits" in err


def test_no_more_than_there_are_examples(recipe, cli):
    code, out, _ = cli("find-batch-size", recipe, "--search", "binary")
    assert code == 0 and suggested(out) == "--batch_size 160"
    assert "because     160 is the most allowed" in out
    code, out, _ = cli("find-batch-size", recipe, "--to", "20")
    assert suggested(out) == "--batch_size 16"


def test_which_flag_is_the_batch_size(edited, cli):
    recipe = edited("batch_size: int = 32", "size: int = 32")
    recipe.write_text(recipe.read_text().replace(SIZE, SIZE.replace("batch_size", "size")))
    code, _, err = cli("find-batch-size", recipe)
    assert code == 2 and "--of takes one of: size, epochs" in err
    code, out, _ = cli("find-batch-size", recipe, "--of", "size", "--to", "8")
    assert code == 0 and suggested(out) == "--size 8"
    code, _, err = cli("find-batch-size", recipe, "--of", "epochs")
    assert code == 1 and "--epochs 4 gives the same first batch as 2: f32[32,2], f32[32,1]" in err
