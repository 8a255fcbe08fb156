"""Train the character GPT in one process and in two, and draw both losses into one picture.

``python -m tests.distributed.curves`` writes ``docs/images/curves-ranks.png``; flags are those of
``examples/char_gpt.py``.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

from tests.distributed.launch import ROOT, processes, run

CHAR_GPT = ROOT / "examples" / "char_gpt.py"
PICTURE = ROOT / "docs" / "images" / "curves-ranks.png"
BLUE, ORANGE, GREY = "#2f6fb0", "#e07b39", "#666666"


def losses(folder: Path, ranks: int, *flags: str) -> dict[int, float]:
    """The loss by step of a training of the example in one process, or by torchrun in many."""
    flags = (f"--folder={folder}", *flags)
    if ranks > 1:
        done = run(CHAR_GPT, ranks, *flags, seconds=3600)
        code, text = done.returncode, done.stdout + done.stderr
    else:
        [one] = processes([[CHAR_GPT, *flags]], [{}])
        text, _ = one.communicate()
        code = one.returncode
    assert code == 0, text
    with (folder / "history.csv").open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def draw(one: dict[int, float], two: dict[int, float]) -> Figure:
    """Both curves, and below how far they are apart."""
    figure = Figure(figsize=(8, 5), dpi=200, layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    above.plot(one.keys(), one.values(), color=BLUE, linewidth=4, alpha=0.45, label="one process")
    above.plot(two.keys(), two.values(), color=ORANGE, linewidth=1, label="two by torchrun")
    above.set_ylabel("training loss", color=GREY)
    above.legend(frameon=False)
    below.plot(one.keys(), [two[step] - one[step] for step in one], color=GREY, linewidth=1)
    below.ticklabel_format(axis="y", scilimits=(0, 0))
    below.set_ylabel("two less one", color=GREY)
    below.set_xlabel("steps", color=GREY)
    for axes in (above, below):
        axes.margins(x=0.01)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8.5, color=GREY, labelcolor=GREY)
        axes.yaxis.get_offset_text().set(fontsize=8.5, color=GREY)
    return figure


def main() -> None:
    """Train twice, say how far apart the losses are, and draw them."""
    with tempfile.TemporaryDirectory() as folder:
        one, two = (losses(Path(folder, str(n)), n, *sys.argv[1:]) for n in (1, 2))
    assert one.keys() == two.keys()
    apart = {step: abs(one[step] - two[step]) for step in one}
    worst = max(apart, key=lambda step: apart[step])
    print(f"At the end: {one[max(one)]:.6f} and {two[max(one)]:.6f}.")
    print(f"Most apart at step {worst}: {one[worst]:.6f} and {two[worst]:.6f}, {apart[worst]:.1e}.")
    draw(one, two).savefig(PICTURE)


if __name__ == "__main__":
    main()
