"""Gradients of a loss: by autograd's engine, and inside ``torch.func`` transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import optree
import torch
from torch import Tensor
from torch._functorch import eager_transforms

from fnloop._torch.tracing import transformed

T = TypeVar("T")
Backward: TypeAlias = Callable[[Tensor, Tensor], list["Tensor | None"]]

_run_backward: Any = torch.autograd.Variable._execution_engine.run_backward  # pyright: ignore
_nested: Any = eager_transforms


class NoGradientError(Exception):
    """The loss depends on none of the inputs."""


def gradients(
    function: Callable[[list[Tensor], Backward], T], inputs: Sequence[Tensor], through: bool
) -> T:
    """What `function` returns, which is given leaves with the values of `inputs`, and a backward.

    ``backward(loss, seed)`` returns the gradients of the 0-d `loss` times the 0-d `seed`; None for
    a leaf that the loss does not depend on. It must be called before `function` returns.

    There are two engines, which agree. Autograd's is 1.4 to 2 times as fast; inside ``torch.func``
    transforms only another level of them can be used.

    Args:
        function: ``(leaves, backward) -> result``; inside transforms the result's leaves are
            tensors.
        inputs: What is differentiated with respect to.
        through: Whether what comes out may be differentiated in turn, by autograd.

    Raises:
        NoGradientError: The loss does not depend on any leaf.
    """
    if transformed():
        with _nested.grad_increment_nesting() as level, torch.enable_grad():
            inner = [_nested._wrap_for_grad(t, level) for t in inputs]
            _nested._create_differentiable(inner, level)
            result = function(inner, lambda loss, seed: _inside(loss, seed, inner))
            return optree.tree_map(
                lambda t: _nested._unwrap_for_grad(t, level) if isinstance(t, Tensor) else t,
                result,
            )
    # A view, so that a leaf of ours is differentiated: the loss may use the caller's own elsewhere.
    leaves = [
        t.view_as(t) if through and t.requires_grad else t.detach().requires_grad_() for t in inputs
    ]
    before = torch.is_grad_enabled()
    if not before:
        torch.set_grad_enabled(True)
    try:
        return function(leaves, lambda loss, seed: _outside(loss, seed, leaves, through))
    finally:
        if not before:
            torch.set_grad_enabled(False)


def _inside(loss: Tensor, seed: Tensor, inner: list[Tensor]) -> list[Tensor | None]:
    if not loss.requires_grad:
        raise NoGradientError
    return list(torch.autograd.grad(loss, inner, seed, create_graph=True, allow_unused=True))


def _outside(
    loss: Tensor, seed: Tensor, leaves: list[Tensor], through: bool
) -> list[Tensor | None]:
    if not loss.requires_grad:
        raise NoGradientError
    # What torch.autograd.grad does, without its checks, which cost a small step dearly: tensors,
    # their gradients, keep_graph, create_graph, inputs, allow_unreachable, ...
    found = _run_backward(
        (loss,), (seed,), through, through, tuple(leaves), True, accumulate_grad=False
    )
    return [
        grad
        if grad is None
        or (grad.layout is torch.strided and grad.is_contiguous() and leaf.is_contiguous())
        else _in_layout_of(leaf, grad)
        for leaf, grad in zip(leaves, found, strict=True)
    ]


def _in_layout_of(leaf: Tensor, grad: Tensor) -> Tensor:
    # The engine gives an expanded, sparse or channels-last gradient as it is, and fused kernels
    # read memory as if it lay like the parameter's: they would be wrong without a word.
    if grad.layout is torch.strided and grad.stride() == leaf.stride():
        return grad
    return torch.zeros_like(leaf, requires_grad=False).copy_(grad.to_dense())


def has_others(loss: Tensor, leaves: Iterable[Tensor]) -> bool:
    """Whether a derivative of `loss` may be asked with respect to something besides `leaves`."""
    ours = {id(leaf) for leaf in leaves}
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in ours:
            return True
        waiting += [parent for parent, _ in node.next_functions]
    return False


def require_grad(values: Iterable[Any]) -> bool:
    """Whether autograd records what is computed from these, as far as they are tensors."""
    if not torch.is_grad_enabled():
        return False
    return any([v.requires_grad for v in values if isinstance(v, Tensor)])
