"""Models of transformers, timm, torchvision, diffusers and torch_geometric train as they should.

Those whose library is not installed are skipped.
"""

from __future__ import annotations

import pytest

from .entry import Entry
from .real_models import MODELS, installed, main, table, tried


@pytest.mark.slow
@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_a_model_trains_compiles_accumulates_and_resumes(entry: Entry) -> None:
    if not installed(entry):
        pytest.skip(f"{entry.library} is not installed")
    failed = {check: said for check, said in tried(entry).items() if "FAILED" in said}
    assert not failed


def test_names_are_unique_and_the_table_has_a_row_for_each() -> None:
    names = [entry.name for entry in MODELS]
    assert len(set(names)) == len(names) >= 30
    rows = {name: {"eager": "FAILED: ValueError: why"} for name in names}
    assert table(rows).count("| FAILED |") == len(names)


def test_a_model_of_pytorch_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "lstm, CTC", "--markdown"]) == 0
    assert "| refused | " in capsys.readouterr().out
