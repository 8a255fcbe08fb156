"""How fast are checkpoints, and what do they cost? From the root of a clone:

    python -m tests.benchmarks.checkpoints                    # 1 GB, some minutes
    python -m tests.benchmarks.checkpoints --gigabytes 0.1 --rounds 2

Saves and loads the same tensors with fnloop, ``torch.save``, safetensors and
``torch.distributed.checkpoint``, side by side in rounds of random order; beside them stands what
the disk and the digest need alone. Every save ends with the bytes on the disk: where a library does
not wait for that, its file is synchronised after it returns. "Cold" is a load whose files are not
in memory any more. Extra memory is the peak of the process over what it had before. Then steps are
timed while a checkpoint is written in the background. The tables are printed as Markdown.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

import fnloop as fl
from fnloop.trees.paths import tree_items

PIECE = 8 * 2**20
EVERY = 16  # steps from one save to the next


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.checkpoints")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="torch.distributed")
    layers = 64
    width = int((options.gigabytes * 1e9 / 12 / layers) ** 0.5)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(saving_and_loading(layers, width, options.rounds, Path(folder)))
        print(background(options.gigabytes, options.rounds, Path(folder)))


def pipeline(layers: int, width: int) -> tuple[Any, fl.State]:
    """A step whose state has three numbers for each parameter, and that state."""

    def loss(model: Any, x: torch.Tensor) -> torch.Tensor:
        return model(x).square().mean()

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))

    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-3)))
    state = step.init(network)
    state, _ = step(state, torch.randn(4, width))
    return step, state


class Contender:
    """Saves a dict of tensors into a folder, and loads it."""

    def __init__(self, save: Callable[..., Any], load: Callable[..., Any]) -> None:
        self.save, self.load = save, load


def contenders(state: fl.State, tensors: dict[str, torch.Tensor]) -> dict[str, Contender]:
    """By name."""

    def with_dcp(folder: Path) -> None:
        found = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        dcp.load(found, checkpoint_id=folder / "dcp", no_dist=True)

    def read_raw(folder: Path) -> None:
        data = torch.empty(sum(t.nbytes for t in tensors.values()), dtype=torch.uint8).numpy()
        with (folder / "raw").open("rb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.readinto(view[:PIECE]) :]

    return {
        "the disk alone": Contender(lambda folder: write_raw(folder / "raw", tensors), read_raw),
        "fnloop": Contender(
            lambda folder: fl.save(state, folder / "fnloop"),
            lambda folder: fl.load(folder / "fnloop", like=state),
        ),
        "torch.save": Contender(
            lambda folder: torch.save(tensors, folder / "torch.pt"),
            lambda folder: torch.load(folder / "torch.pt", weights_only=True),
        ),
        "safetensors": Contender(
            lambda folder: safetensors.torch.save_file(tensors, folder / "x.safetensors"),
            lambda folder: safetensors.torch.load_file(folder / "x.safetensors"),
        ),
        "DCP": Contender(
            lambda folder: dcp.save(tensors, checkpoint_id=folder / "dcp", no_dist=True), with_dcp
        ),
    }


def write_raw(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The bytes, one after the other."""
    with file.open("wb", buffering=0) as output:
        for tensor in tensors.values():
            view = memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())
            while view:
                view = view[output.write(view[:PIECE]) :]


def saving_and_loading(layers: int, width: int, rounds: int, folder: Path) -> str:
    """The first table."""
    _, state = pipeline(layers, width)
    tensors = dict(tree_items(state))
    size = sum(tensor.nbytes for tensor in tensors.values())
    everyone = contenders(state, tensors)
    times: dict[tuple[str, str], list[float]] = {}
    extra: dict[tuple[str, str], float] = {}
    order, place = list(everyone), folder / "round"

    def measure(name: str) -> None:
        one = everyone[name]
        place.mkdir()
        seconds, extra[name, "save"] = watched(lambda: (one.save(place), sync(place)))
        note(times, name, "save", seconds)
        note(times, name, "warm", timed(lambda: one.load(place)))
        forget(place)
        seconds, extra[name, "load"] = watched(lambda: one.load(place))
        note(times, name, "cold", seconds)
        shutil.rmtree(place)
        sync(folder)

    for _ in range(rounds):
        random.shuffle(order)
        note(times, "digest", "", timed(lambda: digest(tensors)))
        for name in order:
            measure(name)
    return report(everyone, times, extra, size, rounds)


