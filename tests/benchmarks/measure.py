"""Measures one thing in a process of its own, and prints it as JSON: see ``__main__.py``."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from typing import Any

from . import compiling, extras, machine, memory, steps, timing
from .contenders import CONTENDERS, chosen
from .models import MEASURED
from .problems import little


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.measure")
    parser.add_argument("what", choices=("step", "first-step", "peak", "fit"))
    parser.add_argument("--case", choices=list(MEASURED), default="mlp")
    parser.add_argument("--contender", action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.03)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    machine.limit(options.threads)
    sys.setrecursionlimit(100_000)  # Inductor follows a chain of a thousand layers by recursion
    warnings.filterwarnings("ignore", message=".*pytree.*", category=UserWarning)
    print(json.dumps(measured(options)))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The figures, as JSON has them."""
    clock = time.process_time if options.cpu else time.perf_counter
    problem = MEASURED[options.case]()
    if options.what == "peak":
        return memory.peak(problem, little(), CONTENDERS[options.contender[0]])
    if options.what == "first-step":
        whole = timing.used if options.cpu else clock
        return compiling.first_step(problem, CONTENDERS[options.contender[0]], whole)
    if options.what == "fit":
        rows = extras.compare(problem, options.rounds, clock=clock)
        return {"rows": [row._asdict() for row in rows], "rounds": options.rounds}
    result = steps.compare(
        problem, chosen(options.contender), options.rounds, options.seconds, clock
    )
    rows = {name: [row._asdict() for row in getattr(result, name)] for name in ("rows", "eager")}
    return {**result._asdict(), **rows}


if __name__ == "__main__":
    main()
