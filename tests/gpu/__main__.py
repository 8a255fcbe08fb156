"""Runs the checks on a device, and prints what is found as Markdown: ``python -m tests.gpu``.

It takes PyTorch and what `import fnloop` takes, and neither Aim nor pytest. A hang ends with the
stacks of all threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Iterator

import torch

from . import memory, speed
from .checks import CHECKS


def main() -> int:
    """Run what the arguments say; 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default="", help="checks whose name contains this; no figures")
    parser.add_argument("--seconds", type=float, default=340.0, help="after which it ends")
    options = parser.parse_args()
    end = time.perf_counter() + options.seconds
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here: torch.cuda.is_available() is False.")
        return 1
    faulthandler.dump_traceback_later(options.seconds, exit=True, file=sys.__stderr__)
    try:
        failed = list(_reported(options.device, options.only, options.seconds, end))
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"\n## {'Failed' if failed else 'Everything passed'}\n")
    print("".join(f"- {line}\n" for line in failed), end="", flush=True)
    return 1 if failed else 0


def _reported(device: str, only: str, seconds: float, end: float) -> Iterator[str]:
    """Print the report; what failed, a line each."""
    print(f"# fnloop on {_about(device)}\n", flush=True)
    yield from _checked(device, only, end - 0.3 * seconds)
    if only:
        return
    yield from _peaks(device)
    for share, name in enumerate(reversed(speed.PROBLEMS), start=1):
        yield from _timed(name, device, 0.45 * share * (end - time.perf_counter()))


def _about(device: str) -> str:
    where = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    return f"{where}, {versions}"


def _checked(device: str, only: str, end: float) -> Iterator[str]:
    """Run the checks, a row of a table each; the names of those that failed or had no time."""
    print("| check | result | seconds |\n| --- | --- | --- |")
    errors: dict[str, str] = {}
    for name, check in CHECKS.items():
        if only not in name:
            continue
        start = time.perf_counter()
        if start > end:
            print(f"| {name} | NOT RUN: no time was left | |", flush=True)
            yield f"{name}: no time was left"
            continue
        try:
            with warnings.catch_warnings(), torch.backends.cudnn.flags(allow_tf32=False):
                warnings.simplefilter("ignore")
                check(device)
            result = "passed"
        except Exception as error:
            result = "FAILED"
            errors[name] = traceback.format_exc()
            yield f"{name}: {_first_line(error)}"
        print(f"| {name} | {result} | {time.perf_counter() - start:.1f} |", flush=True)
    for name, text in errors.items():
        print(f"\n### {name}\n\n```\n{text[-3000:]}```", flush=True)


def _peaks(device: str) -> list[str]:
    print("\n## Memory, in sizes of the parameters\n")
    if device == "cpu":
        print("PyTorch does not count the memory of a CPU.")
        return []
    found, failed = memory.peaks()
    print("| | held between steps | peak |\n| --- | --- | --- |")
    for name, (held, peak) in found.items():
        print(f"| {name} | {held:.2f} | {peak:.2f} |")
    print("", flush=True)
    return [f"memory, {name}: {why}" for name, why in failed.items()]


def _timed(name: str, device: str, seconds: float) -> list[str]:
    contenders = speed.QUICK if device == "cpu" else tuple(speed.CONTENDERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = speed.compare(name, device, contenders, max(1.0, seconds))
    print(f"\n## {name}: microseconds a step\n")
    print("| | median | IQR | ratio | IQR of the ratio | loss |\n" + "| --- " * 6 + "|")
    for row in table.rows:
        loss = table.losses[row.name.removesuffix(" *")]
        print(
            f"| {row.name} | {row.median:.1f} | {row.iqr:.1f} | {row.ratio:.3f} | {row.noise:.3f} "
            f"| {loss:.4f} |"
        )
    print("", flush=True)
    return [f"{name}: {why}" for why in speed.wrong(table)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
