"""Adapter for any ``torch.optim.Optimizer``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from fnloop._torch.autograd import require_grad
from fnloop.optim.base import Memory, Number, Optimizer, Step, replaced, scaled
from fnloop.optim.torch_state import differences, pack, unpack, zeros
from fnloop.schedules.base import at, is_schedule
from fnloop.trees.nodes import static, tree
from fnloop.values.choice import Flag
from fnloop.values.looking import look
from fnloop.values.tensors import Tensors


@tree
class from_torch(Optimizer):
    """Use any ``torch.optim.Optimizer`` class, also third-party ones.

    Slow: each step rebuilds the torch optimizer on copies of the parameters and of its state, so
    its inputs are never modified. It cannot be compiled, differentiated, run under
    ``torch.func`` or on an accelerator. Its memory is the torch optimizer's state and the
    entries of the parameter group that it changes. All parameters are in one group; for several,
    use `fl.optim.by_label`.

    Args:
        optimizer: The class, such as ``torch.optim.Rprop``.
        name: Key of its memory and prefix of its hyperparameters; default the lowercase class name.
        **keywords: Arguments of the class; a schedule may replace a float.

    Raises:
        TypeError: `optimizer` is not such a class, or needs a closure (as ``LBFGS``); a keyword is
            unknown; or, at `init`, its state contains something other than tensors, numbers, None,
            dicts and lists, or is kept in attributes.
        RuntimeError: It is compiled, or runs under ``torch.func``; or the structure of its state
            changes after the second step.

    >>> optimizer = from_torch(torch.optim.Rprop, lr=0.1)
    >>> params = Tensors({"w": torch.ones(2)})
    >>> updates, memory = optimizer.update(params, optimizer.init(params), params, step=0)
    >>> updates["w"]
    tensor([-0.1000, -0.1000])
    """

    optimizer: type[torch.optim.Optimizer]
    numbers: dict[str, Any]
    options: tuple[tuple[str, Any], ...] = static()
    name: str = "from_torch"

    def __init__(
        self, optimizer: type[torch.optim.Optimizer], name: str | None = None, **keywords: Any
    ) -> None:
        known = _parameters(optimizer)
        title = optimizer.__name__
        extra = any(p.kind is p.VAR_KEYWORD for p in known.values())
        unknown = [key for key in keywords if key not in known and not extra]
        if unknown:
            raise TypeError(
                f"from_torch: {title} has no {', '.join(unknown)}; it has {', '.join(known)}."
            )
        for key in self.reported:
            default = known[key].default if key in known else None
            if isinstance(default, (int, float)):
                keywords.setdefault(key, default)
        numbers = {
            key: float(value) if isinstance(value, int) else value
            for key, value in keywords.items()
            if key in self.reported or isinstance(value, (float, Tensor)) or is_schedule(value)
        }
        options = tuple((key, value) for key, value in keywords.items() if key not in numbers)
        object.__setattr__(self, "optimizer", optimizer)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "name", title.lower() if name is None else name)

    def init_state(self, params: Tensors) -> dict[str, Any]:
        # torch creates the state in the first step. Run two steps on copies, with nonzero
        # gradients, to see which entries of the parameter group change.
        if not (copies := _copies(params)):  # torch refuses an empty parameter list
            return {}
        torch_optimizer = self._build(copies, 0)
        before, attributes = _group(torch_optimizer), _attributes(torch_optimizer)
        with torch.random.fork_rng(devices=[]):
            for _ in range(2):
                _step(torch_optimizer, copies, [torch.full_like(p, 0.5) for p in copies])
        after = _group(torch_optimizer)
        if hidden := _moved(attributes, _attributes(torch_optimizer)):
            raise TypeError(
                f"from_torch: {self.optimizer.__name__} keeps state in its own attributes "
                f"({', '.join(hidden)}), not in optimizer.state."
            )
        arguments = _parameters(self.optimizer)
        moved = {*_moved(before, after), *(key for key in after if key not in arguments)}
        group = {key: v for key, v in after.items() if key in moved and key not in self.numbers}
        return {
            **zeros(self._state(torch_optimizer, params, copies)),
            "group": zeros(pack(group, "param_groups[0]")),
            "started": {name: torch.zeros((), dtype=torch.bool, device="cpu") for name in params},
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        new, memory = self._stepped(grads, memory, params, step, True)
        return new.sub(params.wide()), memory

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        finite = look(finite)
        if finite is False:
            return params, memory
        new, memory = self._stepped(grads, memory, params, step, finite)
        return new.cast(params), memory

    def hyperparameters(self) -> dict[str, Any]:
        return {name: self.numbers[key] for key, name in self._reported().items()}

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        fields = self._reported()
        numbers = {
            field: scaled(self.numbers[field], step, scale.get(name))
            for field, name in fields.items()
        }
        return replaced(self, numbers={**self.numbers, **numbers}, _shown=fields)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        named = self._reported().items()
        changes = {field: values[name] for field, name in named if name in values}
        return replaced(self, numbers={**self.numbers, **changes})

    def __repr__(self) -> str:
        keywords = {**self.numbers, **dict(self.options)}
        text = "".join(f", {key}={value!r}" for key, value in keywords.items())
        return f"from_torch({self.optimizer.__name__}{text})"

    def _reported(self) -> dict[str, str]:
        if "_shown" in self.__dict__:
            return self.__dict__["_shown"]
        shown = [k for k, v in self.numbers.items() if k in self.reported or is_schedule(v)]
        return {key: f"{self.name}.{key}" for key in shown}

    def _stepped(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        own, numbers = memory[self.name], {k: look(at(v, step)) for k, v in self.numbers.items()}
        started = {name: look(own["started"][name]) for name in params}
        self._check(params, grads, [finite, *started.values(), *numbers.values()])
        if not (copies := _copies(params)):
            return params, memory
        torch_optimizer = self._build(copies, step)
        state: Any = torch_optimizer.state
        for name, p in zip(params, copies, strict=True):
            if started[name]:
                state[p].update(unpack(own["state"][name]))
        if any(started.values()):
            state.update(unpack(own["shared"]))
            torch_optimizer.param_groups[0].update(unpack(own["group"]))
        before = _group(torch_optimizer)
        _step(torch_optimizer, copies, [g.detach().clone() for g in grads.wide().values()])
        after, kept = _group(torch_optimizer), unpack(own["group"])
        made = self._state(torch_optimizer, params, copies)
        new = {
            "state": {**own["state"], **made["state"]},
            "shared": made["shared"],
            "group": pack({key: after[key] for key in kept}, "param_groups[0]"),
            "started": {
                **own["started"],
                **{n: torch.ones((), dtype=torch.bool, device="cpu") for n in params},
            },
        }
        lost = [f"param_groups[0][{key!r}]" for key in _moved(before, after) if key not in kept]
        if wrong := lost + differences(own, new):
            raise RuntimeError(
                f"{self!r}: this optimizer changed the structure of its state after its first "
                f"steps, which from_torch does not support: {', '.join(wrong)}."
            )
        moved = {name: p.detach() for name, p in zip(params, copies, strict=True)}
        return params.wide().like(moved), {**memory, self.name: new}

    def _check(self, params: Tensors, grads: Tensors, values: list[Any]) -> None:
        """Raise where values cannot be read, or a derivative would be lost."""
        tensors = [value for value in values if isinstance(value, Tensor)]
        recorded = torch.is_grad_enabled() and not (params.plain and grads.plain)
        if recorded or require_grad(tensors):
            why = "differentiated"
        elif tensors:
            why = "compiled (fl.compile), nor run under torch.func, nor on an accelerator"
        else:
            return
        raise RuntimeError(
            f"from_torch({self.optimizer.__name__}) runs a torch.optim optimizer, which works in "
            f"place and on Python numbers: it cannot be {why}. Use one of fnloop's own "
            "optimizers there."
        )

    def _build(self, copies: list[Tensor], step: Step) -> torch.optim.Optimizer:
        numbers = {key: float(at(value, step)) for key, value in self.numbers.items()}
        return self.optimizer(copies, **numbers, **dict(self.options))

    def _state(
        self, torch_optimizer: torch.optim.Optimizer, params: Tensors, copies: list[Tensor]
    ) -> dict[str, Any]:
        state: Any = torch_optimizer.state
        named = zip(params, copies, strict=True)
        own = {name: pack(state.get(p, {}), f"state[{name!r}]") for name, p in named}
        shared = {key: value for key, value in state.items() if not isinstance(key, Tensor)}
        return {"state": own, "shared": pack(shared, "state")}


def _parameters(optimizer: Any) -> dict[str, inspect.Parameter]:
    """The arguments of the class after `params`, by name."""
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise TypeError(
            f"from_torch takes a class and its keywords, from_torch(torch.optim.SGD, lr=0.1); got "
            f"{optimizer!r}."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"from_torch: {optimizer.__name__} needs a closure to evaluate the loss several times "
            "per step; here an update is a function of one gradient. L-BFGS is fl.optim.lbfgs, and "
            "fl.optim.Optimizer has what others of the kind need: its method search."
        )
    return dict(list(inspect.signature(optimizer).parameters.items())[1:])


def _copies(params: Tensors) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in params.wide().values()]


def _step(optimizer: torch.optim.Optimizer, params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    optimizer.step()


def _group(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A copy of the numbers and tensors in the parameter group."""
    return _values(optimizer.param_groups[0])


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The numbers and tensors in its attributes, and the state size of optimizers inside it."""
    own: dict[str, Any] = vars(optimizer)
    inner = {key: value for key, value in own.items() if isinstance(value, torch.optim.Optimizer)}
    return {**_values(own), **{f"{key}.state": len(value.state) for key, value in inner.items()}}


def _values(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else value
        for key, value in mapping.items()
        if isinstance(value, (int, float, Tensor))
    }


def _moved(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The keys of entries that are new or have changed."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(*[torch.as_tensor(x, device="cpu") for x in (a, b)])

    return [k for k, value in after.items() if k not in before or not same(value, before[k])]
