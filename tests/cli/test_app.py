from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fnloop
from fnloop.cli.app import main

COMMANDS = ["fit", "resume", "validate", "test", "predict", "show", "diff", "replay", "export"]
COMMANDS += ["summary", "find-lr", "find-batch-size"]


@pytest.mark.lightning("I1")
def test_help_names_every_command(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)
    assert "Did you mean --version?" in cli("--versoin")[2]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_is_as_wide_as_the_terminal(recipe, cli, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS)):
        lines = cli(*arguments)[1].splitlines()
        assert max(map(len, lines)) < int(columns), arguments
        assert not any(line.endswith("-") for line in lines), "a word is broken"
    lines = cli("fit", recipe, "--help")[1].splitlines()
    assert lines[0].startswith("usage: fnloop fit line.py [") and max(map(len, lines)) < int(
        columns
    )
    text = " ".join(lines)
    assert "Fit a line." in text and "The rate of learning. (type: float, default: 0.05)" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, cli):
    code, out, err = cli(command, "--help")
    assert code == 0 and f"usage: fnloop {command} " in out, err


@pytest.mark.lightning("I5")
def test_help_of_a_recipe_has_its_flags_types_defaults_and_docs(recipe, cli):
    code, out, _ = cli("fit", recipe, "--help")
    assert code == 0
    text = " ".join(out.split())
    assert "flags of line.py" in text
    assert "--lr LR The rate of learning. (type: float, default: 0.05)" in text


def test_no_command_is_a_usage_error_with_help(cli):
    code, out, err = cli()
    assert code == 2 and out == "" and "usage: fnloop" in err


def test_version(cli):
    assert cli("--version") == (0, f"fnloop {fnloop.__version__}\n", "")


def test_a_mistyped_command(cli):
    code, _, err = cli("fitt")
    assert code == 2 and "Did you mean fit?" in err


def test_a_recipe_for_a_command(recipe, cli):
    code, _, err = cli("line.py")
    assert code == 2 and "fnloop fit line.py" in err


def test_traceback_shows_the_traceback(edited, cli):
    recipe = edited("make = torch", "1 / 0\n    make = torch")
    code, _, err = cli("fit", recipe, "--traceback")
    assert code == 1 and "Traceback (most recent call last)" in err
    assert "Traceback" not in cli("fit", recipe)[2]


def test_the_recipes_own_exit_is_respected(edited, cli):
    recipe = edited("make = torch", "raise SystemExit(7)\n    make = torch")
    assert cli("fit", recipe)[0] == 7


def test_ctrl_c_outside_of_training(edited, cli):
    recipe = edited("make = torch", "raise KeyboardInterrupt\n    make = torch")
    code, _, err = cli("fit", recipe)
    assert code == 130 and "interrupted" in err


def test_warnings_are_one_line_with_the_users_place(edited, cli, recwarn):
    import warnings

    recipe = edited("make = torch", "import warnings; warnings.warn('beware')\n    make = torch")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = cli("fit", recipe)
    assert code == 0
    assert "warning: beware (line.py:" in err


@pytest.mark.lightning("I7")
def test_the_console_script_and_the_module_are_main():
    from importlib.metadata import entry_points

    [script] = [e for e in entry_points(group="console_scripts") if e.name == "fnloop"]
    assert script.load() is main


def test_help_needs_no_torch():
    """With a stand-in for the package's own table of contents, which imports everything."""
    code = (
        "import sys, types\n"
        "package = types.ModuleType('fnloop')\n"
        f"package.__path__ = [{str(Path(fnloop.__file__).parent)!r}]\n"
        "sys.modules['fnloop'] = package\n"
        "from fnloop.cli.app import main\n"
        "codes = [main(['--help']), main(['fit', '--help']), main(['test', '--help'])]\n"
        "assert codes == [0, 0, 0], codes\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_closed_pipe_is_no_error(trained):
    command = f"{sys.executable} -m fnloop show {trained} | head -1"
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.fixture
def without_torch(tmp_path):
    """An environment in which importing torch ends the process."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}


def test_the_first_line_is_there_before_torch_is_imported(without_torch, tmp_path):
    (tmp_path / "line.py").write_text("import torch")
    own, terminal = os.openpty()
    command = [sys.executable, "-m", "fnloop", "fit", "line.py", "--lr", "0.1"]
    with subprocess.Popen(command, stderr=terminal, cwd=tmp_path, env=without_torch) as process:
        os.close(terminal)
        assert process.wait(30) == 1
    lines = os.read(own, 4096).decode().splitlines()
    os.close(own)
    assert lines == ["fnloop fit line.py --lr 0.1: importing PyTorch", "torch is imported"]


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["--version"]])
def test_help_needs_no_torch_and_a_pipe_gets_no_first_line(without_torch, arguments):
    command = [sys.executable, "-m", "fnloop", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, env=without_torch)
    assert run.returncode == 0 and run.stdout and not run.stderr
