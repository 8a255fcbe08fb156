"""A profile as text, within 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from fnloop.profiling.findings import ms, share, times
from fnloop.profiling.profile_report import Profile
from fnloop.profiling.stage_clock import StageTime
from fnloop.trees.show import bytes_text

WIDTH = 80
MOST = 8
"""Rows of a table, at most."""

BESIDE = 0.1
"""From which share of a step on time that is no stage's is told of."""

BEYOND = "beyond the shortest step"


def summary(profile: Profile) -> str:
    """The text of ``print(profile)``."""
    parts = [
        _head(profile),
        *(_wrapped(text) for text in profile.findings[:3]),
        _loop(profile),
        _stages(profile),
        _modules(profile),
        _operators(profile),
        _memory(profile),
        _notes(profile),
    ]
    return "\n\n".join(part for part in parts if part)


def stage_name(stage: StageTime) -> str:
    """The name of a stage in tables and pictures; of `fl.grad` the backward pass remains."""
    if stage.role == "loss":
        return f"{stage.name}, forward"
    head, slash, own = stage.name.rpartition("/")
    return f"{head}{slash}{own}, backward" if own.split("(")[0] == "grad" else stage.name


def beside_stages(profile: Profile) -> dict[str, float]:
    """Seconds of a step that are neither waiting nor a stage's, by what they are; few are left out.

    Stages are those of the shortest step, and so are compared with the shortest of the loop. What
    the mean of the loop is above that is no part of a step: it is what disturbs it.
    """
    stages = sum(stage.seconds for stage in profile.stages)
    around = 0.0 if profile.compiled else profile.fastest - stages
    beyond = profile.seconds - profile.waiting - profile.fastest
    parts = {"around the stages": around, BEYOND: beyond}
    return {name: each for name, each in parts.items() if each > BESIDE * profile.seconds}


def shortened(text: str, width: int) -> str:
    """The text, with its middle left out if it is longer."""
    if len(text) <= width:
        return text
    end = (width - 3) // 2
    return f"{text[: width - 3 - end]}...{text[-end:] if end else ''}"


def _head(profile: Profile) -> str:
    what = "compiled step" if profile.compiled else "step"
    return (
        f"A {what} on {profile.device} takes {ms(profile.seconds)}, "
        f"{1 / profile.seconds:,.4g} a second (mean of {profile.steps})."
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _loop(profile: Profile) -> str:
    whole = profile.seconds
    beside = beside_stages(profile)
    inside = whole - profile.waiting - sum(beside.values())
    parts = [("waiting for data", profile.waiting), ("computing", inside), *beside.items()]
    rows = [(name, number(seconds), share(seconds, whole)) for name, seconds in parts]
    return _table(("loop", "ms", "share"), rows)


def _stages(profile: Profile) -> str:
    whole = sum(stage.seconds for stage in profile.stages)
    rows = [
        (stage_name(s), str(s.calls), number(s.seconds), share(s.seconds, whole))
        for s in profile.stages
    ]
    return _table(("stage", "calls", "ms", "share"), rows)


def _modules(profile: Profile) -> str:
    whole = sum(module.seconds for module in profile.modules)
    rows = [
        (f"{m.path} ({m.kind})", number(m.forward), number(m.backward), share(m.seconds, whole))
        for m in profile.modules[:MOST]
    ]
    return _table(("module", "forward", "backward", "share"), rows, len(profile.modules))


def _operators(profile: Profile) -> str:
    if profile.compiled and profile.kernels < 0.1:  # on a CPU, machine code is not traced
        return ""
    whole = sum(operator.seconds for operator in profile.operators)
    rows = [
        (o.name.removeprefix("aten::"), str(o.calls), number(o.seconds), share(o.seconds, whole))
        for o in profile.operators[:MOST]
    ]
    return _table(("operator", "calls", "ms", "share"), rows, len(profile.operators))


def _memory(profile: Profile) -> str:
    rows = [(name, bytes_text(size)) for name, size in profile.state_bytes.items()]
    where = f", in {profile.peak_stage}" if profile.peak_stage else ""
    lines = [_table(("memory of the state", "bytes"), rows), ""]
    kinds: dict[str, int] = {}
    for tensor in profile.tensors:
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + tensor.bytes
    told = ", ".join(f"{kind} {bytes_text(size)}" for kind, size in by_size(kinds))
    peak = f"At its peak a step adds {bytes_text(profile.peak)}{where}: {told}."
    lines += [_wrapped(peak), ""] if told else []
    largest = [
        (f"{t.name}, {t.where}" if t.where else t.name, t.tensor, bytes_text(t.bytes))
        for t in profile.tensors[:5]
    ]
    return "\n".join([*lines, _table(("tensor at the peak", "", "bytes"), largest)]).rstrip()


def _notes(profile: Profile) -> str:
    return "\n".join(map(_wrapped, _said(profile)))


def _said(profile: Profile) -> Iterator[str]:
    if beyond := beside_stages(profile).get(BEYOND):
        yield (
            f"The shortest step took {ms(profile.fastest)}, {ms(beyond)} less than the mean. Usual "
            "causes: other programs on the same cores, and the first steps, which are slower; of "
            "more steps, fl.profile(..., steps=100), they are a smaller part."
        )
    for read in profile.reads[:3]:
        yield f"Values read in the step: {read.where}, {times(read.times)} ({read.operator})."
    if profile.compiled or profile.graphs:
        made = f"{profile.graphs} graphs made" if profile.graphs != 1 else "one graph made"
        breaks = f"{profile.breaks} breaks" if profile.breaks else "no breaks"
        yield f"Compiled: {made}, {breaks}. The first step took {profile.first:.3g} s."
    if profile.compiled:
        yield "Stages, modules and tensors are those of the same step uncompiled."
        most = max([size for _, size in profile.memory], default=0)
        yield f"Compiled, a step adds {bytes_text(most)} at its peak."
    longer = f"{profile.slowdown:.2f} times as long" if profile.slowdown > 1.05 else "as long"
    yield (
        f"Under PyTorch's profiler, for modules and operators, the step takes {longer}"
        + (
            "."
            if profile.compiled
            else f"; {share(profile.kernels, 1)} of that is spent in operators."
        )
    )


def by_size(sizes: dict[str, int]) -> list[tuple[str, int]]:
    """The largest first."""
    return sorted(sizes.items(), key=lambda each: -each[1])


def number(seconds: float) -> str:
    """Milliseconds with three digits, without their unit."""
    return ms(seconds).removesuffix(" ms")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], of: int = 0) -> str:
    """Aligned columns within `WIDTH`: the first to the left, and as short as it must be."""
    if not rows:
        return ""
    all_rows = [header, *rows]
    widths = [max(6, *(len(row[i]) for row in all_rows)) for i in range(1, len(header))]
    left = WIDTH - sum(2 + width for width in widths)
    left = min(left, max(24, *(len(row[0]) for row in all_rows)))
    lines = [
        shortened(row[0], left).ljust(left)
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
        for row in all_rows
    ]
    more = [f"and {of - len(rows)} more"] if of > len(rows) else []
    return "\n".join([*(line.rstrip() for line in lines), *more])
