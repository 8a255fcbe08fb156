"""Who notices a damaged checkpoint? From the root of a clone:

    python -m tests.benchmarks.corruption

The same tensors are saved by torch.save, safetensors, torch.distributed.checkpoint (one process,
no process group) and fnloop. Each copy is then damaged in the same ways, with the same seeds, and
loaded. What is loaded is compared with what was saved, bit by bit:

- noticed: loading raised an error;
- silently wrong: it did not, and tensors differ;
- harmless: it did not, and all tensors are right;
- crashed: the process died or hung.

A Markdown table is printed. ``--flips N`` sets the number of flipped bits (default 400).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import random
import signal
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

import fnloop as fl
from fnloop.values.start import start

PAGE = 4096
OUTCOMES = ("noticed", "silently wrong", "harmless", "crashed")
KINDS = ("flipped bits", "zeroed pages", "truncations", "a file of another step")


class Model(torch.nn.Module):
    """Parameters in two precisions, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(96, 96) for _ in range(4))
        self.narrow = torch.nn.Linear(96, 96).to(torch.bfloat16)
        self.register_buffer("count", torch.arange(100))


def saved_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator).to(t.dtype)
        if t.is_floating_point()
        else t + seed
        for name, t in Model().state_dict().items()
    }


class System(NamedTuple):
    """Something that saves tensors in a folder, and loads them again.

    Attributes:
        name: For the table.
        save: Into an empty folder.
        load: Given the folder, and tensors of the same names and shapes.
    """

    name: str
    save: Callable[[Path, dict[str, Tensor]], Any]
    load: Callable[[Path, dict[str, Tensor]], Mapping[str, Tensor]]


def _save_dcp(folder: Path, tensors: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():  # it warns that there is one process
        warnings.simplefilter("ignore")
        dcp.save(tensors, checkpoint_id=folder, no_dist=True)


def _load_dcp(folder: Path, like: dict[str, Tensor]) -> Mapping[str, Tensor]:
    into = {name: torch.zeros_like(t) for name, t in like.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(into, checkpoint_id=folder, no_dist=True)
    return into


def _state(tensors: Mapping[str, Tensor]) -> fl.State:
    state = start(Model, seed=0)
    return state.replace(
        params={name: tensors[name] for name in state.params},
        buffers={name: tensors[name] for name in state.buffers},
    )


def _load_fnloop(folder: Path, like: dict[str, Tensor]) -> Mapping[str, Tensor]:
    state = fl.load(folder / "step-00000000", like=_state(like))
    return {**state.params, **state.buffers}


SYSTEMS = (
    System(
        f"torch.save {torch.__version__}",
        lambda folder, tensors: torch.save(tensors, folder / "model.pt"),
        lambda folder, like: torch.load(folder / "model.pt", weights_only=True),
    ),
    System(
        f"safetensors {importlib.metadata.version('safetensors')}",
        lambda folder, tensors: safetensors.torch.save_file(tensors, folder / "model.safetensors"),
        lambda folder, like: safetensors.torch.load_file(folder / "model.safetensors"),
    ),
    System(
        f"DCP {torch.__version__}",
        _save_dcp,
        _load_dcp,
    ),
    System(
        f"fnloop {fl.__version__}",
        lambda folder, tensors: fl.save(_state(tensors), folder),
        _load_fnloop,
    ),
)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(kind: str, folder: Path, other: Path, flips: int) -> Iterator[tuple[Path, bytes]]:
    """A file, and what is in it instead. `other` holds the checkpoint of another step."""
    rng, files = random.Random(kind), files_of(folder)
    sizes = [file.stat().st_size for file in files]
    if kind == "flipped bits":  # at random places of all that was written
        for _ in range(flips):
            (file,) = rng.choices(files, sizes)
            data = bytearray(file.read_bytes())
            bit = rng.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            yield file, bytes(data)
    elif kind == "zeroed pages":
        for file in files:
            data = file.read_bytes()
            for begin in range(0, len(data), PAGE):
                end = min(begin + PAGE, len(data))
                yield file, data[:begin] + bytes(end - begin) + data[end:]
    elif kind == "truncations":
        for _ in range(100):
            (file,) = rng.choices(files, sizes)
            data = file.read_bytes()
            yield file, data[: rng.randrange(len(data))]
    else:
        for file in files:
            yield file, (other / file.relative_to(folder)).read_bytes()


def outcomes(
    system: System, folder: Path, right: dict[str, Tensor], cases: list[tuple[Path, bytes]]
) -> Counter[str]:
    """What comes of loading each, in other processes: damaged files may end them."""
    found: Counter[str] = Counter()
    while len(cases) > found.total():
        answers, asked = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            for file, data in cases[found.total() :]:
                signal.alarm(20)
                os.write(
                    asked, bytes([OUTCOMES.index(_outcome(system, folder, right, file, data))])
                )
            os._exit(0)
        os.close(asked)
        with open(answers, "rb") as stream:
            found.update(OUTCOMES[answer] for answer in stream.read())
        os.waitpid(pid, 0)
        if found.total() < len(cases):
            found["crashed"] += 1
    return found


def _outcome(
    system: System, folder: Path, right: dict[str, Tensor], file: Path, data: bytes
) -> str:
    before = file.read_bytes()
    file.write_bytes(data)
    try:
        loaded = system.load(folder, right)
    except BaseException:
        return "noticed"
    else:
        return "harmless" if _same(loaded, right) else "silently wrong"
    finally:
        file.unlink()  # what was loaded may be a view of it
        file.write_bytes(before)


def _same(loaded: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return loaded.keys() == right.keys() and fl.tree_equal(dict(loaded), dict(right))


def count(system: System, kind: str, flips: int) -> Counter[str]:
    """How often each outcome is met."""
    with tempfile.TemporaryDirectory() as root:
        folder, other = Path(root) / "a", Path(root) / "b"
        for place, seed in ((folder, 0), (other, 1)):
            place.mkdir()
            system.save(place, saved_tensors(seed))
        right = saved_tensors(0)
        assert _same(system.load(folder, right), right), f"{system.name}, undamaged"
        cases = list(damages(kind, folder, other, flips))
        return outcomes(system, folder, right, cases)


def table(flips: int) -> str:
    """All systems and kinds, in Markdown."""
    lines = [
        "| damage | saved by | times | noticed | silently wrong | harmless | crashed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        for system in SYSTEMS:
            found = count(system, kind, flips)
            cells = [str(found[name]) for name in OUTCOMES]
            lines.append(f"| {kind} | {system.name} | {found.total()} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Who notices a damaged checkpoint?")
    parser.add_argument("--flips", type=int, default=400, help="bits, one at a time (400)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    nbytes = sum(t.nbytes for t in saved_tensors(0).values())
    print(f"{nbytes:,} bytes of tensors; Python {platform.python_version()}\n")
    print(table(options.flips))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
