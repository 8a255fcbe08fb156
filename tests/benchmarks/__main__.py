"""How fast is fnloop? From the root of a clone:

    python -m tests.benchmarks                      # everything, five minutes
    python -m tests.benchmarks step --problem mlp   # a step, against loops written by hand
    python -m tests.benchmarks fit                  # what `fl.fit` and callbacks add to `fl.run`

All contenders run in one process, in many short rounds in random order. Times are microseconds a
step; "ratio" and "extra" are medians of comparisons with the baseline in the same round, so they
hold on a machine that does other work too. "least" is the best round. ``--cpu`` times with the
processor's clock, which hardly notices others (and counts what fnloop's other threads do as well).
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence

import torch

from . import extras, steps
from .problems import PROBLEMS
from .timing import table


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("step", "fit", "all"), default="all")
    parser.add_argument("--problem", choices=sorted(PROBLEMS), help="default: all (for fit, mlp)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--rounds", type=int, default=None, help="how often each is timed")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{versions}, {options.threads} thread(s)")
    clock = time.process_time if options.cpu else time.perf_counter
    names = [options.problem] if options.problem else list(PROBLEMS)
    if options.what in ("step", "all"):
        for name in names:
            rows = steps.compare(PROBLEMS[name](), options.rounds or 60, clock=clock)
            print(f"\n{table(f'A training step: {name}', rows)}", flush=True)
    if options.what in ("fit", "all"):
        name = options.problem or "mlp"
        rows = extras.compare(PROBLEMS[name](), options.rounds or 20, clock=clock)
        print(f"\n{table(f'What fit adds to run, around an idle step: {name}', rows)}", flush=True)


if __name__ == "__main__":
    main()
