"""A gradient transform that measures gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.optim.base import Memory, Step, Transform
from fnloop.optim.patterns import check_patterns, chosen
from fnloop.trees.nodes import static, tree
from fnloop.values.tensors import Tensors


@tree
class norms(Transform):
    """Report the Euclidean norm of the gradients that arrive here; they pass through unchanged.

    Before a clipping it reports what is clipped, after it what is left. A skipped step reports
    nothing. Gradients that the rest of the chain discards, as `freeze` does, count as zero.

    Args:
        groups: Labels, each with a pattern or several: a parameter's name, a module's name, or a
            glob. Their norms are reported as ``"norm.<label>"``; without groups, that of all
            gradients together as ``"norm"``.
        name: What the names of the metrics begin with.

    Raises:
        ValueError: At `init`, a pattern matches no parameter.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: 3 * model(batch).mean()
    >>> clipped = fl.optim.chain(
    ...     norms(name="before"), fl.optim.clip_by_norm(1.0), norms({"w": "weight"}), fl.optim.sgd()
    ... )
    >>> step = fl.pipe(loss, fl.grad, fl.update(clipped))
    >>> _, metrics = step(step.init(torch.nn.Linear(1, 1)), torch.zeros(2, 1))
    >>> float(metrics["before"]), float(metrics["norm.w"])
    (3.0, 0.0)
    """

    by_value = True
    mixes: ClassVar[bool] = True

    groups: tuple[tuple[str, tuple[str, ...]], ...] = static()
    name: str = "norm"

    def __init__(
        self, groups: Mapping[str, str | Iterable[str]] | None = None, name: str = "norm"
    ) -> None:
        found = [
            (label, (where,) if isinstance(where, str) else tuple(where))
            for label, where in (groups or {}).items()
        ]
        object.__setattr__(self, "groups", tuple(found))
        object.__setattr__(self, "name", name)

    def init_state(self, params: Tensors) -> dict[str, Any]:
        for _, where in self.groups:
            check_patterns("norms", where, params)
        labels = [label for label, _ in self.groups] or ["all"]
        return {
            label: torch.zeros((), dtype=torch.float64, device=params.device) for label in labels
        }

    def update(
        self, grads: Tensors, memory: Memory, params: Tensors, step: Step
    ) -> tuple[Tensors, Memory]:
        groups = self.groups or (("all", ("*",)),)
        parts = [(label, chosen(where, grads)) for label, where in groups]
        own = {
            label: grads.select(names).wide().norm().double()
            if names
            else torch.zeros_like(memory[self.name][label])
            for label, names in parts
        }
        return grads, {**memory, self.name: own}

    def measured(self, memory: Memory) -> dict[str, Tensor]:
        return {
            f"{self.name}.{label}" if self.groups else self.name: norm
            for label, norm in memory[self.name].items()
        }
