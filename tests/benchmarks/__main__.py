"""How fast is fnloop, and how fast are others? From the root of a clone, with the extra ``bench``:

    python -m tests.benchmarks                      # everything: hours
    python -m tests.benchmarks --quick              # everything, few rounds: does it work?
    python -m tests.benchmarks step --case mlp      # a training step
    python -m tests.benchmarks step --case mlp --contender JAX --contender "by hand" --threads 1
    python -m tests.benchmarks compile --case gpt   # the first step: how long, how many graphs
    python -m tests.benchmarks memory               # the peak of memory
    python -m tests.benchmarks fit                  # what `fl.fit` and callbacks add to `fl.run`
    python -m tests.benchmarks report               # write up what has been measured
    python -m tests.benchmarks screen --cpu         # the first table of the page, all of it

Each case is measured in a process of its own. There all contenders run side by side, in many short
rounds in random order. Times are microseconds a step; "ratio" and "extra" are medians of
comparisons with the baseline in the same round, so they hold on a machine that does other work too.
"least" is the best round. ``--cpu`` times with the processor's clock, which hardly notices others
(and counts what fnloop's other threads do as well).

What is measured is kept in a folder, and ``--write`` or ``report`` puts all that is there into
``docs/internals/benchmarks.md`` and ``docs/images/``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import chart, machine, memory, report, screen
from .compiling import cold_and_warm
from .contenders import Contender, chosen, sort
from .models import CASES, MEASURED
from .problems import PROBLEMS
from .results import load, save
from .timing import Row, table

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "internals" / "benchmarks.md"
SCREEN_CHART = "../images/benchmarks-models.png"
SCREEN_MARKS = ("<!-- screen: begin -->", "<!-- screen: end -->")
LIMIT = 900  # seconds for a first step or a peak of memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; the number of things that failed is not zero where one did."""
    options = _parser().parse_args(arguments)
    part = "screen" if options.what == "screen" else "benchmarks"
    options.results = options.results or ROOT / "runs" / part
    session = Session(options)
    if options.what == "screen":
        session.screen()
        write_screen(options.results)
    for part in ("step", "compile", "memory", "fit"):
        if options.what in (part, "all"):
            getattr(session, part)()
    if options.write or options.what == "report":
        write(options.results)
    for failure in session.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return min(len(session.failures), 1)


