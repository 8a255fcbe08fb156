"""Is this checkout faster than another one? From its root:

    python -m tests.benchmarks.compare_checkouts ../other
    python -m tests.benchmarks.compare_checkouts ../other --problems mlp,gpt --modes compiled

Each checkout trains in a process of its own, on one thread. The two take turns, in many short
rounds, and the other one goes first in every second of them; times are those of the processor. A
process may be slower than its twin as long as it lives, depending on where its memory lies: so
there are several pairs of processes. The ratio, this to other, is the median over the pairs of the
median over the rounds; next to it are what is between the quartiles of all rounds, and the least
and the largest ratio of a pair. A difference says something if all pairs agree about it. While
times are measured, glibc keeps what is freed: otherwise a process may or may not fetch new pages
from the system at every step, by chance. ``--default-malloc`` leaves it as it is.

The step is the one of ``with_fnloop.py``; for ``wide``, and for all with ``--full``, gradients are
clipped and parameters averaged as well. The first call of a compiled step is in a process whose
caches were empty: seconds, and in brackets those of the processor, compilers included. The peak of
memory, in sizes of the parameters, is told for models of more than a megabyte.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
KEEPS = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""For a process: glibc keeps what is freed."""

SMALL = 1.0  # megabytes of parameters below which the peak of memory says nothing about them


class Comparison(NamedTuple):
    """A line of the table; what is there of both is this checkout's first.

    Attributes:
        problem: What was trained.
        mode: How.
        rows: Figures of the times, of all pairs of processes.
        ratios: This to other, of each pair.
        first: Of the first call, ``wall`` and ``cpu`` seconds.
        peaks: In sizes of the parameters, if they were measured.
    """

    problem: str
    mode: str
    rows: Sequence[Row]
    ratios: Sequence[float]
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
        pairs = f"{min(self.ratios):.2f} to {max(self.ratios):.2f}"
        ratio = [f"{statistics.median(self.ratios):.3f}", f"{this.noise:.3f}", pairs]
        return [self.problem, self.mode, *times, *ratio, first, peaks]


HEAD = [
    *("problem", "mode", "this, us", "other, us"),
    *("ratio", "IQR", "pairs", "first call, s", "peak"),
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and print a table in Markdown; 1 where something failed."""
    options = _parser().parse_args(arguments)
    malloc = {} if options.default_malloc else KEEPS
    lines, failed = [], 0
    for mode in options.modes:
        for problem in options.problems:
            full = options.full or problem == "wide"
            print(f"{problem}, {mode}", file=sys.stderr, flush=True)
            try:
                found = compare(
                    options.other, problem, mode, full, options.rounds, options.pairs, malloc
                )
                cells = found.cells()
            except (RuntimeError, ValueError) as error:
                print(f"FAILED {problem}, {mode}: {error}", file=sys.stderr, flush=True)
                cells, failed = [problem, mode, "failed", *[""] * (len(HEAD) - 3)], 1
            lines.append(cells)
    print("\n".join(markdown(HEAD, lines)))
    return failed


def compare(
    other: Path,
    problem: str,
    mode: str,
    full: bool,
    rounds: int,
    pairs: int,
    malloc: Mapping[str, str] = KEEPS,
) -> Comparison:
    """This checkout with another, on one problem.

    Args:
        other: Root of the other checkout.
        problem: Of `ALL`.
        mode: Of `MODES`.
        full: Whether gradients are clipped and parameters averaged.
        rounds: How often the processes of a pair are timed.
        pairs: Of processes, one after the other.
        malloc: Environment of those that are timed.

    Raises:
        RuntimeError: A worker failed.
        ValueError: After the same steps from the same weights, losses differ.
    """
    question = {"problem": problem, "mode": mode, "full": full}
    checkouts = {"this": ROOT, "other": other.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: empty_caches(Path(folder) / name) for name in checkouts}
        samples, ratios, peaks = {"this": [], "other": []}, [], None
        for i in range(pairs):
            with contextlib.ExitStack() as stack:
                workers = {
                    name: stack.enter_context(_worker(checkout, {**caches[name], **malloc}))
                    for name, checkout in checkouts.items()
                }
                prepared = _prepared(workers, checkouts, question, i % 2 == 1)
                if i == 0:
                    first = prepared  # the caches are not empty later
                found = alternate(workers, rounds)
            ratios.append(summary(found, "other")[0].ratio)
            for name in samples:
                samples[name] += found[name]
        if memory.available() and first["this"]["megabytes"] > SMALL:
            peaks = []
            for name, checkout in checkouts.items():
                with _worker(checkout, {**caches[name], **memory.ALLOCATOR}) as fresh:
                    peaks.append(fresh.ask(do="peak", **question)["peak"])
    calls = [first["this"], first["other"]]
    return Comparison(problem, mode, summary(samples, "other"), ratios, calls, peaks)


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


def _prepared(
    workers: dict[str, Worker], checkouts: dict[str, Path], question: dict[str, Any], swap: bool
) -> dict[str, dict[str, Any]]:
    """What both say when they are ready; `swap` for the other one first."""
    for name, worker in workers.items():
        if (found := worker.ask(do="where")["checkout"]) != str(checkouts[name]):
            raise RuntimeError(f"The fnloop of {found} was imported: {checkouts[name]}?")
    order = list(workers)[::-1] if swap else list(workers)
    found = {name: workers[name].ask(do="prepare", **question) for name in order}
    check_losses({name: found[name]["loss"] for name in workers}, rtol=1e-3)
    return found


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
    parser.add_argument("--rounds", type=int, default=12, help="of a pair; default: 12")
    parser.add_argument("--pairs", type=int, default=5, help="of processes; default: 5")
    parser.add_argument("--full", action="store_true", help="clip and average everywhere")
    parser.add_argument("--default-malloc", action="store_true", help="see above")
    return parser


def _some(names: Sequence[str]) -> Any:
    def words(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(names):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(names)}")
        return text.split(",")

    return words


if __name__ == "__main__":
    sys.exit(main())
