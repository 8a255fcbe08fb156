"""Gradients of a loss: by autograd's engine, and inside ``torch.func`` transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor
from torch._functorch import eager_transforms

from fnloop._torch.tracing import transformed

T = TypeVar("T")

_run_backward: Any = torch.autograd.Variable._execution_engine.run_backward  # pyright: ignore
_nested: Any = eager_transforms
_LAYOUT, _STRIDED = attrgetter("layout"), {torch.strided}
_IS_CONTIGUOUS: Any = Tensor.is_contiguous


class NoGradientError(Exception):
    """The loss depends on none of the leaves."""


class Tape:
    """What is recorded for one backward pass.

    Attributes:
        leaves: What is differentiated with respect to.
        kept: Whether what comes out may be differentiated in turn.
    """

    def __init__(self, leaves: list[Tensor], kept: bool, contiguous: bool = False) -> None:
        self.leaves = leaves
        self.kept = kept
        self._contiguous = contiguous

    def backward(self, loss: Tensor, seed: Tensor) -> list[Tensor | None]:
        """The gradients of the 0-d `loss` times the 0-d `seed`.

        None for a leaf that the loss does not depend on.

        Raises:
            NoGradientError: It depends on none.
        """
        if not loss.requires_grad:
            raise NoGradientError
        # What torch.autograd.grad does, without its checks, which cost a small step dearly:
        # tensors, their gradients, keep_graph, create_graph, inputs, allow_unreachable, ...
        found = _run_backward(
            (loss,), (seed,), self.kept, self.kept, tuple(self.leaves), True, accumulate_grad=False
        )
        if self._contiguous and _all_contiguous(found):
            return list(found)
        return [
            None if grad is None else _in_layout_of(leaf, grad)
            for leaf, grad in zip(self.leaves, found, strict=True)
        ]


class _InnerTape(Tape):
    """The same inside ``torch.func`` transforms, where the engine's short way is closed."""

    def backward(self, loss: Tensor, seed: Tensor) -> list[Tensor | None]:
        if not loss.requires_grad:
            raise NoGradientError
        return list(
            torch.autograd.grad(loss, self.leaves, seed, create_graph=True, allow_unused=True)
        )


def gradients(
    function: Callable[[Tape], T],
    inputs: Sequence[Tensor],
    asked: bool,
    contiguous: bool = False,
) -> T:
    """What `function` returns, which is given a tape whose leaves have the values of `inputs`.

    There are two engines, which agree. Autograd's is 1.4 to 2 times as fast; inside ``torch.func``
    transforms only one more level of them can be used.

    Args:
        function: Calls ``tape.backward`` before it returns; inside transforms, the leaves of what
            it returns are tensors.
        inputs: What is differentiated with respect to.
        asked: Whether autograd records something that the function is given, so that what comes out
            may be differentiated with respect to it.
        contiguous: Whether all inputs are known to be contiguous.

    Raises:
        NoGradientError: The loss does not depend on any leaf.
    """
    if transformed():
        with _nested.grad_increment_nesting() as level, torch.enable_grad():
            inner = [_nested._wrap_for_grad(t, level) for t in inputs]
            _nested._create_differentiable(inner, level)
            result: Any = function(_InnerTape(inner, True))
            unwrapped: Any = optree.tree_map(
                lambda t: _nested._unwrap_for_grad(t, level) if isinstance(t, Tensor) else t,
                result,
            )
            return unwrapped
    before = torch.is_grad_enabled()
    kept = before and asked
    # A view, so that a leaf of ours is differentiated: the loss may use the caller's own elsewhere.
    leaves = [
        t.view_as(t) if kept and t.requires_grad else t.detach().requires_grad_() for t in inputs
    ]
    tape = Tape(leaves, kept, contiguous)
    if before:
        return function(tape)
    torch.set_grad_enabled(True)
    try:
        return function(tape)
    finally:
        torch.set_grad_enabled(False)


def _all_contiguous(found: Sequence[Tensor | None]) -> bool:
    try:
        return set(map(_LAYOUT, found)) == _STRIDED and all(map(_IS_CONTIGUOUS, found))
    except AttributeError:  # there is a None
        return False


def _in_layout_of(leaf: Tensor, grad: Tensor) -> Tensor:
    # The engine gives an expanded, sparse or channels-last gradient as it is, and fused kernels
    # read memory as if it lay like the parameter's: they would be wrong without a word.
    if grad.layout is torch.strided and (
        (grad.is_contiguous() and leaf.is_contiguous()) or grad.stride() == leaf.stride()
    ):
        return grad
    return torch.zeros_like(leaf, requires_grad=False).copy_(grad.to_dense())


def require_grad(values: Iterable[Any]) -> bool:
    """Whether autograd records what is computed from these, as far as they are tensors."""
    if not torch.is_grad_enabled():
        return False
    return any([v.requires_grad for v in values if isinstance(v, Tensor)])
