"""What a trace of PyTorch's profiler says: by operator, by module, by stage, and over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fnloop.profiling.names_in_trace import MODULE, STAGE, STEP

_BACKWARD = "autograd::engine::evaluate_function: "
_ROUNDING = 0.5  # microseconds
_HOST = ("cpu_op", "user_annotation")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


class ModuleTime(NamedTuple):
    """The time of one module, without the modules inside it.

    Attributes:
        path: As in ``named_modules``; ``"model"`` for the model itself.
        kind: Name of its class.
        forward, backward: Seconds in a step.
        calls: In a step.
    """

    path: str
    kind: str
    forward: float
    backward: float
    calls: int

    @property
    def seconds(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


class OperatorTime(NamedTuple):
    """The time of one operator, without the operators that it calls; on a GPU of one kernel.

    Attributes:
        name: Such as ``"aten::addmm"``.
        seconds: In a step.
        calls: In a step.
    """

    name: str
    seconds: float
    calls: int


class Traced(NamedTuple):
    """What a trace says of its shortest step.

    Attributes:
        seconds: Of a step.
        operators: The longest first.
        modules: The longest first.
        kernels: Seconds in operators, by the stage that they are in.
        memory: Bytes allocated since the step began, by seconds since then.
    """

    seconds: float
    operators: tuple[OperatorTime, ...]
    modules: tuple[ModuleTime, ...]
    kernels: dict[str, float]
    memory: tuple[tuple[float, int], ...]


class _Range:
    """An event of some length, in the one around it."""

    def __init__(self, event: Mapping[str, Any], around: _Range | None) -> None:
        name: str = event["name"]
        self.name = name.removeprefix(_BACKWARD)
        self.number: int | None = event.get("args", {}).get("Sequence number")
        self.is_operator = event["cat"] == "cpu_op"
        self.start, self.length = float(event["ts"]), float(event.get("dur", 0.0))
        self.own, self.end = self.length, self.start + self.length
        self.around = around
        self.module: str | None = around.module if around else None
        self.stage: str = around.stage if around else ""
        self.backward: _Range | None = around.backward if around else None
        if around is not None:
            around.own -= self.length
        if self.name.startswith(MODULE):
            self.module = self.name.removeprefix(MODULE)
        elif self.name.startswith(STAGE):
            self.stage = self.name.removeprefix(STAGE)
        elif name.startswith(_BACKWARD) and self.backward is None:
            self.backward = self


def read_trace(trace: Mapping[str, Any], on_cpu: bool) -> Traced:
    """Read a trace whose steps, stages and modules are ranges.

    The backward pass of a module is what autograd runs for the operators of its forward pass: both
    have one sequence number. A module's own time is that of its range, Python included, without
    the modules inside it.

    Args:
        trace: What ``torch.profiler`` exports, parsed.
        on_cpu: Whether the step runs on the CPU: whose memory counts.
    """
    events = [e for e in trace["traceEvents"] if e.get("ph") == "X" and "ts" in e]
    steps = [e for e in events if e["name"] == STEP and e["cat"] == "user_annotation"]
    step = min(steps, key=lambda e: e["dur"])  # the one that others on the machine disturb least
    start = float(step["ts"])
    end = start + float(step["dur"])
    inside = [e for e in events if start <= float(e["ts"]) <= end]
    found = list(_nested(e for e in inside if e.get("cat") in _HOST))
    kernels = dict[str, float]()
    for each in found:
        if each.is_operator:
            kernels[each.stage] = kernels.get(each.stage, 0.0) + each.own / 1e6
    on_device = dict[str, list[float]]()
    for event in inside:
        if event.get("cat") in _DEVICE:
            _add(on_device, event["name"], float(event["dur"]))
    times = [
        OperatorTime(name, total / 1e6, int(calls))
        for name, (total, calls) in (on_device or _operators(found)).items()
    ]
    return Traced(
        seconds=float(step["dur"]) / 1e6,
        operators=tuple(sorted(times, key=lambda time: -time.seconds)),
        modules=tuple(sorted(_modules(found), key=lambda time: -time.seconds)),
        kernels=kernels,
        memory=tuple(_memory(trace["traceEvents"], step, on_cpu)),
    )


def _nested(events: Iterable[Mapping[str, Any]]) -> Iterator[_Range]:
    """Events of all threads as ranges, each after the one around it."""
    open_in: dict[Any, list[_Range]] = {}
    for event in sorted(events, key=lambda e: (float(e["ts"]), -float(e.get("dur", 0.0)))):
        stack = open_in.setdefault(event["tid"], [])
        start, end = float(event["ts"]), float(event["ts"]) + float(event.get("dur", 0.0))
        # Times are rounded: what begins just before the end of another is not in it.
        while stack and (start >= stack[-1].end or end > stack[-1].end + _ROUNDING):
            stack.pop()
        made = _Range(event, stack[-1] if stack else None)
        stack.append(made)
        yield made


def _operators(found: Iterable[_Range]) -> dict[str, list[float]]:
    totals: dict[str, list[float]] = {}
    for each in found:
        if each.is_operator:
            _add(totals, each.name, each.own, not _calls_itself(each))
    return totals


def _calls_itself(each: _Range) -> bool:
    """Whether an operator is in one of its name: modes of Python's dispatch it twice."""
    around = each.around
    while around is not None and around.is_operator and around.name != each.name:
        around = around.around
    return around is not None and around.is_operator


def _modules(found: list[_Range]) -> Iterator[ModuleTime]:
    """The modules with their forward and backward passes."""
    # Of the operators with one number, the last is the one that autograd has recorded.
    owner = {
        each.number: each.module
        for each in found
        if each.is_operator and each.number is not None and each.backward is None
    }
    forward, backward = dict[str, list[float]](), dict[str, float]()
    for each in found:
        if each.backward is None and each.module is not None:
            totals = forward.setdefault(each.module, [0.0, 0])
            if each.name.startswith(MODULE):
                totals[1] += 1
            totals[0] += each.own
        elif each.backward is not None:
            module = owner.get(each.backward.number or -1)
            if module is not None:
                backward[module] = backward.get(module, 0.0) + each.own / 1e6
    for name, (total, calls) in forward.items():
        path, _, kind = name.rpartition(" (")
        kind = kind.removesuffix(")")
        yield ModuleTime(path, kind, total / 1e6, backward.get(name, 0.0), int(calls))


def _memory(
    events: Iterable[Mapping[str, Any]], step: Mapping[str, Any], on_cpu: bool
) -> Iterator[tuple[float, int]]:
    start = float(step["ts"])
    end = start + float(step["dur"])
    before: int | None = None
    for event in sorted(
        (e for e in events if e["name"] == "[memory]"), key=lambda e: float(e["ts"])
    ):
        about, at = event["args"], float(event["ts"])
        if (about["Device Type"] == 0) != on_cpu or not start <= at <= end:
            continue
        if before is None:
            before = about["Total Allocated"] - about["Bytes"]
            yield 0.0, 0
        yield (at - start) / 1e6, about["Total Allocated"] - before


def _add(totals: dict[str, list[float]], name: str, value: float, calls: int = 1) -> None:
    own = totals.setdefault(name, [0.0, 0])
    own[0] += value
    own[1] += calls
