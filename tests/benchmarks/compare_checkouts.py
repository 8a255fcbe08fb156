"""Is this checkout faster than another one? From its root:

    python -m tests.benchmarks.compare_checkouts ../other
    python -m tests.benchmarks.compare_checkouts ../other --problems mlp,gpt --modes compiled

Each checkout trains in a process of its own, on one thread. The two take turns, in many short
rounds, and the other one goes first in every second of them; times are those of the processor. The
ratio, this to other, is the median over the rounds; next to it is what is between its quartiles.

The step is the one of ``with_fnloop.py``; for ``wide``, and for all with ``--full``, gradients are
clipped and parameters averaged as well. The first call of a compiled step is in a process whose
caches were empty: seconds, and in brackets those of the processor, compilers included. The peak of
memory, in sizes of the parameters, is told for models of more than a megabyte.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import memory
from .compiling import empty_caches
from .piped import ONE_THREAD, Worker
from .steps import check_losses
from .timing import Row, Samples, steps_in, summary

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")

ALL = ("mlp", "narrow", "many", "cnn", "gpt", "wide")
MODES = ("eager", "compiled")
SMALL = 1.0  # megabytes of parameters below which the peak of memory says nothing about them


class Comparison(NamedTuple):
    """A line of the table; what is there of both is this checkout's first.

    Attributes:
        problem: What was trained.
        mode: How.
        rows: Figures of the times.
        first: Of the first call, ``wall`` and ``cpu`` seconds.
        peaks: In sizes of the parameters, if they were measured.
    """

    problem: str
    mode: str
    rows: Sequence[Row]
    first: Sequence[dict[str, Any]]
    peaks: Sequence[float] | None

    def cells(self) -> list[str]:
        """As text, in the order of `HEAD`."""
        this, other = self.rows
        first, peaks = "", ""
        if self.mode == "compiled":
            first = " / ".join(f"{found['wall']:.1f} ({found['cpu']:.1f})" for found in self.first)
        if self.peaks:
            peaks = " / ".join(f"{peak:.2f}" for peak in self.peaks)
        times = [f"{this.median:.0f}", f"{other.median:.0f}"]
        ratio = [f"{this.ratio:.3f}", f"{this.noise:.3f}"]
        return [self.problem, self.mode, *times, *ratio, first, peaks]


HEAD = ["problem", "mode", "this, us", "other, us", "ratio", "IQR", "first call, s", "peak"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print a table in Markdown; 1 where something failed."""
    options = _parser().parse_args(arguments)
    lines, failed = [], 0
    for mode in options.modes:
        for problem in options.problems:
            full = options.full or problem == "wide"
            print(f"{problem}, {mode}", file=sys.stderr, flush=True)
            try:
                cells = compare(options.other, problem, mode, full, options.rounds).cells()
            except (RuntimeError, ValueError) as error:
                print(f"FAILED {problem}, {mode}: {error}", file=sys.stderr, flush=True)
                cells, failed = [problem, mode, "failed", *[""] * (len(HEAD) - 3)], 1
            lines.append(cells)
    print("\n".join(markdown(HEAD, lines)))
    return failed


def compare(other: Path, problem: str, mode: str, full: bool, rounds: int) -> Comparison:
    """This checkout with another, on one problem.

    Raises:
        RuntimeError: A worker failed.
        ValueError: After the same steps from the same weights, losses differ.
    """
    question = {"problem": problem, "mode": mode, "full": full}
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {"this": ROOT, "other": other.resolve()}
        caches = {name: empty_caches(Path(folder) / name) for name in checkouts}
        with (
            _worker(ROOT, caches["this"]) as this,
            _worker(checkouts["other"], caches["other"]) as that,
        ):
            workers = {"this": this, "other": that}
            for name, worker in workers.items():
                if (found := worker.ask(do="where")["checkout"]) != str(checkouts[name]):
                    raise RuntimeError(f"The fnloop of {found} was imported: {checkouts[name]}?")
            first = {name: w.ask(do="prepare", **question) for name, w in workers.items()}
            check_losses({name: found["loss"] for name, found in first.items()}, rtol=1e-3)
            rows = summary(alternate(workers, rounds), "other")
        peaks = None
        if memory.available() and first["this"]["megabytes"] > SMALL:
            peaks = []
            for name, checkout in checkouts.items():
                with _worker(checkout, {**caches[name], **memory.ALLOCATOR}) as fresh:
                    peaks.append(fresh.ask(do="peak", **question)["peak"])
    return Comparison(problem, mode, rows, list(first.values()), peaks)


def alternate(workers: dict[str, Worker], rounds: int) -> Samples:
    """Microseconds a step; who goes first changes from round to round."""
    steps = max(4, *(steps_in(0.03, worker.block) for worker in workers.values()))
    samples: Samples = {name: [] for name in workers}
    for order in _orders(list(workers), rounds):
        for name in order:
            samples[name].append(workers[name].block(steps) / steps * 1e6)
    return samples


def markdown(head: list[str], lines: Sequence[list[str]]) -> list[str]:
    """A table."""
    rule = ["---"] * 2 + ["---:"] * (len(head) - 2)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *lines)]


def _orders(names: list[str], rounds: int) -> Iterator[list[str]]:
    for i in range(rounds):
        yield names if i % 2 else names[::-1]


def _worker(checkout: Path, environment: dict[str, str]) -> Worker:
    path = {"PYTHONPATH": str(checkout)}
    return Worker([sys.executable, str(WORKER)], {**ONE_THREAD, **path, **environment})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.compare_checkouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path, help="root of the other checkout")
    parser.add_argument("--problems", type=_some(ALL), default=ALL, help="default: all")
    parser.add_argument("--modes", type=_some(MODES), default=MODES, help="default: both")
    parser.add_argument("--rounds", type=int, default=30, help="default: 30")
    parser.add_argument("--full", action="store_true", help="clip and average everywhere")
    return parser


def _some(names: Sequence[str]) -> Any:
    def words(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(names)}")
        return text.split(",")

    return words


if __name__ == "__main__":
    sys.exit(main())
