"""What has been measured, kept as JSON until it is written up: parts can be measured alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Results(NamedTuple):
    """All that is in a folder.

    Attributes:
        about: The machine, and how it was measured, by part.
        step: Of `steps.compare`, by threads and case.
        compile: Of `compiling.cold_and_warm`, by case and contender.
        memory: Of `memory.peak`, by case and contender.
        fit: Of `extras.compare`.
    """

    about: dict[str, dict[str, str]]
    step: dict[int, dict[str, Any]]
    compile: dict[str, dict[str, Any]]
    memory: dict[str, dict[str, Any]]
    fit: dict[str, Any]


def save(folder: Path, name: str, about: dict[str, str], figures: Any) -> None:
    """Keep figures under a name like ``step.mlp.1``; what was there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about, "figures": figures}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path, cases: Sequence[str]) -> Results:
    """Everything in a folder, cases in the given order."""
    results = Results({}, {}, {}, {}, {})
    for file in sorted(folder.glob("*.json"), key=lambda file: _order(file, cases)):
        found = json.loads(file.read_text(encoding="utf-8"))
        results.about[file.stem] = found["about"]
        match file.stem.split("."):
            case ["step", case, threads]:
                results.step.setdefault(int(threads), {})[case] = found["figures"]
            case ["compile", case]:
                results.compile[case] = found["figures"]
            case ["memory", case]:
                results.memory[case] = found["figures"]
            case ["fit"]:
                results.fit.update(found["figures"])
            case _:
                raise ValueError(f"{file} is not one of the benchmark's.")
    return results


def _order(file: Path, cases: Sequence[str]) -> tuple[int, int]:
    _, *place = file.stem.split(".")
    case, threads = [*place, *(cases[0], "0")[len(place) :]]
    return int(threads), cases.index(case)