def report(everyone: Any, times: Any, extra: Any, size: int, rounds: int) -> str:
    """The figures as Markdown."""
    rows = []
    limits = {}
    for name in everyone:
        cells = [name]
        for what in ("save", "cold", "warm"):
            seconds = times[name, what]
            low, middle, high = quartiles(seconds)
            limit = limits.setdefault(what, seconds)
            ratio = statistics.median(b / a for a, b in zip(seconds, limit, strict=True))
            cells += [f"{middle:.2f} s ({low:.2f} to {high:.2f})", f"{ratio:.2f}"]
        more = max(0.0, (extra[name, "load"] - size)) / size
        cells += [f"{extra[name, 'save'] / size:.1%}", f"{more:.1%}"]
        rows.append(cells)
    head = ["", "save", "of the disk", "load, cold", "of the disk", "load, warm", "of the disk"]
    head += ["extra memory: save", "load"]
    lines = [head, ["---"] * len(head), *rows]
    _, middle, _ = quartiles(times["digest", ""])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    both = [
        save / (disk + hashing)
        for save, disk, hashing in zip(
            times["fnloop", "save"],
            times["the disk alone", "save"],
            times["digest", ""],
            strict=True,
        )
    ]
    return (
        f"{size / 1e9:.2f} GB, {rounds} rounds, medians and quartiles. SHA-256 of all: "
        f"{middle:.2f} s ({size / middle / 1e9:.2f} GB/s).\n\n{text}\n\n"
        "What the disk and one digest need one after the other, as a share of what fnloop's save "
        f"needs: {statistics.median(1 / ratio for ratio in both):.2f}\n"
    )


def background(gigabytes: float, saves: int, folder: Path) -> str:
    """The second table: how long training stands still while a checkpoint is saved."""
    rows = [
        stall(gigabytes, saves, folder, compiled, threaded)
        for compiled in (False, True)
        for threaded in (False, True)
    ]
    head = ("", "step", "save", "stall", "of the save", "steps meanwhile")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def stall(
    gigabytes: float, saves: int, folder: Path, compiled: bool, threaded: bool
) -> tuple[str, ...]:
    """How long the effect keeps the loop waiting, and how long steps take beside a save."""
    layers = 8
    width = int((gigabytes * 1e9 / 12 / layers) ** 0.5)
    step, state = pipeline(layers, width)
    if compiled:
        step = fl.compile(step)
    place = folder / "stall"
    saving = Watched(place, keep=1, every=1, unit="epoch", last=False, background=threaded)
    batches = [torch.randn(4, width) for _ in range(EVERY)]
    fl.fit(step, state, batches, epochs=saves + 1, callbacks=[saving])
    shutil.rmtree(place)
    calls = saving.calls[1:]  # at the first, memory is new
    gaps = [(a, b - a) for a, b in itertools.pairwise(saving.stamps)]
    beside = [gap for began, gap in gaps[1:] if any(a < began < b for a, b in saving.saves)]
    alone = [gap for began, gap in gaps[1:] if not any(a < began < b for a, b in saving.saves)]
    usual, stands = statistics.median(alone), statistics.median(calls)
    save = statistics.median(b - a for a, b in saving.saves)
    name = ("compiled, donated" if compiled else "eager") + (", background" if threaded else "")
    slower = f"{statistics.median(beside) / usual:.2f} times" if beside else ""
    share = f"{stands / save:.1%}"
    return name, f"{usual * 1e3:.0f} ms", f"{save:.2f} s", f"{stands * 1e3:.0f} ms", share, slower


class Watched(fl.checkpoint):
    """Notes how long it keeps the loop waiting, and when saves begin and end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[float] = []
        self.stamps: list[float] = []  # when steps begin
        self.saves: list[tuple[float, float]] = []

    def __call__(self, state: fl.State, metrics: Any) -> None:
        began = time.perf_counter()
        super().__call__(state, metrics)
        ended = time.perf_counter()
        if not state.cursor[1]:
            self.calls.append(ended - began)
        self.stamps.append(ended)

    def _consider(self, *arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        super()._consider(*arguments, **options)
        self.saves.append((began, time.perf_counter()))


def digest(tensors: dict[str, torch.Tensor]) -> None:
    """SHA-256 of everything."""
    for tensor in tensors.values():
        hashlib.sha256(tensor.detach().reshape(-1).view(torch.uint8).numpy()).hexdigest()


def sync(folder: Path) -> None:
    """Wait until all below a folder is on the disk."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def forget(folder: Path) -> None:
    """Let the system drop what it holds of the files in memory."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def watched(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and bytes of memory at the peak over those before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    seconds = timed(work)
    return seconds, memory("VmHWM") - before


def memory(entry: str) -> float:
    """Bytes, as the system counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry + ":"))


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def note(times: dict[tuple[str, str], list[float]], name: str, what: str, seconds: float) -> None:
    times.setdefault((name, what), []).append(seconds)


if __name__ == "__main__":
    main()
