"""The measurements as Markdown, between the markers of ``docs/benchmarks.md``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .contenders import CONTENDERS
from .results import Results

_NONE = "\N{EN DASH}"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put a text between two markers of a page, each there once; the rest of it stays."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def markdown(results: Results, charts: dict[int, str]) -> str:
    """All tables.

    Args:
        results: What was measured.
        charts: Paths of the pictures, relative to the page, by threads.
    """
    parts = ["## The machine", machine(results)]
    for threads, cases in results.step.items():
        parts += [f"## A step, {_threads(threads)}", ratios(cases)]
        if threads in charts:
            parts.append(
                f"![Time of a step against the best loop by hand, {_threads(threads)}]"
                f"({charts[threads]})"
            )
    if results.compile:
        parts += ["## Compiling", *_compiling(results.compile)]
    if wide := results.memory.get("wide"):
        parts += ["## Memory", _memory(wide)]
    if results.fit:
        parts += ["## What the loop costs", _fit(results.fit)]
    for threads, cases in results.step.items():
        parts.append(f"## All times, {_threads(threads)}")
        for case, figures in cases.items():
            parts += [f"### `{case}`, {_threads(threads)}", *_case(figures)]
    return "\n\n".join(parts) + "\n"


def ratios(cases: dict[str, Any]) -> str:
    """Contenders down, cases across: times the best loop by hand, which is bold."""
    head = ["", *(f"`{case}`" for case in cases)]
    rows = []
    for name in CONTENDERS:
        cells = [_ratio(name, figures) for figures in cases.values()]
        if any(cells):
            rows.append([name, *cells])
    return table(head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _ratio(name: str, figures: Any) -> str:
    for row in figures["rows"]:
        if row["name"].removesuffix(" *") == name:
            text = f"{row['ratio']:.2f}"
            return f"**{text}**" if name == figures["baseline"] else text
    return _NONE if name in figures["left_out"] else ""


def _case(figures: Any) -> list[str]:
    rows = []
    for row in figures["rows"]:
        name = row["name"].removesuffix(" *")
        loop = figures["loop_us"].get(name)
        rows.append(
            [
                f"**{name}**" if name == figures["baseline"] else name,
                f"{row['median']:,.0f}",
                f"{row['iqr']:,.0f}",
                f"{row['ratio']:.2f}",
                f"{row['noise']:.2f}",
                "" if loop is None else f"{loop:+,.0f}",
            ]
        )
    head = ["", "µs a step", "IQR", "ratio", "IQR", "loop, µs"]
    lost = figures["losses"].values()
    notes = (
        f"{figures['rounds']} rounds of {figures['steps']} steps. After the same first steps all "
        f"losses are between {min(lost):.6f} and {max(lost):.6f}."
    )
    return [table(head, rows), notes, *_left_out(figures["left_out"])]


def _left_out(reasons: dict[str, str]) -> list[str]:
    return ["Left out: " + "; ".join(f"{n} ({why})" for n, why in reasons.items()) + "."] * bool(
        reasons
    )


def _compiling(cases: dict[str, Any]) -> list[str]:
    names = [n for n in CONTENDERS if any(n in figures for figures in cases.values())]
    seconds = [[n, *(_seconds(f.get(n)) for f in cases.values())] for n in names]
    graphs = [[n, *(_graphs(f.get(n)) for f in cases.values())] for n in names]
    head = ["", *(f"`{case}`" for case in cases)]
    return [
        "Seconds until the first step is done, with empty caches / with those of the run before.",
        table(head, seconds),
        "Graphs compiled for the first step, and (+) later.",
        table(head, graphs),
    ]


def _seconds(found: Any) -> str:
    if found is None:
        return _NONE
    return found.get("error") or f"{found['cold']:.1f} / {found['warm']:.1f}"


def _graphs(found: Any) -> str:
    if found is None or "error" in found:
        return _NONE
    return f"{found['graphs']}" + (f" + {found['later']}" if found["later"] else "")


def _memory(contenders: dict[str, Any]) -> str:
    rows = [
        [n, found["error"], ""]
        if "error" in found
        else [n, f"{found['peak']:.2f}", f"{found['resting']:.2f}"]
        for n, found in contenders.items()
    ]
    return table(["", "peak", "between steps"], rows)


def _fit(figures: Any) -> str:
    rows = [
        [row["name"].removesuffix(" *"), f"{row['median']:.1f}", f"{row['extra']:+.1f}"]
        for row in figures["rows"]
    ]
    return table(["", "µs a step", "more than `run`"], rows)


def machine(results: Results) -> str:
    """One table where all parts come from one machine and day; otherwise all that there were."""
    different = list({tuple(about.items()): None for about in results.about.values()})
    rows = [[key, f"{value}"] for about in different for key, value in about]
    return table(["", ""], dict.fromkeys(map(tuple, rows)))


def _threads(n: int) -> str:
    return {1: "one thread", 2: "two threads"}.get(n, f"{n} threads")
