"""What is wrong with a reference among flags."""

from __future__ import annotations

from collections.abc import Sequence

from fnloop.cli.messages import did_you_mean


def to_nothing(place: str, path: str, flags: Sequence[str]) -> str:
    """The error that a reference has no value.

    Args:
        place: Where it stands, such as ``--rows``.
        path: What it refers to.
        flags: Those of the recipe.
    """
    name, _, rest = path.partition(".")
    if name not in flags:
        hint = did_you_mean(name, flags, lambda n: f"${{{path.replace(name, n, 1)}}}")
        return f"{place}: ${{{path}}} refers to nothing.{hint} The flags: {', '.join(flags)}."
    if not rest:
        return f"{place}: ${{{path}}} has no value: {name} is given nowhere, and has no default."
    return (
        f"{place}: ${{{path}}} refers to nothing: {name} has no plain value {rest!r}, given or by "
        "default."
    )


def in_a_circle(place: str, paths: Sequence[str]) -> str:
    """The error that a reference leads back to itself, through these paths."""
    chain = " -> ".join(paths)
    return f"{place}: ${{{paths[-1]}}} refers to itself: {chain}. One of them needs a value."
