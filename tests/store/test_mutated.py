"""Weights and checkpoints with random damage: a state or a `CheckpointError`, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import fnloop as fl
from fnloop.store import patience
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.values.start import start

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
LIKE = start(MODEL, seed=0)
ESCAPES = ("\x1b[2J", "\x07", "\r")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(patience, "DELAYS", ())


def zipped(path: Path) -> Path:
    torch.save({"state_dict": MODEL.state_dict(), "epoch": 3}, path / "a.pt")
    return path / "a.pt"


def legacy(path: Path) -> Path:
    torch.save(MODEL.state_dict(), path / "a.bin", _use_new_zipfile_serialization=False)
    return path / "a.bin"


def safetensors(path: Path) -> Path:
    save_file(MODEL.state_dict(), path / "a.safetensors")
    return path / "a.safetensors"


def checkpoint(name: str) -> Callable[[Path], Path]:
    return lambda path: fl.save(LIKE, path / "run") / name


FORMATS = {
    "zip": zipped,
    "legacy": legacy,
    "safetensors": safetensors,
    "manifest": checkpoint("manifest.json"),
    "tensors": checkpoint("state.safetensors"),
}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four changes, half of them in its first bytes, where the structure is."""
    raw = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(min(len(raw), chance.choice((64, 1024, 1 << 30))) or 1)
        length = chance.choice((1, 1, 4, 8, 64))
        match chance.randrange(7):
            case 0:
                raw[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                raw[at : at + length] = chance.randbytes(length)
            case 2:
                raw[at : at + length] = chance.choice((b"\0", b"\xff")) * length
            case 3:
                del raw[at : at + length]
            case 4:
                raw[at:at] = raw[at : at + length]
            case 5:
                raw[at : at + 8] = chance.choice(
                    (2**63 - 1, 2**64 - 1, 2**31, 2**40, len(raw))
                ).to_bytes(8, "little")
            case _:
                del raw[at:]
        if not raw:
            break
    return bytes(raw)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("times", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_mutated_file_gives_a_state_or_a_checkpoint_error(
    tmp_path: Path, format: str, times: int
) -> None:
    path = FORMATS[format](tmp_path)
    data, chance, refused = path.read_bytes(), random.Random(times), 0
    own = format in ("manifest", "tensors")
    for number in range(times):
        path.write_bytes(mutated(data, chance))
        began = time.process_time()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                if own:
                    fl.load(path.parent, like=LIKE)
                else:
                    fl.store.load_state_dict(path, like=LIKE, strict=bool(number % 2), cast=True)
                texts = []
            except CheckpointError as error:
                refused, texts = refused + 1, [str(error)]
        texts += [str(warning.message) for warning in told]
        assert not [t for t in texts if any(c in t for c in ESCAPES) or not _shown(t)], texts
        assert time.process_time() - began < 5
    assert refused > times * (0.95 if own else 0.3)


def _shown(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def nothing_is_waited_for(path: Path) -> None:
    outcome: list[BaseException] = []

    def look() -> None:
        try:
            fl.store.load_state_dict(path, like=LIKE)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(10)
    assert outcome and isinstance(outcome[0], CheckpointError), outcome


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as opened:
        makers: list[Callable[[], Any]] = [
            lambda: os.mkfifo(path),
            lambda: opened.bind(str(path)),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to("/dev/tty"),
            lambda: path.symlink_to(path.name),
            lambda: path.mkdir(),
            lambda: None,
        ]
        for make in makers:
            make()
            nothing_is_waited_for(path)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def test_a_link_to_weights_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link.safetensors").symlink_to(safetensors(tmp_path))
    assert fl.store.load_state_dict(tmp_path / "link.safetensors", like=LIKE) == LIKE


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.empty(4, 3, device="meta"), "meta"),
        (torch.eye(4, 3).to_sparse(), "sparse"),
    ],
    ids=["meta", "sparse"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_not_dense_is_refused_by_name(
    tmp_path: Path, tensor: torch.Tensor, kind: str
) -> None:
    torch.save({**MODEL.state_dict(), "0.weight": tensor}, tmp_path / "a.pt")
    for source in (tmp_path / "a.pt", {**MODEL.state_dict(), "0.weight": tensor}):
        with pytest.raises(CheckpointError, match=rf"'0\.weight' is no plain dense.*{kind}"):
            fl.store.load_state_dict(source, like=LIKE)


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    import zipfile

    path = zipped(tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"again")
    with pytest.raises(CheckpointError, match=r"has the name 'a/data\.pkl' twice"):
        fl.store.load_state_dict(path, like=LIKE)
    with pytest.raises(CheckpointError, match="two tensors of the name '1'"):
        fl.store.load_state_dict({1: torch.ones(1), "1": torch.ones(1)}, like=LIKE)


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    name = "0.weight\x1b[2J\x07"
    weights = {**MODEL.state_dict(), name: torch.ones(1)}
    torch.save(weights, tmp_path / "a.pt")
    save_file(weights, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.pt", tmp_path / "a.safetensors"):
        with pytest.raises(CheckpointError, match=r"0\.weight\\x1b\[2J\\x07") as caught:
            fl.store.load_state_dict(path, like=LIKE)
        assert "\x1b" not in str(caught.value)
        with pytest.warns(UserWarning, match=r"\\x1b") as told:
            fl.store.load_state_dict(path, like=LIKE, strict=False)
        assert "\x1b" not in str(told[0].message)
    with pytest.raises(CheckpointError) as caught:
        fl.store.load_state_dict({"\x1b[2J": 1}, like=LIKE)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "fits"),
    [
        (torch.complex64, False),
        (torch.float64, True),
        (torch.bfloat16, True),
        (torch.int64, True),
    ],
)
def test_a_cast_loses_no_part(dtype: torch.dtype, fits: bool) -> None:
    weights = {**MODEL.state_dict(), "0.weight": torch.ones(4, 3).to(dtype)}
    if fits:
        state = fl.store.load_state_dict(weights, like=LIKE, cast=True)
        assert torch.equal(state.params["0.weight"], torch.ones(4, 3))
        return
    with pytest.raises(CheckpointError, match=r"c64\[4,3\]"):
        fl.store.load_state_dict(weights, like=LIKE, cast=True)
    counter = {**MODEL.state_dict(), "1.num_batches_tracked": torch.tensor(1.5)}
    with pytest.raises(CheckpointError, match=r"fractions to integers"):
        fl.store.load_state_dict(counter, like=LIKE, cast=True)
