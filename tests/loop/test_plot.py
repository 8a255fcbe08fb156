"""Curves show themselves in a notebook."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fnloop as fl
from fnloop.loop.plot import draw

to_rgb = pytest.importorskip("matplotlib.colors").to_rgb

CODE = """
import sys, torch, fnloop as fl
step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
_, history = fl.fit(step, step.init(torch.nn.Linear(1, 1)), [torch.ones(2, 1)], epochs=3)
figure = history.plot()
data, size = figure._repr_png_()
assert data.startswith(b"\\x89PNG") and size["width"] * 2 == int.from_bytes(data[16:20]), size
assert "matplotlib.pyplot" not in sys.modules  # which would show the figure a second time
"""


def test_a_figure_is_a_picture_without_pyplot() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)


def test_members_are_drawn_by_their_own_names() -> None:
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.ensemble(step, 5)
    state = many.init(lambda: torch.nn.Linear(1, 1))
    _, history = fl.fit(many, state, [torch.ones(2, 1)], epochs=2)
    (axes,) = history.plot(names=["loss[0]", "loss[3]"]).axes
    assert len(axes.get_lines()) == 6  # all members of the metric, and their median


STEPS = list(range(1, 41))


def titles(figure: Any) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]


def in_legends(figure: Any) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def members_of(n: int, value: Callable[[int, int], float], name: str = "loss") -> dict[str, Any]:
    """Curves of `n` members: the value of each at each step."""
    return {f"{name}[{i}]": (STEPS, [value(i, step) for step in STEPS]) for i in range(n)}


@pytest.mark.parametrize("n", [2, 6, 30])
def test_a_sweep_is_drawn_in_the_order_of_its_values(n: int) -> None:
    rates = [10 ** -(4 * i / (n - 1)) for i in range(n)]  # the largest first
    curves = members_of(n, lambda i, step: 2.0 - rates[i] * step / 40)
    curves |= members_of(n, lambda i, step: 2.1 - rates[i] * step / 40, "val/loss")
    curves |= members_of(n, lambda i, step: rates[i], "sgd.lr") | {"seconds": (STEPS, STEPS)}
    figure = draw(curves, None, None, n, {"sgd.lr": rates})
    assert titles(figure) == ["loss", "val/loss", "seconds"]  # without the rates, which are level
    train, val, *_ = figure.axes
    assert len(train.get_lines()) == n and train.get_ylim() == val.get_ylim()
    lightness = [sum(to_rgb(line.get_color())) for line in train.get_lines()]
    assert lightness == sorted(lightness, reverse=True)
    bars = [axes for axes in figure.axes if axes.get_ylabel() == "sgd.lr"]
    if n <= 6:
        assert in_legends(figure)[:n] == [f"{rate:.4g}" for rate in rates[::-1]] and not bars
        assert figure.legends[0].get_title().get_text() == "sgd.lr"
    else:
        assert bars[0].get_yscale() == "log" and in_legends(figure) == []


def test_a_few_members_of_an_ensemble_share_a_panel() -> None:
    curves = members_of(2, lambda i, step: i + 1 / step) | members_of(
        2, lambda i, step: 0, "skipped"
    )
    figure = draw(curves, None, None, 2)
    assert titles(figure) == ["loss"] and in_legends(figure) == ["train, 2 members"]
    assert titles(draw(curves, None, None)) == ["loss[0]", "loss[1]"]  # of two classes, or groups
    assert titles(draw(curves, None, ["skipped"], 2)) == ["skipped"]  # asked for


def test_subsets_have_one_color_in_all_panels() -> None:
    curves = {"loss": (STEPS, STEPS), "val/loss": (STEPS, STEPS), "val/accuracy": (STEPS, STEPS)}
    loss, accuracy = draw(curves, None, None).axes
    assert accuracy.get_lines()[0].get_color() == loss.get_lines()[1].get_color()


def test_what_diverges_is_marked_and_leaves_the_others_to_be_seen() -> None:
    def value(i: int, step: int) -> float:
        if i < 3:
            return 10.0 ** (-i) / step
        return 10.0**step if step < 30 else math.nan

    figure = draw(members_of(4, value), None, None, 4, {"sgd.lr": [0.1, 0.2, 0.4, 0.8]})
    (axes,) = figure.axes
    assert axes.get_yscale() == "log" and axes.get_ylim()[1] < 1e6
    (cross,) = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert list(cross.get_xdata()) == [29] and cross.get_ydata()[0] <= axes.get_ylim()[1]
    assert "not finite from here" in in_legends(figure)


def test_without_matplotlib_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    curves = members_of(2, lambda i, step: step)
    with pytest.raises(ImportError, match=r"pip install fnloop\[plot\]"):
        draw(curves, None, None, 2, {"sgd.lr": [0.1, 0.2]})


def test_an_accuracy_is_linear() -> None:
    curves = members_of(4, lambda i, step: 10.0**-i * step, "loss")
    curves |= members_of(4, lambda i, step: 10.0**-i * step, "accuracy")
    loss, accuracy = draw(curves, None, None, 4).axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")


def test_a_sweep_of_real_runs_is_known_to_the_history(tmp_path: Path) -> None:
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.compile(fl.sweep(step, {"sgd.lr": [0.01, 0.1]}), backend="eager")
    state = many.init(lambda: torch.nn.Linear(1, 1))
    callbacks = [fl.checkpoint(tmp_path)]
    _, history = fl.fit(many, state, [torch.ones(2, 1)], epochs=2, callbacks=callbacks)
    _, history = fl.fit(many, state, [torch.ones(2, 1)], epochs=4, resume=tmp_path)
    assert history.swept == {"sgd.lr": [0.01, 0.1]}
    assert in_legends(history.plot()) == ["0.01", "0.1"]
