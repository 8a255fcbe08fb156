"""``keep_best``: the best state of a run so far, of each member by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.loop.monitoring import Monitoring
from fnloop.names.keywords import explained
from fnloop.trees.nodes import tree, tree_map
from fnloop.values.choice import select, select_members
from fnloop.values.cursor import Cursor
from fnloop.values.looking import look
from fnloop.values.monitored import check_mode
from fnloop.values.state import State


@tree
class keep_best(Monitoring):
    """Keep what the state was where `monitor` was best; of a population, for each member.

    `fl.tuning.best_states` gives the state that it has kept. It is kept in the state itself, so it
    is in each checkpoint, and takes the memory of the parameters and buffers once more. A
    checkpoint with ``monitor=`` holds all members at one time instead, and takes none.

    Members that take the state of others (`fl.population`) take what was kept of them, too.

    Args:
        monitor: Name of the metric, such as ``"val/loss"``.
        mode: ``"min"`` (lower is better) or ``"max"``.
        slots: Slots to keep as well, such as ``("ema",)``, if that is what was validated.
        name: Of its own slot.

    Raises:
        ValueError: `mode` is neither; or, at the start of a run, the state has no such slot.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state, best = step.init(torch.nn.Linear(1, 1)), keep_best("val/loss")
    >>> state = best.init(state, {"val/loss": fl.Last(1.0)})
    >>> for value in (3.0, 2.0, 5.0):
    ...     state, _ = step(state, torch.ones(1, 1))
    ...     state, _ = best(state, {"val/loss": fl.Last(value)})
    >>> int(state.step), int(best_states(state).step), float(state["best"]["value"])
    (3, 2, 2.0)
    """

    label: ClassVar[str] = "keep_best"
    monitor: str
    mode: str = "min"
    slots: str | tuple[str, ...] = ()
    name: str = "best"

    def __post_init__(self) -> None:
        check_mode(self.mode, self.monitor, "keep_best")
        slots: Any = (self.slots,) if isinstance(self.slots, str) else tuple(self.slots)
        object.__setattr__(self, "slots", slots)
        super().__post_init__()

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Any]:
        missing = [slot for slot in self.slots if slot not in state.slots]
        if missing:
            raise ValueError(
                f"{self.describe()}: the state has no slot {missing[0]!r}; it has: "
                f"{', '.join(sorted(state.slots)) or 'none'}."
            )
        worst = float("inf") if self.mode == "min" else -float("inf")
        value = torch.full_like(state.step, worst, dtype=torch.float64)
        kept = tree_map(torch.clone, self._kept(state))
        return {"value": value, "batches": torch.zeros_like(state.step), **kept}

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        found = self.found(state, x)
        if found is None:
            return state, x
        own = state[self.name]
        value = torch.as_tensor(found, dtype=torch.float64, device=own["value"].device)
        better = value > own["value"] if self.mode == "max" else value < own["value"]
        if look(better.any()) is False:
            return state, x

        count = torch.zeros_like(own["batches"]) + Cursor.of(state.cursor).count
        new = {"value": value, "batches": count, **self._kept(state)}
        return state.put(self.name, _where(better, new, {**own})), x

    def _kept(self, state: State) -> dict[str, Any]:
        others = {slot: state[slot] for slot in self.slots}
        own = {"step": state.step, "params": state.params, "buffers": state.buffers}
        return {**own, "slots": others}


def _where(better: Tensor, new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Of a run that is better, or of those members that are, what is new."""
    return select_members(better, new, old) if better.ndim else select(look(better), new, old)


@explained
def best_states(state: State, name: str = "best") -> State:
    """The state as it was where its metric was best, as `fl.tuning.keep_best` has kept it.

    Parameters, buffers, ``step`` and the slots that it was to keep are those of then; everything
    else (optimizer state, cursor) is as it is now. Of a population each member has its own.

    Args:
        state: After a run with `keep_best`; of one run or of a population.
        name: Of its slot.

    Raises:
        ValueError: The state has no such slot.

    >>> import fnloop as fl
    >>> x = torch.linspace(-1, 1, 8)[:, None]
    >>> loss = lambda model, batch: (model(batch) - batch).square().mean()
    >>> step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> many = fl.sweep(step, {"sgd.lr": [0.1, 10.0]})  # the second diverges
    >>> states = many.init(lambda: torch.nn.Linear(1, 1), seed=0)
    >>> callbacks = [fl.validate(loss, [x]), keep_best("val/loss")]
    >>> states, _ = fl.fit(many, states, [x], epochs=5, callbacks=callbacks)
    >>> best_states(states).step.tolist()
    [5, 1]
    """
    if name not in state.slots or "params" not in state[name]:
        raise ValueError(
            f"best_states: the state has nothing of the best in a slot {name!r}. Add "
            'fl.tuning.keep_best("val/loss") to the callbacks of the run.'
        )
    own = state[name]
    kept = {part: own[part] for part in ("step", "params", "buffers")}
    return state.replace(**kept, slots={**state.slots, **own["slots"]})
