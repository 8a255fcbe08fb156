"""States of many runs as one: each leaf but the cursor has a leading dimension for the members."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from fnloop.names.keywords import explained
from fnloop.trees.nodes import tree_map
from fnloop.trees.show import short
from fnloop.values.state import State

SLOT, ACTIVE = "population", "active"
"""The slot of a population, and in it bool[n]: which members are still trained."""


def stack(states: Iterable[State]) -> State:
    """A population of the states of single runs.

    Each leaf gets a leading dimension, but for the cursor: members read the same batches.

    Args:
        states: Of one step, with equal structure and shapes. The cursor of the first is kept.

    Raises:
        ValueError: There is none, or they differ in structure or in the shape of a leaf.

    >>> import fnloop as fl
    >>> step = fl.pipe(lambda m, b: m(b).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    >>> states = stack([step.init(lambda: torch.nn.Linear(2, 1), seed) for seed in range(3)])
    >>> states.params["weight"].shape, states.step
    (torch.Size([3, 1, 2]), tensor([0, 0, 0]))
    """
    members = list(states)
    if not members:
        raise ValueError("A population has at least one member.")
    without = [each.replace(cursor=()) for each in members]
    try:
        stacked = tree_map(lambda *leaves: torch.stack(leaves), *without)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "These states are not of one step, so they cannot be stacked: they differ in "
            f"structure, or a leaf in shape. fl.tree_diff(a, b) shows where. ({error})"
        ) from error
    return stacked.replace(cursor=members[0].cursor)


@explained
def member(population: State, i: int) -> State:
    """The state of member `i`: an ordinary state, to be evaluated, exported, saved or trained on.

    Memory of callbacks that is not kept by member is that of all.

    Args:
        population: From ``step.init`` of an `fl.ensemble` or `fl.sweep`.
        i: From 0; negative from the end.

    Raises:
        IndexError: There is no such member.
        TypeError: `i` is not a whole number.
        ValueError: The state is not a population.
    """
    n = members_of(population)
    if n is None:
        raise ValueError(
            "This is the state of a single run, not of a population: its step is "
            f"{short(population.step)}, where a population has one for each member."
        )
    i = as_member(i, n)

    def own(leaf: torch.Tensor) -> torch.Tensor:
        return (leaf[i] if is_by_member(leaf, n) else leaf).clone()

    return without_mark(_take(population, own))


def members_of(state: State) -> int | None:
    """How many members the state of a population has; None for the state of a single run."""
    return state.step.shape[0] if state.step.ndim else None


def is_by_member(leaf: torch.Tensor, n: int) -> bool:
    """Whether a leaf, which is not the cursor, has a part for each of `n` members."""
    return leaf.shape[:1] == (n,)


def as_member(i: Any, n: int) -> int:
    """The number of a member of `n`, from 0.

    Args:
        i: Any whole number, NumPy's and torch's too; negative from the end.
        n: How many members there are.

    Raises:
        IndexError: There is no such member.
        TypeError: `i` is not a whole number.

    >>> as_member(-1, 3)
    2
    """
    try:
        number = operator.index(i)
    except TypeError:
        raise TypeError(
            f"A member is named by its number, from 0 to {n - 1}, got {short(i)}."
        ) from None
    if not -n <= number < n:
        raise IndexError(f"There is no member {number}: there are {n}, from 0 to {n - 1}.")
    return number % n


def check_single(state: State, who: str) -> None:
    """Refuse the state of a population where that of one run is expected.

    Raises:
        ValueError: It is one; the message says how to train all members, or one.
    """
    n = members_of(state)
    if n is not None:
        raise ValueError(
            f"{who} takes the state of a single run; this is that of a population of {n} members. "
            "The step that trains all of them is the one that has made the state: "
            f"many = fl.ensemble(step, {n}) or fl.sweep(step, {{...}}). One of them by itself: "
            "fl.member(state, i)."
        )


def frozen(population: State, which: torch.Tensor) -> State:
    """The population with some members frozen: steps leave them as they are, to the bit.

    Args:
        population: A state with `SLOT`.
        which: bool[n]; members that are frozen already stay so.
    """
    own = population[SLOT]
    return population.put(SLOT, {**own, ACTIVE: own[ACTIVE] & ~which})


def exchanged(population: State, sources: torch.Tensor) -> State:
    """The population in which each member has the state of the member that it is told to take.

    Each keeps its own key and count of calls, which its random numbers follow from, and whether it
    is frozen. Memory that is not kept by member (a counter of `fl.every`) stays, too.

    Args:
        population: A state with `SLOT`.
        sources: int64[n]: whose state each takes; its own number for its own.
    """
    n = len(population.step)

    def take(leaf: torch.Tensor) -> torch.Tensor:
        return leaf[sources.to(leaf.device)] if is_by_member(leaf, n) else leaf

    taken = tree_map(take, population.replace(cursor=(), key=(), calls=()))
    own = {"cursor": population.cursor, "key": population.key, "calls": population.calls}
    return taken.replace(**own).put(SLOT, population[SLOT])


def chosen(population: State, which: Sequence[int]) -> State:
    """The population of some members, in this order.

    Args:
        population: A state with `SLOT`, of whose memory every leaf is kept by member.
        which: Their numbers.
    """
    return _take(population, lambda leaf: leaf[torch.tensor(which, device=leaf.device)])


def without_mark(state: State) -> State:
    """The state without `SLOT`."""
    return state.replace(slots={name: m for name, m in state.slots.items() if name != SLOT})


def _take(population: State, part: Any) -> State:
    rest = tree_map(part, population.replace(cursor=()))
    return rest.replace(cursor=population.cursor)


def each_member(state: State) -> list[State]:
    """The states of the members; of a single run, its state."""
    n = members_of(state)
    return [state] if n is None else [member(state, i) for i in range(n)]


def by_member(function: Callable[[State], State], population: State) -> State:
    """The population of what `function` makes of each member's state."""
    return stack(map(function, each_member(population))).put(SLOT, population[SLOT])


def data_key(state: State) -> int:
    """The key that the order of the data follows: of a population, that of its first member."""
    return int(state.key.reshape(-1)[0])


def side_by_side(values: Sequence[Any], state: State) -> Any:
    """What each member has given, with a leading dimension for the members; of one run, its own.

    Args:
        values: Pytrees of tensors and numbers, of one structure: an item for each of
            `each_member`.
        state: Of the population.
    """
    if members_of(state) is None:
        return values[0]
    return abreast(values)


def abreast(values: Sequence[Any]) -> Any:
    """Pytrees of tensors and numbers as one, with a leading dimension; they have one structure."""
    return tree_map(_stacked, *values)


def batches_of(x: Any, n: int) -> list[Any]:
    """The batches of `n` members: the items of a tuple or list, or the values of a dict.

    Raises:
        ValueError: It is none of these, has another number, or one of them is None.
    """
    items = list(x.values()) if isinstance(x, Mapping) else x
    if not isinstance(items, (tuple, list)) or len(items) != n or any(b is None for b in items):
        raise ValueError(
            f'With batches="own" a batch is a tuple, list or dict with one for each of {n} members;'
            f" got {short(x)}. fl.data.together(*parts) gives a tuple with a batch of each part: "
            "fl.data.together(*[fl.Batches(data, 32, seed=i) for i in range(n)])."
        )
    return list(items)


def stacked_batches(batches: Sequence[Any]) -> Any:
    """Batches as one with a leading dimension for the members.

    Raises:
        ValueError: They differ in structure or shapes.
    """
    try:
        return abreast(batches)
    except (RuntimeError, ValueError, TypeError) as error:
        shapes = ", ".join(dict.fromkeys(map(short, batches)))
        raise ValueError(
            f"The batches of members differ in structure or shapes, so they cannot be vmapped: "
            f"{shapes}. Usual cause: data of different sizes, whose last batch is shorter; "
            'drop_last=True leaves it out. mode="loop" takes any.'
        ) from error


def _stacked(*leaves: Any) -> Any:
    return torch.stack([torch.as_tensor(leaf) for leaf in leaves])
