"""Some steps whose intermediate results are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from fnloop._torch.ancestry import edge_of, held, inputs_of, origins
from fnloop._torch.tracing import transformed
from fnloop.stages.closure import closed_over
from fnloop.trees.nodes import tree_leaves, tree_map
from fnloop.trees.show import short
from fnloop.values.state import State


class Segment:
    """A few steps from a state on, as a function of all tensors that they depend on.

    Those are the tensors in step, state and batches, for which others can stand in, and the ones
    that require gradients and that the step finds outside (in closures), for which none can.

    Args:
        step, state, batches: As for `fl.unroll`.
        outside: What `outside_of` finds for the step.

    Attributes:
        inputs: All of them, those from outside last.
    """

    def __init__(
        self, step: Any, state: State, batches: Sequence[Any], outside: Sequence[Tensor]
    ) -> None:
        tree: Any = (step, state, tuple(batches))
        self._leaves, self._structure = optree.tree_flatten(tree)
        self._places = [i for i, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]
        self.inputs: list[Tensor] = [*[self._leaves[i] for i in self._places], *outside]
        self._outside = {edge_of(t): len(self._places) + i for i, t in enumerate(outside)}
        self._used = set[int]()  # numbers of the inputs from outside on which the results depend
        self._end: Any = None  # the structure of the last state
        self._unchanged: list[int | None] = []  # of each leaf of it, the input that it is

    def __call__(self) -> State:
        """The state after the steps; what is between is not kept."""
        recomputed: Any = _Recomputed.apply
        made = iter(recomputed(self, *self.inputs))
        return self._end.unflatten(
            [next(made) if i is None else self.inputs[i] for i in self._unchanged]
        )

    def first(self) -> list[Tensor]:
        """The new tensors of the last state, computed a step at a time.

        The same tensors require gradients as where the loop is recorded: a step may compute
        otherwise where none does.
        """
        inputs = self._standing_in([cut(t) for t in self.inputs])
        step, state, batches = self._build(inputs)
        for batch in batches:
            before = tree_leaves(state)
            state = step(state, batch)[0]
            self._note_outside([*inputs, *before], tree_leaves(state))
            # What is a leaf of autograd's was given, or requires no gradient.
            state = tree_map(lambda t: t if t.is_leaf else cut(t), state)
        leaves, self._end = optree.tree_flatten(state)
        numbers = {id(t): i for i, t in enumerate(inputs)}
        self._unchanged = [numbers.get(id(leaf)) for leaf in leaves]
        return self._new(leaves)

    def gradients(
        self, inputs: list[Tensor], wanted: Sequence[bool], given: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """Run the steps again, and go back through them.

        Args:
            inputs: As `inputs`, with whose history gradients are computed that are to be
                differentiated again.
            wanted: Of which inputs to return gradients.
            given: Gradients of what `first` returns.
        """
        twice = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = self._standing_in([_view(t) if twice else cut(t) for t in inputs])
            step, state, batches = self._build(inputs)
            for batch in batches:
                state, _ = step(state, batch)
        pairs = zip(self._new(tree_leaves(state)), given, strict=True)
        reached = [(t, g) for t, g in pairs if g is not None and t.requires_grad]
        own, found = len(self._places), list[Tensor | None]([None] * len(inputs))
        asked = [i for i, want in enumerate(wanted) if want and (i < own or i in self._used)]
        if reached and asked:
            outputs, seeds = zip(*reached, strict=True)
            gradients = torch.autograd.grad(
                outputs,
                [inputs[i] for i in asked],
                seeds,
                retain_graph=twice or bool(self._used),  # the graph outside is not ours to free
                create_graph=twice,
                allow_unused=True,
            )
            for i, gradient in zip(asked, gradients, strict=True):
                found[i] = gradient
        return found

    def _standing_in(self, tensors: list[Tensor]) -> list[Tensor]:
        return [*tensors[: len(self._places)], *self.inputs[len(self._places) :]]

    def _build(self, inputs: list[Tensor]) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, inputs, strict=False):
            leaves[place] = tensor
        return self._structure.unflatten(leaves)

    def _new(self, leaves: list[Tensor]) -> list[Tensor]:
        return [leaf for leaf, i in zip(leaves, self._unchanged, strict=True) if i is None]

    def _note_outside(self, inputs: list[Tensor], results: list[Tensor]) -> None:
        """Find out which tensors from outside the results depend on.

        Raises:
            ValueError: One is not found, or is computed from another.
        """
        own = {edge_of(t) for t in inputs if t.requires_grad} - self._outside.keys()
        edges = [edge_of(t) for t in results if t.requires_grad]
        met, leaves = origins(edges, own | self._outside.keys())
        for leaf in held(leaves):  # nobody can ask for gradients of others, which the step has made
            raise ValueError(_HIDDEN.format(tensor=short(leaf)))
        self._used |= {self._outside[edge] for edge in met - own}
        used = {edge for edge, i in self._outside.items() if i in self._used}
        for edge in used:
            for other in origins(inputs_of(edge), used)[0]:
                a, b = self.inputs[self._outside[edge]], self.inputs[self._outside[other]]
                raise ValueError(_DERIVED.format(a=short(a), b=short(b)))


def outside_of(step: Any) -> list[Tensor]:
    """The tensors that require gradients and that a step brings along, fields among them."""
    return [t for t in closed_over(step, modules=True) if t.requires_grad]


def cut(tensor: Tensor) -> Tensor:
    """The tensor without what it was computed from; it requires gradients if it did."""
    if transformed():  # where tensors do not say whether they do
        return tensor.detach()
    return tensor.detach().requires_grad_(tensor.requires_grad)


class _Recomputed(torch.autograd.Function):
    """A segment for autograd: the backward pass runs its steps again."""

    @staticmethod
    def forward(ctx: Any, segment: Segment, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.segment = segment
        ctx.save_for_backward(*inputs)  # which checks that nobody writes to them
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            made = segment.first()
        results = tuple([t.detach() for t in made])
        fixed = [r for r, t in zip(results, made, strict=True) if not t.requires_grad]
        ctx.mark_non_differentiable(*fixed)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        found = ctx.segment.gradients(list(ctx.saved_tensors), ctx.needs_input_grad[1:], grads)
        return (None, *found)


def _view(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor) if tensor.requires_grad else tensor


_FIX = (
    "Make the loss a tree (fl.tree) with such tensors as fields, give them with the batch, or "
    "leave recompute= out."
)

_HIDDEN = (
    "unroll(recompute=...) runs the steps again in the backward pass, and must know every tensor "
    "that requires gradients. The step uses {tensor}, which is in no field, closure, default, "
    f"attribute or global variable of it. {_FIX} If its gradient is not wanted, detach it."
)

_DERIVED = (
    "unroll(recompute=...) was given a step whose loss closes over {a}, and over {b} from which "
    "that is computed. The gradients of both could not be told apart. Let the loss compute the "
    f"first from the second. {_FIX}"
)
