"""Recipes of one process do not hear of one another, and what they do to it is undone or told."""

from __future__ import annotations

import os
import sys

import pytest

from fnloop.cli.isolation import forget
from fnloop.cli.source import build, load_function

RECIPE = """
import torch, fnloop as fl
{first}
def recipe(lr: float = 0.1) -> fl.Recipe:
    {then}
    loss = lambda m, b: m(b).square().mean()
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr)))
    data = fl.Batches(torch.ones(4, 1), 2)
    return fl.Recipe(step, lambda: torch.nn.Linear(1, 1), data, epochs=1, folder={folder!r})
"""


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    forget()


@pytest.fixture
def place(tmp_path):
    """Write a recipe to a folder: ``place("a", first=..., helpers=...) -> file``."""

    def write(name, first="", then="pass", folder=None, **modules):
        (tmp_path / name).mkdir(exist_ok=True)
        for module, text in modules.items():
            file = tmp_path / name / f"{module}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        file = tmp_path / name / "r.py"
        file.write_text(RECIPE.format(first=first, then=then, folder=folder))
        return file

    return write


def test_each_recipe_has_the_modules_beside_it(place, cli):
    for name in ("a", "b", "a"):
        file = place(
            name, "import helpers", f"assert helpers.NAME == {name!r}", helpers=f"NAME = {name!r}"
        )
        assert cli("fit", file)[0] == 0
    assert "helpers" not in sys.modules


def test_each_recipe_has_the_packages_beside_it(place, cli, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "parts").mkdir(parents=True)
        (tmp_path / name / "parts" / "one.py").write_text(f"NAME = {name!r}")
        file = place(name, "from parts.one import NAME", f"assert NAME == {name!r}")
        assert cli("fit", file)[0] == 0


def test_what_is_imported_late_is_its_own(place):
    files = [
        place(n, "", f"import late; assert late.NAME == {n!r}", late=f"NAME = {n!r}") for n in "ab"
    ]
    functions = [load_function(file) for file in files]
    for _ in range(2):
        for file, function in zip(files, functions, strict=True):
            build(function, file, {})


def test_a_module_that_was_edited_is_read_again(place, cli):
    for number in (1, 2):
        file = place(
            "a", "import helpers", f"assert helpers.N == {number}", helpers=f"N = {number}"
        )
        assert cli("fit", file)[0] == 0
        os.utime(file.parent / "helpers.py", (number, number))


def test_a_module_of_another_place_does_not_hide_one_beside(place, cli, tmp_path, monkeypatch):
    (tmp_path / "helpers.py").write_text("NAME = 'mine'")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = __import__("helpers")
    file = place("a", "import helpers", "assert helpers.NAME == 'a'", helpers="NAME = 'a'")
    assert cli("fit", file)[0] == 0
    assert sys.modules["helpers"] is mine
    del sys.modules["helpers"]


def test_paths_and_variables_hold_for_the_run_and_are_undone(place, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("FNLOOP_TEST_OLD", "old")
    monkeypatch.delenv("FNLOOP_TEST_NEW", raising=False)
    path = list(sys.path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "elsewhere.py").write_text("")
    first = (
        f"import os, sys; sys.path.append({str(tmp_path / 'lib')!r}); import elsewhere\n"
        "os.environ['FNLOOP_TEST_NEW'] = 'new'; del os.environ['FNLOOP_TEST_OLD']"
    )
    held = "assert os.environ['FNLOOP_TEST_NEW'] == 'new' and 'FNLOOP_TEST_OLD' not in os.environ"
    assert cli("fit", place("a", first, held))[0] == 0
    assert sys.path == path and "elsewhere" not in sys.modules
    assert os.environ["FNLOOP_TEST_OLD"] == "old" and "FNLOOP_TEST_NEW" not in os.environ
    other = place("b", "import os", "assert 'FNLOOP_TEST_NEW' not in os.environ")
    assert cli("fit", other)[0] == 0


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("when", ["first", "then"])
def test_a_change_of_directory_is_undone_and_told(place, cli, tmp_path, when):
    file = place("a", folder="run", **{when: "import os; os.chdir('/')"})
    code, _, err = cli("fit", file)
    assert code == 0 and "changed the working directory to /; it is" in err
    assert os.getcwd() == str(tmp_path) and (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.parametrize("when", ["first", "then"])
@pytest.mark.parametrize("call", ["sys.exit()", "sys.exit(0)", "sys.exit('done')", "exit(3)"])
def test_an_exit_is_an_error_that_names_its_line(place, cli, when, call):
    code, out, err = cli("fit", place("a", **{when: f"import sys; {call}"}))
    assert code == (3 if "3" in call else 1) and out == ""
    assert "a/r.py calls sys.exit(" in err and "a/r.py:" in err and call in err
