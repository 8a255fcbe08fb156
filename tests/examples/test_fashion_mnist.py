"""Fashion-MNIST from files of its format, here and in Lightning."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fnloop as fl

RANDOM = np.random.default_rng(0)


def write(path: Path, values: np.ndarray[Any, Any]) -> None:
    """An IDX file: two zeros, the type of bytes, the number of dimensions, the sizes, the bytes."""
    head = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(
        f">{values.ndim}i", *values.shape
    )
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures whose class is the row of a bright line."""
    for part, count in (("train", 600), ("t10k", 50)):
        classes = RANDOM.integers(0, 10, count)
        images = RANDOM.integers(0, 60, (count, 28, 28))
        images[np.arange(count), 2 * classes + 4] = 255
        write(tmp_path / f"{part}-images-idx3-ubyte.gz", images)
        write(tmp_path / f"{part}-labels-idx1-ubyte.gz", classes)
    return tmp_path


@pytest.fixture
def double() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_it_reads_the_files_and_learns(example: Any, folder: Path, capsys: Any) -> None:
    example("fashion_mnist").main(["--folder", str(folder), "--epochs", "6"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(rows) == 6 and float(rows[-1].split()[-1]) > 0.5
    data = example("fashion_mnist").pictures(folder, "t10k")
    x, y = data.tensors
    assert x.shape == (50, 1, 28, 28) and x.dtype == torch.float32 and float(x.max()) == 1.0
    assert torch.equal(x[:, 0, 4:24:2].mean(2).argmax(1), y)


def test_missing_files_are_told_of(example: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"There is no .*train-images.*dataset-fashion-mnist"):
        example("fashion_mnist").main(["--folder", str(tmp_path)])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of Lightning
def test_losses_are_those_of_lightning(example: Any, folder: Path, double: None) -> None:
    pytest.importorskip("pytorch_lightning")
    other = example("fashion_mnist_lightning")
    theirs = other.trained(folder, epochs=3)
    state, history = example("fashion_mnist").trained(folder, epochs=3)
    for name in ("loss", "test/loss"):
        assert history[name] == pytest.approx([row[name] for row in theirs.rows], rel=1e-12)
    for name, weight in theirs.model.state_dict().items():
        assert torch.allclose(state.params[name], weight, rtol=1e-10, atol=1e-12)

    module = other.Classifier(folder, 3)  # brought as it is
    module.model.load_state_dict(fl.to_module(fl.grad(max).init(other.network, 0)).state_dict())
    every_epoch = fl.data.limit(lambda epoch: other.shuffled(module.training_data, epoch), 5)
    data = fl.Data(every_epoch, module.val_dataloader())  # 600 pictures, 128 at a time
    run = fl.lightning.step(module, data, epochs=3)
    state, history = fl.fit(run.step, run.init(), run.data, epochs=3, callbacks=run.callbacks)
    for name in ("loss", "test/loss"):
        assert history[name] == pytest.approx([row[name] for row in theirs.rows], rel=1e-12)
    for name, weight in theirs.model.state_dict().items():
        assert torch.allclose(state.params[f"model.{name}"], weight, rtol=1e-10, atol=1e-12)
