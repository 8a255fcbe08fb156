"""Functions of the user as fields of a stage, such as the loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fnloop.stages.base import KINDS, Stage
from fnloop.trees.nodes import is_tree, tree
from fnloop.trees.show import short


@tree
class Function:
    """Wraps a plain function as a field of a stage. Equality is identity; ``repr`` is its name."""

    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __repr__(self) -> str:
        return short(self.call)


def as_function(value: Any, arguments: str) -> Any:
    """Return a tree unchanged, and wrap any other callable in `Function`.

    The fields of a tree stay leaves of the stage, so they can be swept and differentiated.

    Args:
        value: The function.
        arguments: Its expected signature, for the error message.

    Raises:
        TypeError: `value` is not callable.
    """
    if is_tree(value):
        return value
    if not callable(value):
        raise TypeError(f"Expected a function {arguments}, got {type(value).__name__}.")
    return Function(value)


def check_function(value: Any, who: str, arguments: str) -> None:
    """Refuse what is no function: also a class, a model or a stage, which are called otherwise.

    Raises:
        TypeError: It is one of these.
    """
    if not callable(value) or isinstance(value, (type, nn.Module, Stage)):
        raise TypeError(f"{who} takes a function {arguments}, got {short(value)}.")


def as_loss(value: Any, arguments: str) -> Any:
    """Like `as_function`, for what is called with a model and a batch.

    Raises:
        TypeError: It is a stage, compares predictions with targets as ``nn.MSELoss`` does, is a
            model, or does not take two or three arguments.
    """
    if isinstance(value, Stage):
        raise TypeError(
            f"Expected a function {arguments}, such as the loss; got {value.describe()}, "
            f"{KINDS[value.kind]}, which is called with a state."
        )
    kind = value if isinstance(value, type) else type(value)
    compares = kind.__module__ == "torch.nn.modules.loss"
    if compares or getattr(value, "__module__", None) == "torch.nn.functional":
        name = f"nn.{kind.__name__}()" if compares else f"F.{value.__name__}"
        raise TypeError(
            f"Expected a function {arguments}; {name} compares predictions with targets. Write "
            f"what makes them of a batch: def loss(model, batch): x, y = batch; return "
            f"{name}(model(x), y)."
        )
    if isinstance(value, type):
        raise TypeError(f"Expected a function {arguments}, got the class {value.__name__}.")
    if is_tree(value) or not callable(value) or takes(value, 2) or takes(value, 3):
        return as_function(value, arguments)
    if isinstance(value, nn.Module):
        what = f"{kind.__name__} is a model, which goes into step.init(model)"
    else:
        what = f"{short(value)} takes {inspect.signature(value)}"
    raise TypeError(f"Expected a function {arguments}; {what}.")


def takes(call: Callable[..., Any], count: int) -> bool:
    """Whether `count` positional arguments can be given; True if that is unknown."""
    try:
        inspect.signature(call.forward if isinstance(call, nn.Module) else call).bind(
            *[None] * count
        )
    except TypeError:
        return False
    except ValueError:  # a builtin, without a signature
        return True
    return True


def takes_state(function: Any) -> bool:
    """Whether a loss has the signature ``(model, batch, state)``, not ``(model, batch)``."""
    call = function
    while isinstance(call, Function):
        call = call.call
    if is_tree(call):
        return _takes_three(type(call).__call__, 4)  # including self
    try:
        return _takes_three(call)
    except TypeError:  # not hashable
        return _takes_three.__wrapped__(call)


@functools.lru_cache(maxsize=1024)
def _takes_three(call: Callable[..., Any], required_arguments: int = 3) -> bool:
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p
        for p in parameters
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return len(required) >= required_arguments


def in_place_of(loss: Any, call: Callable[..., Any]) -> Function:
    """A loss function that is called as `loss` is, with or without the state, and does `call`."""

    def two(model: Any, batch: Any) -> Any:
        return call(model, batch)

    def three(model: Any, batch: Any, state: Any) -> Any:
        return call(model, batch, state)

    standing = three if takes_state(loss) else two
    standing.__qualname__ = short(loss)
    return Function(standing)
