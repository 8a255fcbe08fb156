"""What a module finds in place of a ``Trainer`` while one of its methods is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Never

import torch
from torch import nn

from fnloop._torch.tracing import recording, unwrapped
from fnloop.values.cursor import Cursor
from fnloop.values.state import State


class Facts(NamedTuple):
    """What is known of a run before it begins.

    Attributes:
        who: Name of the module's class.
        per_epoch: Batches of the loader in an epoch; None if unknown.
        epochs: Epochs of the run; None if unknown.
        accumulate: Batches in a step.
        clip: Value of gradient clipping; None for none.
        clip_by: ``"norm"`` or ``"value"``.
    """

    who: str
    per_epoch: int | None = None
    epochs: int | None = None
    accumulate: int = 1
    clip: float | None = None
    clip_by: str = "norm"

    @property
    def steps(self) -> int | None:
        """Steps in an epoch."""
        return None if self.per_epoch is None else -(-self.per_epoch // self.accumulate)


class Unread:
    """A number that is not known while a step is recorded, as the graph would keep it."""

    def __init__(self, what: str) -> None:
        self._what = what

    def _refuse(self, *_: Any) -> Never:
        raise RuntimeError(
            f"The module reads {self._what} in a step that is compiled, whose graph would keep "
            "the number of its recording for ever. Leave fl.compile out; or, if it decides what is "
            "trained when, say so outside: fl.sequence(..., every=...), or "
            "fl.grad(frozen=fl.schedules.by_epoch(...))."
        )

    __int__ = __index__ = __float__ = __bool__ = __str__ = __format__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __hash__ = _refuse  # type: ignore
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = _refuse
    __floordiv__ = __truediv__ = __rtruediv__ = __pow__ = __neg__ = _refuse


class Position(NamedTuple):
    """Where a run stands, as Lightning counts.

    Attributes:
        epoch: From 0.
        batch: Index of the batch in its epoch.
        step: Optimizer steps done.
    """

    epoch: Any
    batch: Any
    step: Any

    @classmethod
    def of(cls, state: State, facts: Facts) -> Position:
        """The position of the batch that a step with `state` is given.

        If the length of an epoch is unknown, batches are counted as the cursor's index counts: as
        examples, where the data can.
        """
        if recording() is not None:
            names = ("self.current_epoch", "batch_idx", "self.global_step")
            return cls(*map(Unread, names))
        epoch, index, count = unwrapped(state.cursor).reshape(-1, 3)[0].tolist()
        batch = index if facts.steps is None else count - epoch * facts.steps
        step = int(unwrapped(state.step).reshape(-1)[0])
        return cls(epoch, batch * facts.accumulate + state.context.micro, step)

    @classmethod
    def after(cls, state: State, facts: Facts) -> Position:
        """The position of the last batch, for what comes after it: its epoch has not ended."""
        epoch, index, count = Cursor.of(state.cursor)
        last = epoch - 1 if count and not index else epoch
        return cls(last, 0, _steps(state))


def _steps(state: State) -> int:
    """Optimizer steps done; of a module that steps its optimizers itself, of all of them."""
    by_hand = state.slots.get("lightning")
    return sum([int(n) for n in by_hand["steps"].values()]) if by_hand else int(state.step)


class Standing:
    """Stands for the ``Trainer``: what a module may ask of one.

    Args:
        facts: Of the run.
        position: Where it stands.
        **more: Further attributes.
    """

    def __init__(self, facts: Facts, position: Position, **more: Any) -> None:
        self.current_epoch, self._batch, self._step = position
        self.num_training_batches = float("inf") if facts.per_epoch is None else facts.per_epoch
        self.max_epochs, self.max_steps = facts.epochs, -1
        self.accumulate_grad_batches = facts.accumulate
        self.gradient_clip_val, self.gradient_clip_algorithm = facts.clip, facts.clip_by
        self.global_rank = self.local_rank = self.node_rank = 0
        self.world_size = self.num_devices = self.num_nodes = 1
        self.is_global_zero, self.logger, self.loggers = True, None, []
        self.sanity_checking = self.validating = self.testing = self.predicting = False
        self.training, self.fast_dev_run, self.datamodule = True, False, None
        self.callback_metrics: Mapping[str, Any] = {}
        self._facts = facts
        self.__dict__.update(more)

    @property
    def global_step(self) -> Any:
        """Optimizer steps done; in a step that is run by hand, so far."""
        optimizers = vars(self).get("optimizers")
        return self._step if optimizers is None else sum([int(o.steps) for o in optimizers])

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch is the last of its epoch."""
        if self._facts.per_epoch is None:
            raise self._unknown("is_last_batch")
        return self._batch == self._facts.per_epoch - 1

    @property
    def estimated_stepping_batches(self) -> int:
        """Steps of the whole run."""
        if self._facts.steps is None or self._facts.epochs is None:
            raise self._unknown("estimated_stepping_batches")
        return self._facts.steps * self._facts.epochs

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"{self._facts.who} asks for self.trainer.{name}, and there is no Trainer here. There "
            f"are: {', '.join(n for n in (*vars(self), *_COMPUTED) if n[0] != '_')}. What else a "
            "Trainer does, fl.fit and its callbacks do: see the how-to page Bring a "
            "LightningModule."
        )

    def refusals(self) -> dict[str, Callable[..., Never]]:
        """Methods of a module that ask a Trainer for optimizers, where there are none."""

        def refusal(name: str) -> Callable[..., Never]:
            def refuse(*_: Any, **__: Any) -> Never:
                raise RuntimeError(
                    f"{self._facts.who} calls self.{name}() where there are none: optimizers and "
                    "schedulers are a stage after training_step here. The learning rate is "
                    'reported at each step, as history["sgd.lr"], so leave the call out. A '
                    "training_step that steps them itself sets self.automatic_optimization = False."
                )

            return refuse

        return {name: refusal(name) for name in ("optimizers", "lr_schedulers")}

    def _unknown(self, name: str) -> RuntimeError:
        return RuntimeError(
            f"{self._facts.who} asks for self.trainer.{name}, which follows from the length of the "
            "data and the number of epochs. Give both: fl.lightning.step(module, data, epochs=10)."
        )


_COMPUTED = ("global_step", "is_last_batch", "estimated_stepping_batches")


@contextlib.contextmanager
def attached(
    module: nn.Module, trainer: Standing, device: torch.device | None = None, **methods: Any
) -> Generator[None]:
    """Give a module, and those in it, a trainer and methods such as ``log``; then take them away.

    Args:
        module: A copy that nobody else uses.
        trainer: In place of the ``Trainer``.
        device: What ``self.device`` is meanwhile.
        **methods: What takes the place of its methods of these names.
    """
    methods = {**trainer.refusals(), **methods}
    owners = [vars(each) for each in module.modules() if "_trainer" in vars(each)]
    before = [(own["_trainer"], own.get("_device")) for own in owners]
    try:
        for own in owners:
            own["_trainer"] = trainer
            if device is not None:
                own["_device"] = device
            own.update(methods)
        yield
    finally:
        for own, (old, place) in zip(owners, before, strict=True):
            own["_trainer"], own["_device"] = old, place
            for name in methods:
                own.pop(name, None)
