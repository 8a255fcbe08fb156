"""``fnloop completion``: in a shell, and word by word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fnloop.cli.app import main
from fnloop.cli.completion_command import candidates
from tests.cli.conftest import RECIPE

ROOT = Path(__file__).parents[2]


def words(*typed):
    """The words that may stand for the last one."""
    *before, last = typed
    return [word for word, _ in candidates(before, last)]


def test_commands_and_their_options():
    assert words("re") == ["resume", "replay"]
    assert words("test", "--check") == ["--checkpoint"]
    assert words("show", "runs/a", "--member", "") == ["best"]
    assert words("fit", "--re") == ["--resume"]
    assert words("find-batch-size", "--search", "") == ["power", "binary"]
    assert words("completion", "z") == ["zsh"]
    assert words("new", "st") == ["stage"] and words("new", "stage", "") == []
    assert words("new", "stage", "a", "--kind", "g") == ["grad"]
    assert words("resume", "run", "--c") == []  # not one that --help leaves out
    assert words("show", "") == [] == words("nothing", "-")  # files are the shell's


def test_flags_of_a_recipe_are_read_without_running_it():
    Path("line.py").write_text(RECIPE + "\nraise SystemExit('it ran')\n")
    assert words("fit", "line.py", "--e") == ["--env", "--epochs", "--early"]
    assert words("sweep", "line.py", "--no") == ["--no-early", "--note"]
    Path("broken.py").write_text("def recipe(:")
    assert words("fit", "broken.py", "--no") == []


BASH = """
fnloop() { "$PYTHON" -m fnloop "$@"; }
eval "$(fnloop completion bash)"
COMP_WORDS=(fnloop new "") COMP_CWORD=2
_fnloop
echo "${COMPREPLY[@]}"
COMP_WORDS=(fnloop fit line.py --early =) COMP_CWORD=4
_fnloop
complete -p fnloop
"""
ZSH = """
fnloop() { "$PYTHON" -m fnloop "$@" }
compdef() { print compdef "$@" }
_describe() { print -rl -- "${(@P)2}" }
eval "$(fnloop completion zsh)"
words=(fnloop new "") CURRENT=3
_fnloop
"""
FISH = """
function fnloop; "$PYTHON" -m fnloop $argv; end
fnloop completion fish | source
complete -C "fnloop new "
"""


@pytest.mark.parametrize(
    ("shell", "script"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)], ids=("bash", "zsh", "fish")
)
def test_a_shell_completes_by_it(shell, script, tmp_path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    Path("line.py").write_text(RECIPE)
    env = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    env |= {"HOME": str(tmp_path), "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    done = subprocess.run([program, "-c", script], env=env, capture_output=True, text=True)
    found = done.stdout.split()
    assert {"stage", "optimizer", "callback", "effect", "tracker"} <= {*found}, done.stderr
    assert "fit" not in found and "line.py" not in found
    if shell == "bash":
        assert "-F _fnloop fnloop" in done.stdout


def test_nothing_that_takes_seconds_is_imported():
    code = (
        "import sys; from fnloop.cli.app import main;"
        "main(['completion', 'words', 'fit', '--']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("arguments", [[], ["tcsh"], ["bash", "x"]])
def test_a_shell_that_is_not_known(capsys, arguments):
    assert main(["completion", *arguments]) == 2
    assert "fnloop completion bash|zsh|fish" in capsys.readouterr().err
