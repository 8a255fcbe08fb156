"""``unroll``: many steps as one differentiable function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fnloop._torch.tracing import casting, opaque
from fnloop.names.keywords import explained
from fnloop.stages.step_given import check_is_step
from fnloop.transforms.segment import Segment, cut, outside_of
from fnloop.trees.nodes import tree_map
from fnloop.trees.show import short
from fnloop.values.counts import as_count
from fnloop.values.state import State


@explained
def unroll(
    step: Any,
    state: State,
    batches: Iterable[Any],
    recompute: int | None = None,
    truncate: int | None = None,
) -> State:
    """The state after a step for each batch: a differentiable function of all that it is given.

    That is the initial state, hyperparameters that are tensors, the batches, and what the loss
    closes over. The values are those of a loop over the step, to the bit. `State.apply` computes an
    outer loss from the result. Forward mode (``torch.func.jvp``) needs the memory of one step, and
    reverse mode that of all steps, or less:

    Args:
        step: A training step that is not compiled.
        state: The state to begin with. Its cursor stays where it is.
        batches: A batch for each step.
        recompute: For ``torch.autograd``: keep each so-many-th state only, and run the steps in
            between again in the backward pass. The root of the number of steps takes the least
            memory. Gradients are the same, derivatives of derivatives too.
        truncate: Derivatives go back so many steps, the last ones, at most; what was before is
            taken as given (Shaban et al., 2019).

    Raises:
        TypeError: `state` is no state, or `batches` is a single batch.
        ValueError: `step` is compiled; or with `recompute`, the loss uses a tensor that requires
            gradients in a way that cannot be seen.
        RuntimeError: `recompute` is used under ``torch.func``, whose transforms keep what all steps
            compute, or inside ``torch.autocast``.

    >>> import fnloop as fl
    >>> loss = lambda model, batch: (model(batch) - 1).square().mean()
    >>> state = fl.grad(loss).init(torch.nn.Linear(2, 1), seed=0)
    >>> batches = [torch.ones(3, 2)] * 4
    >>> def after(rate):
    ...     step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(rate)))
    ...     trained = fl.unroll(step, step.init(state), batches)
    ...     return trained.apply(lambda model: loss(model, batches[0]))
    >>> bool(torch.func.grad(after)(torch.tensor(0.01)) < 0)  # a larger one would be better
    True
    """
    check_is_step(step, "unroll")
    if isinstance(batches, (Tensor, Mapping)):
        raise TypeError(
            f"unroll takes a batch for each step, such as a list of them; got {short(batches)}, "
            "which is one batch. For one step: [batch]."
        )
    if getattr(step, "outermost", False):
        raise ValueError(
            "unroll was given a compiled step, through which nothing can be differentiated. Give "
            "it the step that is not compiled: fl.unroll(step.uncompiled, state, batches)."
        )
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise TypeError(f"unroll(batches=...) takes a list of batches, got {short(batches)}.")
    given = list(batches)
    if truncate is not None:
        far = max(0, len(given) - as_count(truncate, "unroll(truncate=...)", 1))
        for batch in given[:far]:
            state = tree_map(cut, step(state, batch)[0])
        given = given[far:]
    segment = len(given) or 1
    if recompute is not None:
        segment = as_count(recompute, "unroll(recompute=...)", 1)
        if opaque():
            raise RuntimeError(_UNDER_FUNC)
        if casting():
            raise RuntimeError(_UNDER_AUTOCAST)
    # The backward pass begins with the last segment, so that one is kept.
    last = (len(given) - 1) // segment * segment if torch.is_grad_enabled() else 0
    outside = outside_of(step) if last else []
    for i in range(0, last, segment):
        state = Segment(step, state, given[i : i + segment], outside)()
    for batch in given[last:]:
        state, _ = step(state, batch)
    return state


_UNDER_FUNC = (
    "unroll(recompute=...) does not work inside torch.func transforms and fl.compile, which keep "
    "what all steps compute. Use torch.autograd: rate.requires_grad_(), then "
    "torch.autograd.grad(outer(rate), rate). Or leave recompute= out; torch.func.jvp needs the "
    "memory of one step without it."
)

_UNDER_AUTOCAST = (
    "unroll(recompute=...) was called inside torch.autocast, and the backward pass would run the "
    "steps again outside of it. Leave that block, and let the step cast, with "
    'fl.amp("bf16") in its pipe.'
)
