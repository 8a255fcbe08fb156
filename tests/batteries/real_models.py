"""Does fnloop train the models that people train? From the root of a clone:

    python -m tests.batteries.real_models                # all whose library is installed
    python -m tests.batteries.real_models --only gpt2 --only resnet
    python -m tests.batteries.real_models --inductor     # and build five of them by Inductor
    python -m tests.batteries.real_models --markdown     # print a table at the end

Every model is small, has random weights, and is built from its configuration; nothing is
downloaded. What it is put through is in `checks.py`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Sequence

from .checks import CHECKS, compiled
from .entry import Entry
from .language import LANGUAGE
from .others import OTHERS
from .torchvision_names import declare
from .vision import VISION

MODELS = [*LANGUAGE, *VISION, *OTHERS]


def installed(entry: Entry) -> bool:
    """Whether the entry's library can be imported."""
    return importlib.util.find_spec(entry.library) is not None


def tried(entry: Entry, inductor: bool = False) -> dict[str, str]:
    """What each check says of a model: its result, or its error after "FAILED"."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    declare()
    checks = dict(CHECKS)
    if inductor and entry.inductor:
        checks["Inductor"] = functools.partial(compiled, backend="inductor")
    found: dict[str, str] = {}
    for name, check in checks.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries' own
                found[name] = check(entry)
        except Exception as error:
            found[name] = f"FAILED: {type(error).__name__}: {str(error)[:300]}"
    return found


def table(rows: dict[str, dict[str, str]]) -> str:
    """What was found, as Markdown."""
    columns = list(dict.fromkeys([*CHECKS, *[check for row in rows.values() for check in row]]))
    lines = [
        f"| model | library | tests | {' | '.join(columns)} | remedy |",
        "| --- " * (len(columns) + 4) + "|",
    ]
    for entry in MODELS:
        if entry.name in rows:
            found = [rows[entry.name].get(column, "").split(":")[0] for column in columns]
            cells = [entry.name, entry.library, entry.tests, *found, entry.remedy]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def versions() -> str:
    """The versions of the libraries that are installed."""
    libraries = sorted({entry.library for entry in MODELS if installed(entry)})
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="if its name has this")
    parser.add_argument("--inductor", action="store_true", help="build some by Inductor")
    parser.add_argument("--markdown", action="store_true", help="print a table at the end")
    options = parser.parse_args(arguments)
    rows: dict[str, dict[str, str]] = {}
    failed: list[str] = []
    for entry in MODELS:
        if options.only and not any(part in entry.name for part in options.only):
            continue
        if not installed(entry):
            print(f"{entry.name}: {entry.library} is not installed", flush=True)
            continue
        start = time.perf_counter()
        rows[entry.name] = found = tried(entry, options.inductor)
        said = ", ".join(f"{check} {result}" for check, result in found.items())
        print(f"{entry.name}: {said} ({time.perf_counter() - start:.1f} s)", flush=True)
        if any("FAILED" in result for result in found.values()):
            failed.append(entry.name)
    print(versions())
    if options.markdown:
        print(table(rows))
    if failed:
        print(f"failed: {'; '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
