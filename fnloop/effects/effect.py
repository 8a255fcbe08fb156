"""Effects: callbacks that see a run but cannot change it (logging, saving, plotting)."""

from __future__ import annotations

import dataclasses
import uuid
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fnloop.distributed.mesh import Mesh
from fnloop.names.keywords import Explained
from fnloop.stages.functions import check_function
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Metrics
from fnloop.values.rhythm import Pace, Rhythm
from fnloop.values.signals import let_out
from fnloop.values.state import State


@dataclasses.dataclass
class Run:
    """What an effect is told about its run.

    Attributes:
        step: The training step: a stage, or a function.
        state: The newest state: in `open` the one before the first step, in `close` the last. (If
            an effect keeps a state, a compiled step that donates must copy it.)
        config: Hyperparameters: plain values by name.
        effects: All effects of the run, in order.
        batches: Batches in an epoch; None if unknown.
        total: Batches that this run will draw; None if unknown.
        whole: Whether the callbacks have run on the newest state. False if one of them failed
            after a step that donates: the newest state is then the step's result.
        reason: Why the run has ended, if no metric says so; set before `close`.
        status: How the run has ended; set before `close`.
        untrained: Whether a run from initial weights has ended without one committed step; set
            before `close`.
        last: Metrics of a last validation, of a run that was stopped between two; set before
            `close`.
        cursor: The cursor of the newest state, as the data gave it; None before the first step.
        data: A description of the data (kind, sizes, a digest of a sample), as JSON values.
        id: The run's identity. A resumed run keeps it.
        continues: The checkpoint that the run goes on from; None for a new run.
        overwrite: Whether another run's checkpoints may be deleted from a folder to be written.
        position: For data that keeps its own position: a function that returns the position after
            the newest state's batch, as JSON values. Else it returns None.
        mesh: The processes that run it together.
        pace: How the data advances.
        gauges: Functions that tell numbers by name, of what effects measure beside the metrics (how
            fast it is). Whoever writes points asks them; an effect adds its own in `open`.
        reported: The names of all metrics that the step itself has reported, without those that
            callbacks add; kept up to date.
        show: Set by `fl.track` while it opens what it shows (`fl.trackers.show`): a function that
            sends values of a state, by name, to its trackers.
    """

    step: Any
    state: State
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    effects: Sequence[Effect] = ()
    batches: int | None = None
    total: int | None = None
    whole: bool = True
    reason: str = ""
    status: str = "running"
    untrained: bool = False
    last: Metrics = dataclasses.field(default_factory=dict)
    cursor: Cursor | None = None
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    continues: Path | None = None
    overwrite: bool = False
    position: Callable[[], Any] = lambda: None
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    pace: Pace = dataclasses.field(default_factory=Pace)
    gauges: list[Callable[[], Mapping[str, float]]] = dataclasses.field(default_factory=list)
    reported: set[str] = dataclasses.field(default_factory=set)
    show: Callable[[State, Mapping[str, Any]], None] | None = None

    def measured(self) -> dict[str, float]:
        """What the gauges tell now."""
        return {name: value for gauge in self.gauges for name, value in gauge().items()}

    def data_now(self) -> dict[str, Any]:
        """Description and position of the data: JSON values, kept with every checkpoint."""
        return {"about": dict(self.data), "position": self.position()}

    def memos(self) -> dict[str, Any]:
        """Each effect's memo, by the effect's name: JSON values, kept with every checkpoint."""
        memos = {name: _memo_of(name, effect) for name, effect in named(self.effects).items()}
        return {name: memo for name, memo in memos.items() if memo is not None}


def _memo_of(name: str, effect: Effect) -> Any:
    try:
        return effect.memo()
    except Exception as error:
        let_out(error)
        warnings.warn(f"The memo of the effect {name!r} is left out: {error!r}", stacklevel=3)
        return None


def named(effects: Iterable[Effect]) -> dict[str, Effect]:
    """Effects by name, in order; the second of one name is ``"name.2"``."""
    result: dict[str, Effect] = {}
    for effect in effects:
        name, n = effect.name, 1
        while name in result:
            n += 1
            name = f"{effect.name}.{n}"
        result[name] = effect
    return result


