"""`faultio.c`, built: the C library's calls, of which one can be made to fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def faultio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is to be preloaded."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("faultio") / "faultio.so"
    source = Path(__file__).with_name("faultio.c")
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library
