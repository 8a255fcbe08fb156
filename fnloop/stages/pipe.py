"""``pipe``: combine functions and stages, with types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch

from fnloop.optim.base import Optimizer
from fnloop.stages.base import Stage
from fnloop.trees.show import short

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
G = TypeVar("G")
H = TypeVar("H")


@overload
def pipe(value: A, /) -> A: ...
@overload
def pipe(value: A, f: Callable[[A], B], /) -> B: ...
@overload
def pipe(value: A, f: Callable[[A], B], g: Callable[[B], C], /) -> C: ...
@overload
def pipe(value: A, f: Callable[[A], B], g: Callable[[B], C], h: Callable[[C], D], /) -> D: ...
@overload
def pipe(
    value: A, f: Callable[[A], B], g: Callable[[B], C], h: Callable[[C], D], i: Callable[[D], E], /
) -> E: ...
@overload
def pipe(
    value: A,
    f: Callable[[A], B],
    g: Callable[[B], C],
    h: Callable[[C], D],
    i: Callable[[D], E],
    j: Callable[[E], F],
    /,
) -> F: ...
@overload
def pipe(
    value: A,
    f: Callable[[A], B],
    g: Callable[[B], C],
    h: Callable[[C], D],
    i: Callable[[D], E],
    j: Callable[[E], F],
    k: Callable[[F], G],
    /,
) -> G: ...
@overload
def pipe(
    value: A,
    f: Callable[[A], B],
    g: Callable[[B], C],
    h: Callable[[C], D],
    i: Callable[[D], E],
    j: Callable[[E], F],
    k: Callable[[F], G],
    m: Callable[[G], H],
    /,
) -> H: ...
@overload
def pipe(value: Any, /, *functions: Callable[[Any], Any]) -> Any: ...
def pipe(value: Any, /, *functions: Callable[[Any], Any]) -> Any:
    """Apply `functions` to `value`, left to right. The first value of a pipeline is a loss.

    Raises:
        TypeError: One of `functions` is not callable, is an optimizer, or was not given its own
            arguments (``fl.update`` in place of ``fl.update(optimizer)``).

    >>> pipe(3, lambda x: x + 1, str)
    '4'
    """
    for function in functions:
        _check_function(function)
        if isinstance(value, Stage):
            _check_takes_stage(function, value)
            _check_is_finished(function)
        value = function(value)
    return value


_EXAMPLES = {
    "update": "fl.update(fl.optim.adamw(1e-3))",
    "accumulate": "fl.accumulate(4)",
    "amp": 'fl.amp("bf16")',
    "ema": "fl.ema(0.999)",
}


def _check_function(function: Any) -> None:
    kind = function if isinstance(function, type) else type(function)
    if issubclass(kind, torch.optim.Optimizer):
        raise TypeError(
            f"torch.optim.{kind.__name__} is an optimizer, not a stage. Wrap it: "
            f"fl.update(fl.optim.from_torch(torch.optim.{kind.__name__}, lr=1e-3)); it is given "
            "the parameters by step.init(model)."
        )
    if isinstance(function, (list, tuple)):
        raise TypeError(
            f"pipe takes its functions one by one, not as a {kind.__name__}: fl.pipe(*functions)."
        )
    if isinstance(function, Optimizer):
        call = f"fl.optim.chain({short(function)}, fl.optim.adamw(1e-3))"
        where = call if function.makes == "gradients" else short(function)
        raise TypeError(
            f"{short(function)} is an optimizer or a transform of gradients, not a stage; it goes "
            f"into the stage that applies it: fl.update({where})."
        )
    if not callable(function):
        raise TypeError(
            f"pipe applies functions to its first value; {short(function)} is not a function."
        )


def _check_is_finished(function: Any) -> None:
    """Refuse what makes a stage's function, which would take the stage before it as its argument.

    It says so itself: it returns a ``Callable``.
    """
    makes = inspect.get_annotations(function).get("return") if inspect.isfunction(function) else ""
    if str(makes).startswith(("Callable[", "Policy")):
        name = function.__name__
        example = f", such as {_EXAMPLES[name]}" if name in _EXAMPLES else ""
        raise TypeError(f"{name} in this pipe has no arguments: write {name}(...){example}.")


def _check_takes_stage(function: Any, before: Stage) -> None:
    """Refuse a function of a state, where a pipe gives the stage before it."""
    if isinstance(function, Stage):
        what = f"{function.describe()} is a stage by itself, and wraps no other"
    else:
        try:
            inspect.signature(function).bind(before)
            return
        except ValueError:  # a builtin, without a signature
            return
        except TypeError:
            what = f"{short(function)} takes {inspect.signature(function)}"
    raise TypeError(
        f"{what}, but a pipe gives each function what it has made so far, here "
        f"{before.describe()}. What changes gradients or steps is a class that wraps "
        "a stage: @fl.tree class "
        f"Mine(fl.base.{'GradStage' if before.kind == 'grad' else 'StepStage'}), with wraps = "
        f'"{before.kind}", a field inner, and __call__(self, state, batch) that calls '
        "self.inner(state, batch). See the how-to page Write a stage."
    )
