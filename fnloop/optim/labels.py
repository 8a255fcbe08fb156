"""Different optimizers for different parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Self, TypeAlias

from torch import Tensor

from fnloop.optim.base import (
    Makes,
    Memory,
    Number,
    Optimizer,
    Step,
    check_named,
    check_one_gradient,
    replaced,
)
from fnloop.optim.patterns import check_patterns, is_function, matches
from fnloop.optim.pieces import applied, updates_of
from fnloop.trees.nodes import static, tree
from fnloop.trees.show import short
from fnloop.values.choice import Flag
from fnloop.values.parameter_attributes import described
from fnloop.values.tensors import Tensors

Labels: TypeAlias = Callable[[str, Tensor], str] | tuple[tuple[str, str], ...]


@tree
class by_label(Optimizer):
    """Use one optimizer per label; each parameter has a label.

    Memory and hyperparameters are prefixed with the label: ``"head.adamw.lr"``.

    Args:
        optimizers: Optimizers by label.
        labels: A function ``(name, parameter) -> label``, or a dict from patterns to labels. A
            pattern is a parameter's name, a module's name, or a glob; the first match counts.

    Raises:
        TypeError: A value of `optimizers` is not an optimizer, or evaluates the loss itself.
        ValueError: Optimizers and gradient transforms are mixed; or, at `init`, a parameter has no
            label or an unknown one, or a pattern matches no parameter.

    >>> import torch
    >>> from fnloop.optim import adamw, freeze
    >>> optimizer = by_label({"head": adamw(), "body": freeze()}, {"head": "head", "*": "body"})
    >>> sorted(optimizer.init(Tensors({"body.w": torch.ones(1), "head.w": torch.ones(1)})))
    ['body.freeze', 'head.adamw']
    """

    by_value = True  # it asks its parts
    optimizers: dict[str, Optimizer]
    labels: Labels = static()

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        labels: Callable[[str, Tensor], str] | Mapping[str, str],
    ) -> None:
        for label, optimizer in optimizers.items():
            if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"by_label: {label!r} must be an optimizer; got {optimizer!r}.")
        if not isinstance(labels, Mapping) and not is_function(labels):
            raise TypeError(
                "by_label(labels=...) takes a dict from patterns to labels, or a function (name, "
                f"parameter) -> label; got {short(labels)}."
            )
        check_one_gradient("by_label", optimizers.values())
        kinds = {label: o.makes for label, o in optimizers.items() if o.makes != "zeros"}
        if len(set(kinds.values())) > 1:
            raise ValueError(
                f"by_label: some labels have optimizers, others only gradient transforms: {kinds}. "
                "What a transform makes must go through an optimizer: chain(clip_by_norm(1.0), "
                "sgd(0.1))."
            )
        object.__setattr__(self, "optimizers", dict(optimizers))
        pairs = tuple(labels.items()) if isinstance(labels, Mapping) else labels
        object.__setattr__(self, "labels", pairs)

    @property
    def makes(self) -> Makes:
        kinds: list[Makes] = [o.makes for o in self.optimizers.values() if o.makes != "zeros"]
        return kinds[0] if kinds else "zeros"

    @property
    def mixes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return any([o.mixes for o in self.optimizers.values()])

    def discards(self, params: Tensors) -> Collection[str]:
        parts = {
            label: o
            for label, o in self.optimizers.items()
            if o.makes == "zeros" or type(o).discards is not Optimizer.discards
        }
        if not parts:  # to group the parameters takes time
            return ()
        groups = self._groups(params)
        return {n for label, o in parts.items() for n in o.discards(params.select(groups[label]))}

    def names(self) -> tuple[str, ...]:
        return tuple(f"{label}.{n}" for label, o in self.optimizers.items() for n in o.names())

    def init(self, params: Tensors) -> Memory:
        check_named(params)
        if not callable(self.labels):
            check_patterns("by_label", [pattern for pattern, _ in self.labels], params, True)
        memory: Memory = {}
        for label, names in self._groups(params).items():
            inner = self.optimizers[label].init(params.select(names))
            memory.update({f"{label}.{key}": value for key, value in inner.items()})
        return memory

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        return self._each(
            grads, memory, params, lambda each, g, own, p: updates_of(each, g, own, p, step)
        )

    def apply(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step, finite: Flag
    ) -> tuple[Tensors, Memory]:
        return self._each(
            grads, memory, params, lambda each, g, own, p: applied(each, g, own, p, step, finite)
        )

    def hyperparameters(self) -> dict[str, Any]:
        parts = [(label, o.hyperparameters()) for label, o in self.optimizers.items()]
        return {f"{label}.{key}": value for label, part in parts for key, value in part.items()}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for label, optimizer in self.optimizers.items():
            own = {name: memory[f"{label}.{name}"] for name in optimizer.names()}
            found.update({f"{label}.{k}": v for k, v in optimizer.measured(own).items()})
        return found

    def resolve(self, step: Step, scale: Mapping[str, Number]) -> Self:
        return self._map(lambda optimizer, own: optimizer.resolve(step, own), scale)

    def with_values(self, values: Mapping[str, Any]) -> Self:
        return self._map(lambda optimizer, own: optimizer.with_values(own), values)

    def _map(
        self, change: Callable[[Optimizer, dict[str, Any]], Optimizer], named: Mapping[str, Any]
    ) -> Self:
        """Change each optimizer, which is given what has its label, without the label."""
        optimizers: dict[str, Optimizer] = {}
        for label, optimizer in self.optimizers.items():
            start = len(label) + 1
            own = {key[start:]: v for key, v in named.items() if key.startswith(label + ".")}
            optimizers[label] = change(optimizer, own)
        return replaced(self, optimizers=optimizers)

    def _each(
        self,
        grads: Tensors,
        memory: Memory,
        params: Tensors,
        run: Callable[[Optimizer, Tensors, Memory, Tensors], tuple[Tensors, Memory]],
    ) -> tuple[Tensors, Memory]:
        results, memory = params, dict(memory)
        for label, names in self._groups(params).items():
            if not names:  # none of its parameters has a gradient: keep its memory
                continue
            optimizer = self.optimizers[label]
            own = {name: memory[f"{label}.{name}"] for name in optimizer.names()}
            made, own = run(optimizer, grads.select(names), own, params.select(names))
            results = results.updated(made)
            memory.update({f"{label}.{key}": value for key, value in own.items()})
        return results, memory

    def _groups(self, params: Tensors) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {label: [] for label in self.optimizers}
        for name, p in described(params):
            label = self._label(name, p)
            if label not in groups:
                raise ValueError(
                    f"by_label: parameter {name!r} has label {label!r}; the labels with an "
                    f"optimizer are {', '.join(map(repr, groups))}. Give every parameter one of "
                    'them ({..., "*": "rest"} for all others), or add freeze() under that label.'
                )
            groups[label].append(name)
        return groups

    def _label(self, name: str, p: Tensor) -> str | None:
        if callable(self.labels):
            return self.labels(name, p)
        return next((label for pattern, label in self.labels if matches(name, pattern)), None)
