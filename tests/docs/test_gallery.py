"""The gallery has every scheme, and is what its command writes."""

from __future__ import annotations

import pytest

from .gallery import (
    PAGE,
    SCHEMES,
    WITHOUT_CURVES,
    all_schemes,
    file_of_tests,
    image,
    page,
)
from .gallery_curves import curve, quadratic


def test_each_scheme_is_shown_or_says_why_not():
    assert not set(SCHEMES) & set(WITHOUT_CURVES)
    assert sorted([*SCHEMES, *WITHOUT_CURVES]) == all_schemes(), (
        "add a line to tests/docs/gallery.py, and call: python -m tests.docs.gallery NAME"
    )


def test_the_page_is_what_the_command_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.docs.gallery"


@pytest.mark.parametrize("name", SCHEMES)
def test_its_picture_and_its_tests_are_there(name):
    assert image(name).stat().st_size > 1000, f"draw it: python -m tests.docs.gallery {name}"
    assert file_of_tests(name).exists()


@pytest.mark.parametrize("name", SCHEMES)
def test_it_goes_down_the_quadratic(name):
    problem = quadratic()._replace(epochs=60, every=20)
    steps, losses = curve(SCHEMES[name].code, problem)
    assert steps == [20, 40, 60]
    assert losses[-1] < 3.6  # where it begins, it is the sum of all heights over 2


def test_the_plain_curve_is_that_of_the_formula():
    """Heavy ball in each direction: its own recursion, with numbers of Python."""
    problem = quadratic()._replace(epochs=20, every=20)
    _, losses = curve("fl.pipe(loss, fl.grad, fl.update(optimizer))", problem)
    total = 0.0
    for height in [10 ** (-3 + 3 * i / 49) for i in range(50)]:
        at, velocity = 1.0, 0.0
        for _ in range(20):
            velocity = 0.9 * velocity + height * at
            at -= 0.5 * velocity
        total += height * at**2 / 2
    assert losses[-1] == pytest.approx(total, rel=1e-4)
