"""Predict in processes that are killed, each a few lines of the store later than the last."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fnloop as fl
import fnloop.store

STORE = str(Path(fnloop.store.__file__).parent)
FILES = {
    f"{STORE}/{name}.py" for name in ("predictions", "batch_files", "growing_array", "parquet_file")
}


def contents(place: Path) -> dict[str, bytes]:
    files = [place] if place.is_file() else sorted(place.iterdir())
    return {file.name: file.read_bytes() for file in files}


def killed_behind(lines: int) -> Callable[..., Any]:
    """A tracer that kills this process when so many lines of the store have run."""
    left = [lines]

    def trace(frame: Any, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        left[0] -= event == "line"
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def main(folder: Path, name: str, stride: int) -> dict[str, int]:
    logging.disable()
    x = torch.randn(17, 3, generator=torch.Generator().manual_seed(0))
    state = fl.grad(lambda m, x: m(x).mean()).init(torch.nn.Linear(3, 2), seed=0)

    def predict(place: Path) -> Path:
        data = fl.Batches(x, 5, shuffle=False)
        return fl.predict(lambda m, x: {"y": m(x), "x": x}, state, data, to=place)

    whole = contents(predict(folder / "whole" / name))
    seen = {"killed": 0, "went on": 0, "were complete": 0}
    place, work, after = folder / name, folder / f"{name}.unfinished", 0
    while True:
        after += stride
        child = os.fork()
        if child == 0:
            sys.settrace(killed_behind(after))
            predict(place)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status in (0, signal.SIGKILL), status
        seen["were complete"] += place.exists()
        seen["went on"] += (work / "y.npy").exists()
        predict(place)
        assert contents(place) == whole, after
        assert not work.exists(), after
        place.unlink() if place.is_file() else shutil.rmtree(place)
        if status == 0:
            return seen
        seen["killed"] += 1


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