class Effect(Explained):
    """Something that is called after every step with state and metrics, and returns nothing.

    Subclass it, or lift a function with `fl.effect`.

    Attributes:
        name: The key of its memo in a checkpoint.
        closing: Seconds that `close` takes, roughly; a time limit ends the run that much earlier.
        saves_to: The folder that it saves checkpoints to; None if it saves none.
        saves_last: Whether it saves the last state of a run there.
        gathers: Whether its memo has something of every step, as a tracker's unfinished row; it is
            called before those that save, so that a checkpoint has its own step in it.
        opens_first: Whether it is opened before the others, because it shows what they do.
        ranks: Where it runs if many processes train together: on the ``"first"`` rank, so that a
            line is printed once, or on ``"all"``.
        asked: Whether somebody has asked it, from outside of the run, to do something after the
            next step (a signal to save). All ranks then do.
        sees_batches: Whether it is told of each batch; see `drawn`.
        rhythms: When it comes; for those that go by the clock, the loop looks at it.

    >>> import torch, fnloop as fl
    >>> class count(fl.base.Effect):
    ...     def open(self, run):
    ...         self.steps = 0
    ...     def __call__(self, state, metrics):
    ...         self.steps += 1
    ...     def close(self, status):
    ...         print(status, "after", self.steps)
    >>> step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(1, 1))
    >>> state, history = fl.fit(step, state, [torch.ones(2, 1)], steps=3, callbacks=[count()])
    completed after 3
    """

    name: str = "effect"
    closing: float = 0.0
    saves_to: Path | None = None
    saves_last: bool = False
    gathers: bool = False
    opens_first: bool = False
    ranks: Literal["first", "all"] = "first"
    asked: bool = False
    sees_batches: bool = False
    rhythms: tuple[Rhythm, ...] = ()

    def check_run(self, run: Run) -> None:
        """Called before any effect is opened: raise here if the run must not begin."""

    def needs(self) -> tuple[str, ...]:
        """Names of the metrics that it waits for; one that nothing reports is an error.

        They are names by which ``fl.metrics.find`` finds a metric, or one value of several.
        """
        return ()

    def open(self, run: Run) -> None:
        """Called before the first step; check here that files can be written."""

    def before(self, metrics: Metrics) -> None:
        """Called before the first step of a new run, if it is validated there.

        Args:
            metrics: What the validations have found (``fl.every(..., first=True)``).
        """

    def drawn(self, cursor: Cursor, batch: Any) -> None:
        """Called with each batch before its step, if it `sees_batches`.

        Args:
            cursor: The position after the batch.
            batch: The batch; it must not be changed. Only its shapes can be read without waiting
                for a device.
        """

    def __call__(self, state: State, metrics: Metrics) -> None:
        """Called after each step, after all callbacks that are stages."""
        raise NotImplementedError

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        """Whether it reads more of the state than its cursor at a batch.

        Only a step that does several batches in one call, ``fl.compile(step, steps=k)``, asks: the
        call ends with a step after which somebody needs the state. At the others the effect is
        called later, with a state that has the cursor only. By default it always needs the state.

        Args:
            cursor: The position after the batch.
            reported: Names of the metrics that the step reports.
        """
        return True

    def close(self, status: str) -> None:
        """Called once, also after an error, and if `open` has failed.

        Args:
            status: "completed", "stopped", "interrupted" or "failed".
        """

    def release(self) -> None:
        """Give back what would outlive the run: threads, locks, signal handlers.

        Called after `close`, also after one that Ctrl-C has broken off anywhere, while no signal
        handler raises. It must be quick, and may be called several times.
        """

    def memo(self) -> Any:
        """A small JSON value to be kept with a checkpoint, or None.

        What grows with the run goes into pages (`fnloop.effects.page.Page`), written once each.
        """
        return None

    def recall(self, memo: Any) -> None:
        """Restore what `memo` returned, when a run is resumed; called before `open`."""

    def smoke(self, folder: Path) -> Effect | None:
        """What takes its place in a smoke run, which leaves no file; None for nothing.

        Args:
            folder: A folder of its own, which is deleted at the end. It does not exist yet.
        """
        return self

    def note_damaged(self, paths: Collection[Path]) -> None:
        """Told which checkpoints resuming found damaged and skipped; called before `recall`."""


class effect(Effect):
    """Make a function ``(state, metrics) -> None`` an effect.

    >>> losses = []
    >>> note = effect(lambda state, metrics: losses.append(float(metrics["loss"])))
    """

    def __init__(
        self,
        function: Callable[[State, Metrics], None],
        name: str | None = None,
        ranks: Literal["first", "all"] = "first",
    ) -> None:
        check_function(function, "effect", "(state, metrics) -> None")
        self.function, self.ranks = function, ranks
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def __call__(self, state: State, metrics: Metrics) -> None:
        self.function(state, metrics)
