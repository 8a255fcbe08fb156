"""``Callback``: the base class of what is called after every training step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from fnloop.distributed.mesh import Mesh
from fnloop.stages.base import Kind, Stage
from fnloop.values.cursor import Cursor
from fnloop.values.memory import fill
from fnloop.values.rhythm import Pace, Rhythm
from fnloop.values.state import State


class Callback(Stage, abstract=True):
    """A callback: ``(state, metrics) -> (state, metrics)``, called after every training step.

    >>> import torch, fnloop as fl
    >>> @fl.tree
    ... class lowest(fl.base.Callback):
    ...     label = "lowest"
    ...     monitor: str
    ...     name: str = "lowest"
    ...     def init_state(self, state, metrics):
    ...         return torch.tensor(float("inf"), dtype=torch.float64)
    ...     def __call__(self, state, x):
    ...         value = torch.minimum(state[self.name], torch.tensor(float(x[self.monitor])))
    ...         return state.put(self.name, value), {**x, self.name: fl.Last(value)}
    >>> step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state = step.init(torch.nn.Linear(1, 1))
    >>> watch = lowest("loss")
    >>> for state, metrics in fl.run(step, state, [torch.ones(2, 1)], steps=3, callbacks=[watch]):
    ...     pass
    >>> float(metrics["lowest"]) == float(metrics["loss"])  # it falls at every step here
    True
    """

    kind: ClassVar[Kind] = "callback"

    def init(self, state: State, metrics: Mapping[str, Any]) -> State:  # type: ignore[override]  # pyright: ignore
        """Add the callback's memory to the state. The loop calls it after the first step.

        Args:
            state: The state after the first step.
            metrics: That step's metrics, with examples of those that earlier callbacks add.
        """
        if self.slot is None:
            return state
        return fill(state, self.slot, self.init_state(state, metrics))

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> Any:  # type: ignore[override]  # pyright: ignore
        """The callback's initial memory: new tensors, `fl.Tensors`, or dicts of them."""
        raise NotImplementedError(
            f"{type(self).__name__} has a slot, so it must define init_state(state, metrics)."
        )

    reads: ClassVar[bool] = True
    """Whether it reads its metrics; if so, `fl.every` merges those between two calls."""

    only_evaluates: ClassVar[bool] = False
    """Whether it only evaluates data: it adds metrics and changes nothing in the state."""

    def is_due(self, cursor: Cursor) -> bool:
        """Whether it does more at a batch than look whether it is its turn.

        If so, the step before it keeps the state that it was given: should the callback fail, the
        run ends with that state, and a resumed run does the step again.

        Args:
            cursor: The position after the batch.
        """
        return True

    def needs_state(self, cursor: Cursor, reported: Collection[str]) -> bool:
        """Whether it reads or changes more of the state than its own memory, or may ask for a stop.

        Only a step that does several batches in one call, ``fl.compile(step, steps=k)``, asks: the
        call ends with a step after which somebody needs the state. At the others the callback is
        called later, with a state that has the cursor and the memory of callbacks. By default it
        needs the state whenever it is due.

        Args:
            cursor: The position after the batch.
            reported: Names of the metrics that the step reports.
        """
        return self.is_due(cursor)

    @property
    def rhythms(self) -> tuple[Rhythm, ...]:
        """When it comes; for those that go by the clock, the loop looks at it."""
        return ()

    def needs(self) -> tuple[str, ...]:
        """Names of the metrics that it requires; one that nothing reports is an error at the start.

        A name such as ``"val/confusion/f1"`` is that of one value of a metric with several. It is
        no key of the metrics; ``fl.metrics.find(metrics, name)`` gives its value.
        """
        return ()

    def adds(self, state: State, metrics: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """An example of the metrics that it adds; None if they are not known in advance."""
        return {}

    def over(self, mesh: Mesh) -> Self:
        """The same callback for the ranks of `mesh`, which call it together."""
        return self

    def along(self, pace: Pace) -> Self:
        """The same callback for a run that begins now, whose data has this pace."""
        return self

    def smoke(self) -> Self:
        """What takes its place in a smoke run, in which all comes once and takes no time."""
        return self

    def stopped(self, state: State) -> str | None:
        """The reason if its memory in `state` says that it stopped the run; checked on resume."""
        return None

    def __call__(self, state: State, x: Any) -> tuple[State, Mapping[str, Any]]:
        raise NotImplementedError
