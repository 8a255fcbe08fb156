"""What stands out in a profile, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

from fnloop.profiling.profile_report import Profile
from fnloop.profiling.stage_clock import IN_PLACE, StageTime
from fnloop.trees.show import bytes_text

WAITING = 0.15
"""Share of a step that is spent waiting for data, from which on it is mentioned."""

HOT = 0.3
"""Share of the stages' time of a stage that is neither the loss nor its gradient."""

IDLE = 0.5
"""Share of a step outside of operators."""

FAT = 0.4
"""Share of the peak that is one tensor, and others of its shape."""

SMALL = 8_000_000
"""Bytes below which a tensor is no matter."""

MAIN = 0.5
"""Share of a module or a stage from which on it is said to be most of a step."""

MANY_GRAPHS = 2
"""Graphs that a few steps may take: one for the batches of an epoch, and one for the last."""

Finding: TypeAlias = tuple[float, str]
"""The share of a step, or of its memory, that could be saved at most; and a sentence."""


def findings_of(profile: Profile) -> tuple[str, ...]:
    """Sentences, that about the largest part first; at least one."""
    found = [each for rule in RULES for each in rule(profile)]
    sentences = [text for _, text in sorted(found, key=lambda each: -each[0])]
    return tuple(sentences or [_nothing(profile)])


def share(part: float, whole: float) -> str:
    """A share in per cent."""
    return f"{100 * part / whole:.0f}%" if whole else "0%"


def ms(seconds: float) -> str:
    """Milliseconds, with three digits."""
    value = 1e3 * seconds
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def times(count: int) -> str:
    """How often something happens in a step."""
    return "once a step" if count == 1 else f"{count} times a step"


def _data(profile: Profile) -> Iterator[Finding]:
    part = profile.waiting / profile.seconds
    if part >= WAITING:
        yield (
            part,
            f"Data: {share(profile.waiting, profile.seconds)} of a step is waiting for the next "
            f"batch ({ms(profile.waiting)} of {ms(profile.seconds)}). Do "
            "less for each example, or draw batches in (more) workers of a DataLoader; "
            "fl.data.prefetch reads ahead what has workers, or fl.Batches.",
        )


def _reads(profile: Profile) -> Iterator[Finding]:
    if not profile.reads:
        return
    first, *others = profile.reads
    several = "another line does" if len(others) == 1 else f"{len(others)} other lines do"
    more = f", as {several}" if others else ""
    waits = (
        "a compiled step cannot do that, and on a GPU it would wait for all that came before"
        if profile.device == "cpu"
        else "Python waits there for all that the device has yet to do"
    )
    # Before a step is compiled, it may not read.
    part = max(0.1 if profile.device == "cpu" else 0.35, _idle_share(profile) + 0.01)
    yield (
        part,
        f"Read: {first.where} reads the value of a tensor within the step, {times(first.times)}"
        f"{more}: {waits}. Report the tensor as a metric, and look at it after the step.",
    )


def _hot(profile: Profile) -> Iterator[Finding]:
    whole = sum(stage.seconds for stage in profile.stages)
    for stage in _hot_stages(profile):
        yield (
            stage.seconds / whole,
            f"Stage: {_named(stage)} is {share(stage.seconds, whole)} of the time of all stages "
            f"({ms(stage.seconds)}), and neither the loss nor its gradient. Do it less often, or "
            "with fewer or larger operations.",
        )


def _exchange(profile: Profile) -> Iterator[Finding]:
    whole = sum(stage.seconds for stage in profile.stages)
    for stage in profile.stages:
        if stage.name.rpartition("/")[2].startswith("shard(") and stage.seconds > HOT * whole:
            yield (
                stage.seconds / whole,
                f"Ranks: {share(stage.seconds, whole)} of the time of all stages is exchange with "
                f"other ranks, or waiting for them ({stage.name}, {ms(stage.seconds)}). Larger "
                "batches and fl.accumulate exchange less often; fl.summary(step, state) says how "
                "much is moved.",
            )


def _hot_stages(profile: Profile) -> list[StageTime]:
    """Stages beside loss and gradient with much of the time, most of it their own doing."""
    whole = sum(stage.seconds for stage in profile.stages)
    return [
        stage
        for stage in profile.stages
        if stage.role == "step" and stage.seconds > HOT * whole and not _is_small(profile, stage)
    ]


