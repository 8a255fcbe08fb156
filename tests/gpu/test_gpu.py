"""The checks of this folder: on the CPU always, so that they are known to work; on a GPU if any."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl

from . import reads, speed
from .__main__ import main
from .checks import CHECKS
from .problems import loss

on_a_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="no CUDA device here; where there is one, python -m tests.gpu runs these checks too",
)


@pytest.mark.lightning("T1", "S10")
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str, device: str) -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):
        CHECKS[name](device)


def reading(model, batch):
    found, metrics = loss(model, batch)
    return found, {**metrics, "read": fl.Last(found.item())}


def test_a_step_that_reads_from_the_device_is_found() -> None:
    step = fl.pipe(reading, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    with pytest.raises(RuntimeError, match="meta"):
        reads.quietly(step, "cpu")


def test_the_table_says_who_is_wrong() -> None:
    table = speed.compare("mlp", "cpu", speed.QUICK, seconds=1.0, steps=2, rounds=3)
    assert [row.name for row in table.rows] == ["by hand *", "fnloop, eager"]
    assert all(row.median > 0 for row in table.rows) and not speed.wrong(table)
    table.losses["fnloop, eager"] *= 1.1
    table.failed["another"] = "ValueError: no"
    failed, apart = speed.wrong(table)
    assert failed == "another failed: ValueError: no" and "fnloop, eager ends with" in apart


def test_the_report(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tests.gpu", "--device", "cpu", "--only", "law 1"])
    assert main() == 0
    said = capsys.readouterr().out
    assert "| law 11, stable | passed |" in said and "## Everything passed" in said

    def broken(device: str) -> None:
        raise AssertionError("as it should")

    monkeypatch.setitem(CHECKS, "law 11, stable", broken)
    assert main() == 1
    said = capsys.readouterr().out
    assert "| law 11, stable | FAILED |" in said and "- law 11, stable: AssertionError: as" in said
