"""What a step allocates, tensor by tensor, and which values of tensors Python reads in it."""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves as leaves_of

from fnloop._torch.tracing import unwrapped
from fnloop.profiling.following import following
from fnloop.profiling.host_reads import HostRead, is_read, user_line
from fnloop.profiling.named_pieces import pieces_in, pieces_of
from fnloop.profiling.stage_clock import StageClock
from fnloop.trees.nodes import tree_leaves
from fnloop.trees.show import short
from fnloop.values.grads import Grads
from fnloop.values.state import State


class Allocation(NamedTuple):
    """A tensor that a step has made, and that is there at the peak of its memory.

    Attributes:
        kind: ``"activation"`` of the loss, ``"gradient"``, ``"new state"``, or ``"temporary"``.
            ``"other"`` is what no operator returns: the state of torch's generator, which a step
            keeps to restore it, and what kernels take for themselves.
        name: Its path in the state or among the gradients; for others the operator that made it.
        tensor: Dtype and shape, such as ``"f32[64,128]"``.
        bytes: Of its storage.
        line: The user's line that made it, such as ``"train.py:12"``; empty if fnloop made it.
        place: The path of the module that ran in the forward pass; else the stage.
    """

    kind: str
    name: str
    tensor: str
    bytes: int
    line: str
    place: str

    @property
    def where(self) -> str:
        """The line and the place."""
        place = f"in {self.place}" if self.place else ""
        return ", ".join(part for part in (self.line, place) if part)


class Allocated(NamedTuple):
    """What `allocations_of` finds.

    Attributes:
        peak: Bytes that the step has allocated at its peak, beside what was there before.
        stage: What ran at the peak.
        tensors: Those that make up the peak, the largest first.
        reads: The values that are read.
    """

    peak: int
    stage: str
    tensors: tuple[Allocation, ...]
    reads: tuple[HostRead, ...]


class _Made(NamedTuple):
    """A storage that was made in the step."""

    address: int
    bytes: int
    tensor: str
    operator: str
    role: str | None
    line: str
    place: str
    stage: str


def allocations_of(run: Any, state: State, batch: Any) -> Allocated:
    """Follow every tensor that a clocked step makes, from `state`, which stays as it is."""
    clock = StageClock(state.step.device)
    modules = _Modules()
    recorder = _Recorder((*_tensors(state), *_tensors(batch)), clock, modules)
    with following(state.skeleton, modules.enter, modules.leave), clock.running():
        run(state, batch)  # what is made only once is made here
        clock.on_grads = recorder.name_gradients
        after = _followed(recorder, run, state, batch)
    for path, leaf in pieces_of(after):
        recorder.name(leaf, "new state", path)
    peak, there = recorder.peak()
    found = [_allocation(made, recorder.names.get(id(made))) for made in there]
    reads = tuple(
        HostRead(where, times, operator)
        for (where, operator), times in recorder.reads.most_common()
    )
    stage = there[-1].stage if there else ""
    return Allocated(peak, stage, tuple(sorted(found, key=lambda a: -a.bytes)), reads)


def _followed(recorder: _Recorder, run: Any, state: State, batch: Any) -> State:
    with recorder:
        return run(state, batch)[0]


def _allocation(made: _Made, known: tuple[str, str] | None) -> Allocation:
    kind, name = known or ("activation" if made.role == "loss" else "temporary", made.operator)
    return Allocation(kind, name, made.tensor, made.bytes, made.line, made.place)


class _Modules:
    """The modules that are running, the innermost last."""

    def __init__(self) -> None:
        self._open: list[str] = []

    def enter(self, path: str, kind: str) -> None:
        self._open.append(path)

    def leave(self) -> None:
        self._open.pop()

    @property
    def innermost(self) -> str:
        return self._open[-1] if self._open else ""


class _Recorder(TorchDispatchMode):
    """Sees every operation of a step below autograd."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or the compiler would be imported, which takes a second

    def __init__(self, known: Iterable[Tensor], clock: StageClock, modules: _Modules) -> None:
        super().__init__()
        self.reads = collections.Counter[tuple[str, str]]()
        self._clock, self._modules = clock, modules
        self.names: dict[int, tuple[str, str]] = {}  # of what was made, by its id
        self._before = {_address(tensor) for tensor in known}
        self._living: dict[int, _Made] = {}
        self._events: list[tuple[_Made, int]] = []
        self._watched: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::") if hasattr(func, "_schema") else str(func)
        if is_read(name, args, kwargs) and (where := user_line(_followed)):
            self.reads[where, name] += 1
        made = func(*args, **(kwargs or {}))
        for tensor in leaves_of(made):
            if isinstance(tensor, Tensor):
                self._note(unwrapped(tensor), name)
        return made

    def _note(self, tensor: Tensor, operator: str) -> None:
        address = _address(tensor)
        if not address or address in self._before or address in self._living:
            return
        storage, clock = tensor.untyped_storage(), self._clock
        role = clock.role
        module = self._modules.innermost
        place = module if role == "loss" and module else clock.stage
        line, size = user_line(_followed) or "", storage.nbytes()
        new = _Made(address, size, short(tensor), operator, role, line, place, clock.stage)
        self._living[address] = new
        self._events.append((new, new.bytes))
        self._watched.append(weakref.ref(storage, functools.partial(self._freed, new)))

    def _freed(self, made: _Made, _: Any) -> None:
        self._living.pop(made.address, None)
        self._events.append((made, -made.bytes))

    def name(self, tensor: Tensor, kind: str, name: str) -> None:
        """Say what a tensor is that is there now; its first name stays."""
        made = self._living.get(_address(tensor))
        if made is not None:
            self.names.setdefault(id(made), (kind, name))

    def name_gradients(self, grads: Grads) -> None:
        """Say which tensors these are."""
        for name, gradient in pieces_in(grads.mean):
            self.name(gradient, "gradient", name)

    def peak(self) -> tuple[int, list[_Made]]:
        """The most bytes that were there at one time, and of what, in the order of their making."""
        total = most = 0
        end = 0
        for i, (_, change) in enumerate(self._events, start=1):
            total += change
            if total > most:
                most, end = total, i
        there = dict[int, _Made]()
        for made, change in self._events[:end]:
            if change > 0:
                there[made.address] = made
            elif change < 0:
                there.pop(made.address, None)
        return most, list(there.values())


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    """Of the storage; 0 for tensors without one of their own, such as sparse ones."""
    try:
        return unwrapped(tensor).untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0
