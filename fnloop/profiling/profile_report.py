"""``Profile``: what `fl.profile` has measured."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path
from typing import Any

from fnloop.profiling.allocations import Allocation, HostRead
from fnloop.profiling.stage_clock import StageTime
from fnloop.profiling.trace_events import ModuleTime, OperatorTime


@dataclasses.dataclass(frozen=True, repr=False)
class Profile:
    """Where the time and the memory of a step go; ``print(profile)`` prints a summary.

    Times are in seconds a step, sizes in bytes. Stages, modules and operators are each without
    what is inside of them. Of a step that is compiled, which has no parts any more, stages, modules
    and memory are those of the same step uncompiled.

    Attributes:
        steps: How many steps were measured, without anything else that measures.
        seconds: Of a step of the loop.
        waiting: Of these, for the next batch.
        fastest: Of the shortest step of the loop, without waiting.
        first: Of the first step, which compiles.
        compiled: Whether the step is compiled.
        graphs: How many graphs were made meanwhile: by `fl.compile` and, for a module in
            ``torch.compile``, by PyTorch.
        breaks: How many times such a graph was broken off.
        stages: The stages in their order, the loss first.
        modules: The modules, the longest first.
        operators: The operators, or kernels of a GPU, the longest first.
        kernels: Of a step under PyTorch's profiler, the share that is spent in operators; the rest
            is Python, and what an operator takes to begin.
        state_bytes: Of the parameters, buffers and each slot of the state.
        peak: What a step allocates at its peak, beside the state and the batch.
        peak_stage: What runs then.
        tensors: What makes up the peak, the largest first.
        memory: What is allocated over a step: pairs of seconds and bytes.
        reads: Values of tensors that the user's code reads within the step.
        device: Where the step runs, such as ``"cpu"``.
        slowdown: How many times as long a step takes under PyTorch's profiler.
        findings: What stands out, the most important first.
    """

    steps: int
    seconds: float
    waiting: float
    fastest: float
    first: float
    compiled: bool
    graphs: int
    breaks: int
    stages: tuple[StageTime, ...]
    modules: tuple[ModuleTime, ...]
    operators: tuple[OperatorTime, ...]
    kernels: float
    state_bytes: dict[str, int]
    peak: int
    peak_stage: str
    tensors: tuple[Allocation, ...]
    memory: tuple[tuple[float, int], ...]
    reads: tuple[HostRead, ...]
    slowdown: float
    device: str
    findings: tuple[str, ...] = ()
    _trace: bytes = b""

    @property
    def advice(self) -> str:
        """One sentence: what to do first."""
        return self.findings[0]

    @property
    def activations(self) -> dict[str, int]:
        """Bytes of the activations that are there at the peak, by module, the largest first."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            if tensor.kind == "activation":
                found[tensor.place] = found.get(tensor.place, 0) + tensor.bytes
        return dict(sorted(found.items(), key=lambda each: -each[1]))

    def __str__(self) -> str:
        from fnloop.profiling.profile_summary import summary

        return summary(self)

    __repr__ = __str__

    def save_trace(self, path: str | Path) -> Path:
        """Write a trace of a few steps, which https://ui.perfetto.dev opens.

        Stages and modules are ranges in it. Nothing else is written, and nothing before.

        Args:
            path: A file called ``.json``, or ``.json.gz`` for a compressed one.

        Raises:
            ValueError: It has another name.
        """
        place = Path(path)
        if not place.name.endswith((".json", ".json.gz")):
            raise ValueError(
                f"A trace is a file called .json or .json.gz, which Perfetto opens; got {place}."
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        whole = place.suffix == ".gz"
        place.write_bytes(self._trace if whole else gzip.decompress(self._trace))
        return place

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the profile: time by stage and by module, memory over a step, and its tensors.

        Args:
            path: Where to write the picture; default nowhere, for a notebook.

        Returns:
            The matplotlib ``Figure``.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from fnloop.profiling.profile_plot import draw_profile

        return draw_profile(self, path)