def _is_small(profile: Profile, stage: StageTime) -> bool:
    """Whether a stage takes its time because the whole step is so small."""
    own = stage.name.rpartition("/")[2]
    return own.startswith(("update(", IN_PLACE)) and _idle(profile) > IDLE


def _idle(profile: Profile) -> float:
    return 1 - profile.kernels


def _idle_share(profile: Profile) -> float:
    """The share of a step that `fl.compile` could save at most."""
    if profile.compiled or _idle(profile) < IDLE:
        return 0.0
    whole = sum(stage.seconds for stage in profile.stages)
    hot = sum(stage.seconds for stage in _hot_stages(profile))
    computing = 1 - profile.waiting / profile.seconds
    return _idle(profile) * (1 - hot / whole) * computing


def _overhead(profile: Profile) -> Iterator[Finding]:
    part = _idle_share(profile)
    if part:
        calls = sum(operator.calls for operator in profile.operators)
        yield (
            part,
            f"Overhead: {share(_idle(profile), 1)} of what is computed is Python between {calls} "
            "operators. fl.compile(step) makes one graph of them; larger batches "
            "help too.",
        )


def _fat(profile: Profile) -> Iterator[Finding]:
    """One large tensor, with what is made of it in its shape: its gradient, a copy."""
    state = sum(profile.state_bytes.values())
    own = [tensor for tensor in profile.tensors if tensor.kind in ("activation", "temporary")]
    for largest in own[:1]:
        alike = [tensor for tensor in own if tensor.tensor == largest.tensor]
        part = sum(tensor.bytes for tensor in alike) / profile.peak
        if part < FAT or largest.bytes < max(SMALL, state):
            continue
        made = min(alike, key=lambda tensor: tensor.kind != "activation")
        several = f"{len(alike)} tensors of" if len(alike) > 1 else "one tensor,"
        yield (
            0.5 * part,
            f"Memory: {several} {made.tensor} ({made.name}, {made.where}): {share(part, 1)} of "
            f"the {bytes_text(profile.peak)} that a step adds at its peak. Compute it in parts, or "
            "again in the backward pass: fl.accumulate, torch.utils.checkpoint, or "
            "fl.compile(step, memory=0.5).",
        )


def _graphs(profile: Profile) -> Iterator[Finding]:
    if profile.breaks:
        yield (
            0.4,
            f"Graphs: what torch.compile makes of the model is broken off {profile.breaks} times. "
            "fl.compile(step) makes one graph of the whole step, or names the line that keeps "
            "it from one.",
        )
    if profile.compiled and profile.graphs > MANY_GRAPHS:
        yield (
            0.45,
            f"Graphs: {profile.graphs} graphs were made in {profile.steps} steps, one for each "
            "shape of a batch. Pad the batches to a few shapes, or fl.compile(step, dynamic=True).",
        )


def _nothing(profile: Profile) -> str:
    """What to say where no rule has anything to say."""
    whole = sum(stage.seconds for stage in profile.stages)
    computed = sum(module.seconds for module in profile.modules)
    for module in profile.modules[:1]:
        if module.seconds >= MAIN * computed:
            return (
                f"Nothing stands out: a step computes, {share(module.seconds, computed)} of the "
                f"model's time in {module.path} ({module.kind}). What makes that one smaller, or "
                'computes it in half precision (fl.amp("bf16")), makes the step faster.'
            )
    main = max(profile.stages, key=lambda stage: stage.seconds)
    return (
        f"Nothing stands out: the longest stage is {_named(main)}, with "
        f"{share(main.seconds, whole)} of the time. "
        + ("" if profile.compiled else "fl.compile(step) makes one graph of all of it.")
    ).strip()


def _named(stage: StageTime) -> str:
    return f"the loss ({stage.name})" if stage.role == "loss" else stage.name


RULES: tuple[Callable[[Profile], Iterator[Finding]], ...] = (
    _data,
    _reads,
    _hot,
    _exchange,
    _overhead,
    _fat,
    _graphs,
)
