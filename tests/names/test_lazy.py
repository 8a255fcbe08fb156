"""fnloop imports torch when a name is used, not before."""

from __future__ import annotations

import subprocess
import sys


def printed(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_torch_is_imported_with_the_first_name() -> None:
    code = (
        "import sys, fnloop as fl, fnloop.cli.app;"
        "before = 'torch' in sys.modules; fl.pipe; print(before, 'torch' in sys.modules)"
    )
    assert printed(code) == "False True"


def test_everything_can_be_imported_by_star_and_is_what_its_module_has() -> None:
    code = (
        "from fnloop import *; import fnloop, fnloop.loop.fit;"
        "print(fit is fnloop.fit is fnloop.loop.fit.fit, optim.adamw(0.5), 'fit' in dir(fnloop))"
    )
    assert printed(code) == "True adamw(lr=0.5) True"


def test_the_test_kit_is_there_without_another_import() -> None:
    assert printed("import fnloop as fl; print(fl.testing.check_pure.__name__)") == "check_pure"