class Session:
    """The parts of the benchmark, one method each.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.failures: list[str] = []
        self.about = machine.description()
        if options.quick:
            self.about["note"] = "a quick run, to see that it works: not for quoting"

    def screen(self) -> None:
        """What is in `screen.screen`, on one thread."""
        options = self.options
        options.threads, options.case = [1], options.case or list(screen.CASES)
        for part, contenders in (
            (self.step, screen.TIMED),
            (self.memory, screen.WEIGHED),
            (self.compile, screen.FIRST),
        ):
            options.contender = list(contenders)
            part()

    def step(self) -> None:
        """`steps.compare`, for each case and number of threads."""
        for threads in self.options.threads:
            for case in self._cases():
                words = [w for word in self.options.contender or [] for w in ("--contender", word)]
                seconds = "0.01" if self.options.quick else "0.03"
                figures = self._child(
                    *("step", "--case", case, "--seconds", seconds, *words), threads=threads
                )
                if "error" in figures:
                    continue
                rows = [Row(**row) for row in figures["rows"]]
                title = f"A training step: {case}, {threads} thread(s)"
                print(f"\n{table(title, rows)}", flush=True)
                for name, reason in figures["left_out"].items():
                    print(f"left out: {name}: {reason}", flush=True)
                self._save(f"step.{case}.{threads}", figures)

    def compile(self) -> None:
        """`compiling.first_step` twice, for each case and contender that compiles."""
        for case in ["mlp"] if self.options.quick and not self.options.case else self._cases():
            figures = self._each(
                [c for c in sort(self._contenders(), CASES[case]())[0] if c.compiles],
                lambda contender, case=case: cold_and_warm(
                    lambda environment: self._child(
                        *("first-step", "--case", case, "--contender", contender.name),
                        environment=environment,
                    )
                ),
                f"compiling {case}",
            )
            self._save(f"compile.{case}", figures)

    def memory(self) -> None:
        """`memory.peak`, for each case and contender."""
        if not memory.available():
            print("left out: memory: this system does not tell the peak since a moment")
            return
        environment = {**os.environ, **memory.ALLOCATOR}
        for case in self.options.case or ["wide"]:
            contenders, _ = sort(self._contenders(), MEASURED[case]())
            figures = self._each(
                contenders,
                lambda c, case=case: self._child(
                    *("peak", "--case", case, "--contender", c.name), environment=environment
                ),
                f"memory {case}",
            )
            self._save(f"memory.{case}", figures)

    def fit(self) -> None:
        """`extras.compare`, on one thread."""
        for case in self.options.case or ["mlp"]:
            figures = self._child("fit", "--case", case, threads=1)
            if "error" not in figures:
                rows = [Row(**row) for row in figures["rows"]]
                print(f"\n{table(f'Around an idle step: {case}', rows)}", flush=True)
                self._save("fit", figures)

    def _cases(self) -> list[str]:
        return self.options.case or list(PROBLEMS)

    def _contenders(self) -> list[Contender]:
        return chosen(self.options.contender)

    def _each(
        self,
        contenders: Sequence[Contender],
        measure: Callable[[Contender], dict[str, Any]],
        title: str,
    ) -> dict[str, Any]:
        figures = {}
        for contender in contenders:
            figures[contender.name] = measure(contender)
            numbers = ", ".join(f"{k} {_number(v)}" for k, v in figures[contender.name].items())
            print(f"{title}: {contender.name}: {numbers}", flush=True)
        return figures

    def _child(
        self, *words: str, threads: int | None = None, environment: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """What ``measure.py`` measures in a process of its own."""
        options = self.options
        command = [sys.executable, "-m", "tests.benchmarks.measure", *words]
        command += ["--threads", str(threads or max(options.threads)), *["--cpu"] * options.cpu]
        if rounds := options.rounds or (5 if options.quick else None):
            command += ["--rounds", str(rounds)]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment or dict(os.environ),
                capture_output=True,
                text=True,
                timeout=None if words[0] in ("step", "fit") else LIMIT,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"> {LIMIT} s"}
        if done.returncode:
            self.failures.append(f"{' '.join(words)}\n{done.stderr[-3000:]}")
            return {"error": "failed"}
        return json.loads(done.stdout.splitlines()[-1])

    def _save(self, name: str, figures: dict[str, Any]) -> None:
        save(self.options.results, name, self.about, figures)


def write(folder: Path) -> None:
    """Put what is in a folder of results into the page, with its charts."""
    results = load(folder, list(MEASURED))
    charts = {}
    for threads, cases in results.step.items():
        charts[threads] = f"../images/benchmarks-{threads}.png"
        chart.draw(cases, threads, PAGE.parent / charts[threads])
    report.write(PAGE, report.markdown(results, charts))


def write_screen(folder: Path) -> None:
    """Put what is in a folder of results into the first table of the page, with its chart."""
    results = load(folder, list(MEASURED))
    lines = screen.lines(results)
    ratios = {line.case: screen.drawn(results.step[1][line.case]) for line in lines}
    chart.draw_screen(ratios, PAGE.parent / SCREEN_CHART)
    picture = f"![Time of a step against the best loop by hand, one thread]({SCREEN_CHART})"
    text = "\n\n".join([screen.markdown(lines), picture, report.machine(results)])
    report.write(PAGE, text + "\n", *SCREEN_MARKS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parts = ("all", "step", "compile", "memory", "fit", "report", "screen")
    parser.add_argument("what", nargs="?", choices=parts, default="all")
    parser.add_argument("--case", action="append", choices=list(MEASURED), help="default: all")
    parser.add_argument(
        "--contender", action="append", help="a name, or what is in several; default: all"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--rounds", type=int, help="how often each is timed")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time")
    parser.add_argument("--quick", action="store_true", help="few rounds; compiling only for mlp")
    parser.add_argument("--write", action="store_true", help="write docs/internals/benchmarks.md")
    parser.add_argument(
        "--results",
        type=lambda path: Path(path).resolve(),
        help="folder of what has been measured; default: runs/benchmarks, or runs/screen",
    )
    return parser


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
