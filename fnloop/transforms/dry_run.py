"""Run a step on tensors without values, and see what its modules do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any, NamedTuple

import optree
from torch import Tensor, nn

from fnloop._torch.conditions import Checks
from fnloop._torch.draws import Draws
from fnloop._torch.fakes import fake_mode, standing_in
from fnloop._torch.flops import CountFlops, in_backward
from fnloop._torch.graph import quiet
from fnloop._torch.recurrent import by_products
from fnloop._torch.tracing import recording
from fnloop._torch.transformable import transformable
from fnloop.transforms.recording import Recording
from fnloop.trees.named import by_name, restored
from fnloop.trees.nodes import tree_map
from fnloop.trees.show import short
from fnloop.values.host_random import GLOBAL, host_seeded
from fnloop.values.module_skeleton import ModuleSkeleton
from fnloop.values.questions import all_counts
from fnloop.values.state import State


class Flops(NamedTuple):
    """Floating-point operations of a step; a multiplication with an addition is two.

    Attributes:
        forward: Of the model's modules; of a model that has none, all outside of backward passes.
        backward: Of backward passes.
        rest: Of anything else: a loss that multiplies matrices, an optimizer that does.

    >>> Flops(forward=4, backward=8, rest=1).step
    13
    """

    forward: int
    backward: int
    rest: int

    @property
    def step(self) -> int:
        """All of the step."""
        return sum(self)


@dataclasses.dataclass
class Called:
    """What a module did.

    Attributes:
        calls: How often it was called, outside of backward passes.
        output: Dtypes and shapes of what it returned, the first time.
        flops: Operations in all of these calls.
    """

    calls: int = 0
    output: str = ""
    flops: int = 0


class DryRun(NamedTuple):
    """What is seen of a step.

    Attributes:
        called: What each module did, by its path.
        flops: Operations of the step.
    """

    called: dict[str, Called]
    flops: Flops


def dry_run(step: Any, state: State, batch: Any) -> DryRun:
    """Run a step on tensors without values, as `fl.compile` records it: nothing is computed.

    All parts of an `fl.sequence` are called, whether it is their turn or not.

    Args:
        step: A step that is not compiled.
        state: Its state, which does not change; nor do random numbers.
        batch: A batch.

    Raises:
        Exception: Whatever the step raises; what it does depends on values, or it fails.
    """
    mode, draws = fake_mode(), Draws(lambda place, make: make(), state.step.numel())
    about = _Freely(draws, all_counts(state))
    counted = CountFlops()

    def fake(leaf: Any) -> Any:
        return standing_in(leaf, state.step.device, mode) if isinstance(leaf, Tensor) else leaf

    given, own = tree_map(fake, state).within(all_due=True), tree_map(fake, step)
    x = restored(optree.tree_map(fake, by_name(batch)))
    called: dict[str, Called] = {}
    with (
        _following(state.skeleton, counted, about, called) as outermost,
        quiet(),
        mode,
        by_products(),
        counted,
        Checks(),
        about.of(given),
        transformable(),
        host_seeded(GLOBAL),
    ):
        own(given, x)
    forward = outermost.flops if called else counted.forward
    return DryRun(called, Flops(forward, counted.backward, counted.forward - forward))


class _Freely(Recording):
    """A recording of which no graph is made, so that any stage may draw at any time."""

    @contextlib.contextmanager
    def randomness(
        self, key: Tensor, calls: Tensor, position: tuple[int | str, ...]
    ) -> Generator[None]:
        with self._draws.block(position):
            yield


@contextlib.contextmanager
def _following(
    skeleton: Any, counted: CountFlops, about: Recording, called: dict[str, Called]
) -> Generator[Called]:
    """Note what the modules of the state's private copy do; yields the sum of outermost calls."""
    outermost = Called()
    if not isinstance(skeleton, ModuleSkeleton):
        yield outermost
        return
    before: list[int] = []

    def begins(module: nn.Module, args: Any) -> None:
        if recording() is about and not in_backward():
            before.append(counted.forward)

    def ends(name: str, output: Any) -> None:
        if recording() is not about or in_backward():
            return
        own = called.setdefault(name, Called(output=short(output)))
        spent = counted.forward - before.pop()
        own.calls, own.flops = own.calls + 1, own.flops + spent
        if not before:
            outermost.flops += spent

    with contextlib.ExitStack() as hooks:
        for name, module in skeleton.module.named_modules():
            hooks.callback(module.register_forward_pre_hook(begins).remove)
            end = _end(ends, name)
            hooks.callback(module.register_forward_hook(end, always_call=True).remove)
        hooks.callback(skeleton.watching().put_aside())  # it takes the hooks for the model's own
        yield outermost


def _end(ends: Any, name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        ends(name, output)

    return hook
