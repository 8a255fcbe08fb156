"""``epsilon``: how private a run of DP-SGD is."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from fnloop.names.keywords import explained
from fnloop.values.counts import as_count


@explained
def epsilon(noise: float, share: float, steps: int, delta: float, accountant: str = "prv") -> float:
    """The epsilon of a run of `fl.schemes.dp_sgd`: it is (epsilon, `delta`)-differentially private.

    Whoever sees the parameters after each step can tell whether an example was among the data by
    no more than that: of any outcome the probability differs by a factor of at most
    ``exp(epsilon)``, but for `delta`. Computed by an accountant of Opacus (``pip install
    'fnloop[privacy]'``): it is an upper bound, by numerical composition of privacy loss (Gopi et
    al., 2021, https://arxiv.org/abs/2106.02848), or by Renyi divergences (Mironov et al., 2019,
    https://arxiv.org/abs/1908.10530), which are quicker and less tight.

    Both assume that each batch is drawn by itself, every example with the probability `share`.
    `fl.Batches` shuffles epochs, and what is published for it is mostly computed so, too; strictly
    it is an approximation. Other runs on the same data, such as those that chose the learning rate,
    are not in it.

    Args:
        noise: That of `dp_sgd`, in units of `clip`.
        share: The batch size over the number of examples: ``256 / 60_000``.
        steps: Number of steps; ``int(state.step)`` after a run.
        delta: Such as ``1e-5``; less than one over the number of examples.
        accountant: ``"prv"`` (within 0.01) or ``"rdp"``.

    Returns:
        Infinite without noise.

    Raises:
        ImportError: Opacus is not installed.
        TypeError: `steps` is not a whole number.
        ValueError: A number is out of its range, or there is no such accountant.

    >>> f"{epsilon(noise=1.1, share=256 / 60_000, steps=60 * 60_000 // 256, delta=1e-5):.1f}"
    '2.4'
    """
    steps = as_count(steps, "epsilon(steps=)")
    for name, value, fits, what in (
        ("noise", noise, _is(noise) and noise >= 0, "a number of at least 0"),
        ("share", share, _is(share) and 0 < share <= 1, "a number up to 1: batch size / examples"),
        ("delta", delta, _is(delta) and 0 < delta < 1, "a number between 0 and 1, such as 1e-5"),
        ("accountant", accountant, accountant in ("prv", "rdp"), '"prv" or "rdp"'),
    ):
        if not fits:
            raise ValueError(f"epsilon({name}=) takes {what}; got {value!r}.")
    if not steps:
        return 0.0
    if not noise:
        return float("inf")
    counting = _accountants()[accountant]()
    counting.history = [(float(noise), float(share), steps)]
    with np.errstate(divide="ignore"):  # for whole batches it takes the logarithm of zero
        return float(counting.get_epsilon(delta))


def _is(value: Any) -> bool:
    return isinstance(value, Real)


def _accountants() -> dict[str, Any]:
    try:
        from opacus.accountants import PRVAccountant, RDPAccountant
    except ImportError as error:
        raise ImportError(
            "fl.schemes.epsilon counts by an accountant of Opacus, which is not installed: pip "
            "install 'fnloop[privacy]'. dp_sgd itself does not need it."
        ) from error
    return {"prv": PRVAccountant, "rdp": RDPAccountant}
