"""Epsilon against published values, another library's, and a closed form."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import norm

import fnloop as fl

epsilon = fl.schemes.epsilon

# noise, epochs of 60,000 examples in batches of 256; at a delta of 1e-5.
PUBLISHED = {(1.3, 15): 1.19, (1.1, 60): 3.01, (0.7, 45): 7.10}
"""By TensorFlow Privacy's tutorial on MNIST, whose conversion from Renyi's is that of 2017."""

ANOTHER = {
    (1.3, 15): (0.9544295087299243, 0.8644586715033307),
    (1.1, 60): (2.5965558697943036, 2.381686002234784),
    (0.7, 45): (6.3194644981868615, 5.639446665980107),
}
"""By dp-accounting 0.6.0: RdpAccountant and PLDAccountant, of a SelfComposedDpEvent of
PoissonSampledDpEvent(256 / 60000, GaussianDpEvent(noise)), 60000 * epochs // 256 times."""


def of(noise, epochs, accountant):
    return epsilon(noise, 256 / 60_000, 60_000 * epochs // 256, 1e-5, accountant)


def by_formula(noise, epochs, conversion):
    """Mironov et al., 2019, section 3.3, for whole orders."""
    q, steps, delta, found = 256 / 60_000, 60_000 * epochs // 256, 1e-5, []
    for order in range(2, 200):
        k = np.arange(order + 1)
        terms = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        terms = terms + k * np.log(q) + (order - k) * np.log1p(-q) + (k * k - k) / (2 * noise**2)
        renyi = steps * np.logaddexp.reduce(terms) / (order - 1)
        found.append(renyi + conversion(order, delta))
    return min(found)


def of_2017(order, delta):
    return math.log(1 / delta) / (order - 1)


def of_2020(order, delta):
    """Canonne, Kamath & Steinke, 2020, proposition 12."""
    return math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


@pytest.mark.parametrize(("noise", "epochs"), PUBLISHED)
def test_by_renyi_it_is_what_the_formula_gives_that_gives_the_published_values(noise, epochs):
    assert by_formula(noise, epochs, of_2017) == pytest.approx(PUBLISHED[noise, epochs], rel=5e-3)
    found = of(noise, epochs, "rdp")
    assert found == pytest.approx(by_formula(noise, epochs, of_2020), rel=0.01)
    assert found < PUBLISHED[noise, epochs]


@pytest.mark.parametrize(("noise", "epochs"), ANOTHER)
def test_it_is_that_of_another_library(noise, epochs):
    by_renyi, by_loss = ANOTHER[noise, epochs]
    assert of(noise, epochs, "rdp") == pytest.approx(by_renyi, rel=1e-3)
    found = of(noise, epochs, "prv")
    assert by_loss <= found <= by_loss + 0.011  # an upper bound, within 0.01


def test_of_whole_batches_it_is_the_closed_form():
    """Many normal mechanisms are one: Balle & Wang, 2018, theorem 8."""
    noise, steps, delta = 4.0, 10, 1e-5
    one = noise / math.sqrt(steps)

    def excess(value):
        own = norm.cdf(1 / (2 * one) - value * one)
        return own - math.exp(value) * norm.cdf(-1 / (2 * one) - value * one) - delta

    exact = brentq(excess, 0.01, 20)
    assert exact <= epsilon(noise, 1.0, steps, delta) <= exact + 0.011


def test_the_ends_and_the_errors():
    assert epsilon(0.0, 0.1, 10, 1e-5) == math.inf and epsilon(1.0, 0.1, 0, 1e-5) == 0
    with pytest.raises(
        ValueError, match=r"epsilon\(share=\) takes .*batch size / examples; got 256"
    ):
        epsilon(1.0, 256, 10, 1e-5)
    with pytest.raises(
        ValueError, match=r"epsilon\(accountant=\) takes \"prv\" or \"rdp\"; got 'm"
    ):
        epsilon(1.0, 0.1, 10, 1e-5, "moments")


def test_without_the_library_it_says_what_to_install(monkeypatch):
    for name in ("opacus", "opacus.accountants"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'fnloop\[privacy\]'"):
        epsilon(1.0, 0.1, 10, 1e-5)
