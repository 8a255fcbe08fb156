"""``swag`` and ``swag_sample``: a normal distribution of the weights, from those along the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fnloop.names.keywords import explained
from fnloop.stages.callback import Callback
from fnloop.trees.nodes import tree
from fnloop.values.counts import as_count
from fnloop.values.randomness import normal_like, randomness
from fnloop.values.stacked import ACTIVE, SLOT, by_member, members_of
from fnloop.values.state import State
from fnloop.values.tensors import Tensors


@tree
class swag(Callback):
    """SWAG: the mean and the covariance of the weights that training passes through.

    Maddox et al., 2019 (https://arxiv.org/abs/1902.02476, algorithm 1): the running mean of the
    trained parameters, their running variance, and their last `rank` deviations from the mean as it
    then was. `fl.schemes.swag_sample` draws from the normal distribution with that mean and the
    covariance ``(diagonal + deviations @ deviations.T / (rank - 1)) / 2`` (equation 1).

    A callback: ``fl.every(1, fl.schemes.swag(20), unit="epoch")`` takes the weights in after each
    epoch. It belongs to a second `fl.fit`, which goes on where the first has settled, in the paper
    at a high constant learning rate. The memory, ``state["swag"]``, is `rank` + 2 times that of the
    parameters. Of a population each member has its own.

    Args:
        rank: Deviations that are kept, at least 2.
        name: Name of the slot.

    Raises:
        TypeError: `rank` is not a whole number.
        ValueError: `rank` is below 2.

    >>> import fnloop as fl
    >>> collect = swag(rank=2)
    >>> state = fl.grad(lambda model, x: model(x).mean()).init(torch.nn.Linear(1, 1, bias=False))
    >>> state = collect.init(state, {})
    >>> for value in (1.0, 2.0, 6.0):
    ...     state = state.replace(params={"weight": torch.tensor([[value]])})
    ...     state, _ = collect(state, {})
    >>> float(state["swag"]["mean"]["weight"]), f"{float(state['swag']['variance']['weight']):.3f}"
    (3.0, '4.667')
    """

    label: ClassVar[str] = "swag"
    reads: ClassVar[bool] = False
    rank: int = 20
    name: str = "swag"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", as_count(self.rank, "swag(rank)", 2))
        super().__post_init__()

    def init_state(self, state: State, metrics: Mapping[str, Any]) -> dict[str, Any]:
        params = state.params.select(state.skeleton.trainable)
        return {
            "count": torch.zeros_like(state.step),
            "mean": params.zeros(),
            "variance": params.zeros(),
            "deviations": {str(i): params.zeros() for i in range(self.rank)},
        }

    def __call__(self, state: State, x: Mapping[str, Any]) -> tuple[State, Mapping[str, Any]]:
        if members_of(state) is None:
            return self._with_these(state), x
        trained = iter(state[SLOT][ACTIVE].tolist())
        return by_member(lambda own: self._with_these(own) if next(trained) else own, state), x

    def _with_these(self, state: State) -> State:
        memory = state[self.name]
        params, old = state.params.select(memory["mean"]).wide(), memory["mean"]
        n = int(memory["count"]) + 1
        mean = old.lerp(params, 1 / n)
        # Not the mean of the squares less that of the mean, where all digits cancel.
        product = params.sub(old).mul(params.sub(mean))
        deviations = {**memory["deviations"], str((n - 1) % self.rank): params.sub(mean)}
        new = {
            "count": memory["count"] + 1,
            "mean": mean,
            "variance": memory["variance"].lerp(product, 1 / n),
            "deviations": deviations,
        }
        return state.put(self.name, new)


@explained
def swag_sample(state: State, seed: int = 0, scale: float = 1.0, name: str = "swag") -> State:
    """The state with weights drawn from what `fl.schemes.swag` has found.

    Maddox et al., 2019, equation 1: ``mean + (diagonal**0.5 * normal + deviations @ normal /
    (rank - 1)**0.5) / 2**0.5``. It is a state as any other: for `fl.evaluate`, `fl.predict`,
    `fl.to_module`. What the samples say together is the mean of their predictions. Where the model
    has BatchNorm, each needs running statistics of its own: ``fl.refresh_batchnorm(loss, sample,
    train_data)``.

    Args:
        state: A state in whose run `fl.schemes.swag` was a callback; a population gives a sample
            for each member.
        seed: Which sample: with the state's key and calls it decides what is drawn.
        scale: Multiplies the deviations from the mean: 0 gives the mean, which is SWA's solution.
        name: Of swag's slot.

    Raises:
        ValueError: The state has no such slot, or weights were taken in fewer than two times.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> state, data = step.init(torch.nn.Linear(2, 1)), [torch.ones(4, 2)] * 5
    >>> state, _ = fl.fit(step, state, data, epochs=1, callbacks=[fl.schemes.swag(rank=3)])
    >>> a, b, mean = (swag_sample(state, i, scale) for i, scale in ((0, 1), (1, 1), (0, 0)))
    >>> fl.tree_equal(a.params, b.params), fl.tree_equal(mean.params, state["swag"]["mean"])
    (False, True)
    """
    if name not in state.slots:
        raise ValueError(
            f"swag_sample finds no slot {name!r} in the state; it has: "
            f"{', '.join(sorted(state.slots)) or 'none'}. The usual cause is a run without its "
            'callback: callbacks=[fl.every(1, fl.schemes.swag(20), unit="epoch")].'
        )
    if members_of(state) is not None:
        return by_member(lambda own: swag_sample(own, seed, scale, name), state)
    memory = state[name]
    columns = min(int(memory["count"]), len(memory["deviations"]))
    if columns < 2:
        raise ValueError(
            f"swag_sample needs weights of at least two times, and swag has taken in {columns}. "
            "Train on, or let it come more often: fl.every(100, fl.schemes.swag(20))."
        )
    mean: Tensors = memory["mean"]
    with randomness(state, f"{name}.sample.{seed}"):
        drawn = memory["variance"].sqrt().mul(mean.map_named(normal_like))
        for i, factor in enumerate(torch.randn(columns).tolist()):
            column: Tensors = memory["deviations"][str(i)]
            drawn = drawn.add(column.scale(factor / (columns - 1) ** 0.5))
    params = mean.add(drawn.scale(scale / 2**0.5)).cast(state.params.select(mean))
    return state.replace(params=state.params.updated(params))
