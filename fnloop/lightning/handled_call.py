"""One call of a training step that a module takes itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnloop.lightning.hand import HandOptimizer, HandScheduler, clip_gradients, prefix_of
from fnloop.lightning.kept_attributes import Written, attributes_kept, changed, settings_kept
from fnloop.lightning.lasting import Lasting
from fnloop.lightning.logged import Log, batch_size_of
from fnloop.lightning.metric_objects import MetricObjects, to_device
from fnloop.lightning.overridden import arguments_for, overrides
from fnloop.lightning.standing import Facts, Position, Standing, attached
from fnloop.lightning.training_loss import KEPT, loss_in, transferred
from fnloop.lightning.translated import Owned
from fnloop.optim.base import Optimizer
from fnloop.trees.nodes import tree_map
from fnloop.values.metrics import Last, Mean, Sum, as_tensor
from fnloop.values.randomness import randomness
from fnloop.values.state import State


class HandPlan(NamedTuple):
    """What is known of all calls.

    Attributes:
        owned: The module's optimizers, with the names that each trains.
        objects: Its metric objects.
        facts: Of the run.
        manual: Whether it steps its optimizers itself.
        autocast: The dtype of autocast; None for none.
        keeps: Whether to report the metric objects that ``on_train_epoch_end`` will ask for.
        begins: Whether it defines ``on_train_epoch_start``.
    """

    owned: tuple[Owned, ...]
    objects: MetricObjects
    facts: Facts
    manual: bool
    autocast: torch.dtype | None
    keeps: bool
    begins: bool


class HandledCall:
    """A copy of the module with the state's tensors, and what it is given for this call.

    Args:
        plan: Of all calls.
        optimizers: As those of the plan, with the numbers of the stage.
        state: What the stage is called with.
        name: The stage's slot.
    """

    def __init__(
        self, plan: HandPlan, optimizers: tuple[Optimizer, ...], state: State, name: str
    ) -> None:
        self._plan, self._optimizers, self._state, self._slot = plan, optimizers, state, name
        self._own: dict[str, Any] = state[name]
        self.module: Any = state.skeleton.build(state.params, state.buffers)
        to_device(self.module, state.step.device)
        self._take_up()

    def run(self, batch: Any) -> tuple[State, dict[str, Any]]:
        """The new state, and metrics."""
        plan, state, module = self._plan, self._state, self.module
        position, rates = Position.of(state, plan.facts), self._reported()
        before, first = attributes_kept(module), settings_kept(module)
        if plan.begins and position.batch and int(self._own["quiet"]) != position.epoch:
            self._set_again(position.epoch)
        log = Log(self._plan.objects.reader(module))
        trainer = Standing(plan.facts, position, optimizers=self.optimizers)
        with attached(module, trainer, state.step.device, log=log.log, **self._methods()):
            if plan.begins and position.batch == 0:
                self._begin_epoch(position.epoch)
            settings = settings_kept(module, modes=False)  # as they are for this epoch
            batch = transferred(module, batch, state)
            log.batch = batch
            if self._hook("on_train_batch_start", batch, position.batch) == -1:
                raise RuntimeError(
                    f"{plan.facts.who}.on_train_batch_start returned -1, to leave out the rest of "
                    "the epoch. Data that ends earlier is fl.data.limit(data, n)."
                )
            result = self._trained(batch, position)
            loss = loss_in(result, plan.facts.who, plan.manual)
            self._hook("on_train_batch_end", result, batch, position.batch)
            if plan.manual and plan.facts.per_epoch and trainer.is_last_batch:
                lasting = Lasting(module, state, f"{plan.facts.who}.on_train_epoch_end")
                self._hook("on_train_epoch_end")
                lasting.check_settings(first)
        kept = self._plan.objects.updated(module) if plan.keeps else {}
        later = changed(settings, settings_kept(module, modes=False), first)
        if names := [*changed(before, attributes_kept(module)), *later]:
            state.skeleton.watching().tell(names)
        found = {**log.metrics, **{KEPT + path: m for path, m in kept.items()}}
        metrics: dict[str, Any] = tree_map(_detached, found)
        if loss is not None:
            size = batch_size_of(batch)
            metrics["loss"] = Mean(loss.detach().double() * size, size)
        return self._ended(metrics, rates)

    def _take_up(self) -> None:
        """Make optimizers and schedulers for the module; give it the gradients that are left."""
        own = self._own
        self._params = dict(self.module.named_parameters())
        counts = {
            int(i): HandScheduler(count, self._rates(int(i)))
            for i, count in own["schedulers"].items()
        }
        self.schedulers = counts if self._plan.manual else {}
        self.optimizers = [
            HandOptimizer(
                self._rule(i),
                {prefix: {n: self._params[n] for n in names} for prefix, names in owned.groups},
                own["memory"][str(i)],
                own["steps"][str(i)],
                self.module,
            )
            for i, owned in enumerate(self._plan.owned)
        ]
        for name, there in own["left"].items():
            if there:
                self._params[name].grad = own["grads"][name].to(self._params[name].dtype).clone()

    def _begin_epoch(self, epoch: int) -> None:
        """Call ``on_train_epoch_start``, and note whether anything is to be set at each batch."""
        before, written = int(self._own["quiet"]), Written(self.module)
        self._start(epoch)
        found = -1 if written.any() else epoch
        self._own = {**self._own, "quiet": torch.full_like(self._own["quiet"], found)}
        if epoch and before != epoch - 1:
            self._check_start(epoch)

    def _set_again(self, epoch: int) -> None:
        """Let the module have what ``on_train_epoch_start`` has set, but for tensors."""
        self._rehearse(epoch)
        tensors = {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}
        with torch.no_grad():
            for name, value in (*self._state.params.items(), *self._state.buffers.items()):
                tensors[name].copy_(value)
                tensors[name].grad = None
        self._take_up()

    def _check_start(self, epoch: int) -> None:
        """Refuse an ``on_train_epoch_start`` that relies on what it has set an epoch before."""
        other = HandledCall(self._plan, self._optimizers, self._state, self._slot)
        other._rehearse(epoch - 1)
        other._rehearse(epoch)
        if names := changed(settings_kept(self.module), settings_kept(other.module)):
            raise RuntimeError(
                f"{self._plan.facts.who}.on_train_epoch_start has set {', '.join(names[:4])}"
                f"{', ...' if names[4:] else ''} in epoch {epoch - 1}, and not so in epoch {epoch}."
                " Here what it sets lasts for one epoch. Set it each time, as a function of the "
                "epoch: self.net.requires_grad_(self.current_epoch >= 3)."
            )

    def _rehearse(self, epoch: int) -> None:
        """Call ``on_train_epoch_start`` for what it sets: nothing is logged."""
        position = Position(epoch, 0, int(self._state.step))
        trainer = Standing(self._plan.facts, position, optimizers=self.optimizers)
        device = self._state.step.device
        with attached(self.module, trainer, device, log=Log().log, **self._methods()):
            self._start(epoch)

    def _start(self, epoch: int) -> None:
        calls = torch.full_like(self._state.calls, epoch)  # so that it can be repeated
        with randomness(self._state.replace(calls=calls), "on_train_epoch_start"):
            self._hook("on_train_epoch_start")

    def _trained(self, batch: Any, position: Position) -> Any:
        """What ``training_step`` returns, after the update."""
        module, facts = self.module, self._plan.facts
        with self._casting():
            result = module.training_step(
                *arguments_for(module.training_step, batch, position.batch)
            )
        loss = loss_in(result, facts.who, self._plan.manual)
        if self._plan.manual or loss is None:
            return result
        (optimizer,) = self.optimizers
        self._hook("on_before_zero_grad", optimizer)
        self._hook("on_before_backward", loss)
        loss.backward()
        self._hook("on_after_backward")
        self._hook("on_before_optimizer_step", optimizer)
        if overrides(module, "configure_gradient_clipping"):
            module.configure_gradient_clipping(optimizer, facts.clip, facts.clip_by)
        elif facts.clip is not None:
            self._clip(optimizer)
        optimizer.step()
        return result

    def _ended(
        self, metrics: dict[str, Any], rates: dict[str, Any]
    ) -> tuple[State, dict[str, Any]]:
        state, own = self._state, self._own
        left = [grad for n in own["left"] if (grad := self._grad(n)) is not None]
        finite = all([o.finite for o in self.optimizers]) and all([_is_finite(g) for g in left])
        moved = any([o.steps is not own["steps"][str(i)] for i, o in enumerate(self.optimizers)])
        skips = not finite or not (self._plan.manual or moved)
        skipped = {"skipped": Sum(as_tensor(skips, state.step.device))}
        calls = state.calls + 1
        if not finite:
            empty = {name: metric.empty() for name, metric in metrics.items()}
            return state.replace(calls=calls), {**empty, **skipped, **rates}
        params = {name: self._params[name].detach() for name in state.params}
        buffers = dict(self.module.named_buffers())
        memory = {
            "scale": own["scale"],
            "memory": {str(i): o.memory for i, o in enumerate(self.optimizers)},
            "steps": {str(i): o.steps for i, o in enumerate(self.optimizers)},
            "schedulers": {**own["schedulers"], **self._counts()},
            "left": {n: torch.tensor(self._grad(n) is not None) for n in own["left"]},
            "grads": self._grads(own["grads"]),
            **(
                {"gathering_calls": own["gathering_calls"] + (not moved)}
                if self._plan.manual
                else {}
            ),
            **({"quiet": own["quiet"]} if self._plan.begins else {}),
        }
        return state.replace(
            step=state.step + 1 if moved else state.step,
            calls=calls,
            params=state.params.like(params),
            buffers=state.buffers.like({n: buffers[n].detach() for n in state.buffers}),
            slots={**state.slots, self._slot: memory},
        ), {**metrics, **skipped, **rates}

    def _counts(self) -> dict[str, Tensor]:
        return {str(i): scheduler.count for i, scheduler in self.schedulers.items()}

    def _grad(self, name: str) -> Tensor | None:
        return self._params[name].grad

    def _grads(self, before: Any) -> Any:
        """The gradients that are left for the next batch; zeros where there is none."""
        if not before:
            return before
        found = {n: self._grad(n) for n in before}
        return before.like(
            {n: torch.zeros_like(before[n]) if g is None else g.detach() for n, g in found.items()}
        )

    def _rule(self, i: int) -> Callable[[], Optimizer]:
        """Gives optimizer `i` with its hyperparameters as they are now."""

        def rule() -> Optimizer:
            counted = self.schedulers.get(i)
            step = int(self._state.step) if counted is None else int(counted.count)
            return self._resolved(i, step)

        return rule

    def _resolved(self, i: int, step: int) -> Optimizer:
        """Optimizer `i` with the numbers of a step, multiplied by what `fl.scale` has set."""
        prefix = prefix_of(i, len(self._optimizers))
        factors = {n: float(m) for n, m in self._own["scale"].items() if n.startswith(prefix)}
        other = {n.removeprefix(prefix): m for n, m in factors.items() if m != 1.0}
        return self._optimizers[i].resolve(step, other)

    def _reported(self) -> dict[str, Any]:
        """The hyperparameters that the call begins with."""
        return {
            prefix_of(i, len(self._optimizers)) + name: Last(as_tensor(v, self._state.step.device))
            for i in range(len(self._optimizers))
            for name, v in self._rule(i)().hyperparameters().items()
        }

    def _rates(self, i: int) -> Callable[[int], list[float]]:
        def rates(count: int) -> list[float]:
            values = self._resolved(i, count).hyperparameters()
            return [float(v) for name, v in values.items() if name.endswith("lr")]

        return rates

    def _methods(self) -> dict[str, Any]:
        """What takes the place of methods that ask a Trainer."""
        optimizers, schedulers = self.optimizers, list(self.schedulers.values())

        def one_or_all(found: list[Any]) -> Any:
            return found[0] if len(found) == 1 else found or None

        return {
            "optimizers": lambda use_pl_optimizer=True: one_or_all(optimizers),
            "lr_schedulers": lambda: one_or_all(schedulers),
            "manual_backward": lambda loss, *args, **keywords: loss.backward(*args, **keywords),
            "clip_gradients": self._clip,
        }

    def _clip(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        facts = self._plan.facts
        value = facts.clip if gradient_clip_val is None else gradient_clip_val
        clip_gradients(optimizer, value, gradient_clip_algorithm or facts.clip_by)

    def _hook(self, name: str, *arguments: Any) -> Any:
        return getattr(self.module, name)(*arguments) if overrides(self.module, name) else None

    def _casting(self) -> contextlib.AbstractContextManager[Any]:
        if self._plan.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._state.step.device.type, dtype=self._plan.autocast)


def _is_finite(grad: Tensor) -> bool:
    return bool(grad.isfinite().all())


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf
