"""``fnloop completion``: in a shell, and word by word."""

from __future__ import annotations

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
    assert words("show", "") == [] == words("nothing", "-")  # files are the shell's


def test_flags_of_a_recipe_are_read_without_running_it():
    Path("line.py").write_text(RECIPE + "\nraise SystemExit('it ran')\n")
    assert words("fit", "line.py", "--e") == ["--env", "--epochs", "--early"]
    assert words("sweep", "line.py", "--no") == ["--no-early", "--note"]
    Path("broken.py").write_text("def recipe(:")
    assert words("fit", "broken.py", "--no") == []


def test_bash_completes_by_it():
    script = """
    fnloop() { "$PYTHON" -m fnloop "$@"; }
    eval "$(fnloop completion bash)"
    COMP_WORDS=(fnloop fit line.py --lr) COMP_CWORD=3
    _fnloop
    echo "${COMPREPLY[@]}"
    complete -p fnloop
    """
    Path("line.py").write_text(RECIPE)
    env = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "--lr", done.stderr
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
