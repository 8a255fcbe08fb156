"""The gallery: every scheme with its source, its tests, and its curves on two problems.

A scheme is a line of ``SCHEMES``, as it is written in a pipeline, which is both printed and run;
or, if it is no way to train, a line of ``WITHOUT_CURVES`` that says so.
``python -m tests.docs.gallery`` writes the page and all pictures; with names behind it, the page
and the pictures of these.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import fnloop as fl

from .gallery_curves import PROBLEMS, curve

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "gallery.md"
IMAGES = ROOT / "docs" / "images"


class Entry(NamedTuple):
    """How a scheme is written, and what is to be seen in its curves.

    Attributes:
        code: A training step, in the names of a `Problem`.
        note: A sentence on the curves.
        without: The step that it is drawn beside.
        params: As in `fl.evaluate`: the slot of the average that is drawn.
    """

    code: str
    note: str = ""
    without: str = "fl.pipe(loss, fl.grad, fl.update(optimizer))"
    params: str | None = None


SGD = "fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr)))"
SUM = "fl.pipe(fl.schemes.several(a=half, b=other), fl.update(optimizer))"

SCHEMES = {
    "sam": Entry(
        "fl.pipe(loss, fl.grad, fl.schemes.sam(0.05), fl.update(optimizer))",
        "The point uphill stays at its distance, however close the minimum of the quadratic is, so "
        "SAM is the slower the closer it gets.",
    ),
    "lookahead": Entry(
        "fl.pipe(loss, fl.grad, fl.update(optimizer), fl.schemes.lookahead(5))",
        "Half of the way is taken back after each five steps: slower where the optimizer suits the "
        "problem, and with smaller jumps.",
    ),
    "centralize": Entry(
        "fl.pipe(loss, fl.grad, fl.update(fl.optim.chain(fl.schemes.centralize(), optimizer)))",
        "The parameters of the quadratic are a vector, which is left as it is.",
    ),
    "hypergradient": Entry(
        "fl.pipe(loss, fl.grad, fl.update(fl.schemes.hypergradient(fl.optim.sgd(lr / 20), 0.01)))",
        "Both begin at a twentieth of the rate that suits the problem. The learned one leaves it "
        "sooner where gradients are large.",
        "fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr / 20)))",
    ),
    "sgld": Entry(
        "fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr)), fl.schemes.sgld(1e-4))",
        "It draws samples: the loss ends where the temperature holds it.",
        SGD,
    ),
    "several": Entry(
        SUM, "The quadratic is the sum of its halves; digits have a small penalty besides."
    ),
    "pcgrad": Entry(
        "fl.pipe(fl.schemes.pcgrad(a=half, b=other), fl.update(optimizer))",
        "Beside the sum of the same two losses. On digits weights have to grow, which the penalty "
        "is against, and a projection takes that part out however small the penalty is: it is made "
        "for tasks that are worth the same. The halves of the quadratic do not conflict.",
        SUM,
    ),
    "extragradient": Entry(
        "fl.pipe(loss, fl.grad, fl.schemes.extragradient(lr), fl.update(fl.optim.sgd(lr)))",
        "It is made for games; on one loss it is gradient descent with a look ahead, which is more "
        "careful in steep directions.",
        SGD,
    ),
    "forward_gradient": Entry(
        "fl.pipe(loss, fl.grad, fl.schemes.forward_gradient, fl.update(fl.optim.sgd(lr / 10)))",
        "One direction a step, and no backward pass; its variance, which grows with the number "
        "of parameters, allows a tenth of the rate on digits.",
        SGD,
    ),
    "sghmc": Entry(
        "fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(lr)), fl.schemes.sghmc(1e-4))",
        "It draws samples too, with momentum, which forgets sooner where it was.",
        SGD,
    ),
    "gradnorm": Entry(
        "fl.pipe(fl.schemes.gradnorm(a=half, b=other), fl.update(optimizer))",
        "Beside the sum of the same two losses. It is made for tasks that are worth the same: on "
        "digits the small penalty gets as large a gradient as the loss.",
        SUM,
    ),
    "evolution": Entry(
        "fl.pipe(loss, fl.grad, fl.schemes.evolution(0.01, draws=8), "
        "fl.update(fl.optim.sgd(lr / 10)))",
        "Sixteen values of the loss a step, and no gradient; their variance allows a tenth of the "
        "rate.",
        SGD,
    ),
    "dp_sgd": Entry(
        "fl.pipe(loss, fl.grad, fl.schemes.dp_sgd(clip=1.0, noise=0.5), fl.update(optimizer))",
        "What privacy costs: clipping slows down, and noise holds the loss up.",
    ),
}

WITHOUT_CURVES = {
    "epsilon": "what a private training has given away, in a number",
    "implicit": "a derivative through a minimum, for what is learned around training",
    "lanczos": "the spectrum of the Hessian, which is watched and changes nothing",
    "noise_scale": "the gradient is that of `fl.accumulate`, and beside it a number is watched",
    "swag": "gathers samples of an ordinary run, whose curve stays as it is",
    "swag_sample": "a state with parameters drawn from those samples",
    "hessian_product": "a product with the Hessian, which other schemes and probes are made of",
    "sharpness": "a number that is watched in training, and changes nothing",
}


def draw(name: str) -> Path:
    """Write the picture of a scheme: its curves, beside those of a step without it."""
    from matplotlib.figure import Figure

    entry = SCHEMES[name]
    figure = Figure(figsize=(7.6, 2.5), dpi=80, layout="constrained")
    for axes, make in zip(figure.subplots(1, len(PROBLEMS)), PROBLEMS, strict=True):
        problem = make()
        plain, own = curve(entry.without, problem), curve(entry.code, problem, entry.params)
        if entry.without != entry.code:
            axes.semilogy(*plain, color="#999999", linewidth=1, label="without")
        axes.semilogy(*own, color="#2f6fb0", linewidth=1.4, label=name)
        axes.set_title(problem.title, fontsize=9, loc="left")
        axes.set_xlabel("steps", fontsize=8)
        axes.minorticks_off()
        axes.set_yticks(problem.ticks, [f"{tick:g}" for tick in problem.ticks])
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    path = image(name)
    figure.savefig(path)
    return path


def image(name: str) -> Path:
    return IMAGES / f"gallery-{name}.png"


def all_schemes() -> list[str]:
    """The names of `fl.schemes`."""
    public = {name: value for name, value in vars(fl.schemes).items() if not name.startswith("_")}
    return sorted(name for name, value in public.items() if callable(value))


HEAD = """# Gallery of schemes

<!-- Written by: python -m tests.docs.gallery -->

Every scheme of `fl.schemes`: where it is from, where its code and its tests are, and what it does
on two problems. The laws in `tests/laws` hold for all of them. How they are combined is told in
[Published training schemes](schemes.md), and how one writes the next in
[Write a scheme of your own](own-scheme.md).

The curves show what a scheme does, and not how good it is: nothing is tuned, there is one seed, and
both problems are small. In grey is the same step without it.

- **Digits**: a perceptron of 32 units, trained on 1,000 of scikit-learn's digits; the loss is that
  of the other 797. `optimizer = fl.optim.sgd(0.05, momentum=0.9)`, `lr = 0.2`. Where there are two
  losses, `half` is this one, and `other` a penalty on the squares of all parameters.
- **Quadratic**: 50 parameters, and a Hessian with eigenvalues from 0.001 to 1, without noise.
  `optimizer = fl.optim.sgd(0.5, momentum=0.9)`, `lr = 0.5`; `half` is the flat half, and `other`
  the steep one.
"""


def page() -> str:
    """The page, of what is said above and in the docstrings of schemes."""
    return "\n".join([HEAD, *(_section(name) for name in all_schemes())])


def _section(name: str) -> str:
    scheme = getattr(fl.schemes, name)
    said = inspect.getdoc(scheme) or ""
    paper = re.search(r"https?://[^\s),]+", said)
    files = [source_of(name), file_of_tests(name)]
    rows = [f"[Reference](../reference/schemes.md#fnloop.schemes.{name})"]
    rows += [f"[paper]({paper[0]})"] if paper else []
    rows += [f"`{path.relative_to(ROOT)}`" for path in files]
    lines = [
        f"## {name}",
        "",
        said.partition("\n\n")[0].replace("\n", " "),
        "",
        " · ".join(rows),
        "",
    ]
    if name in WITHOUT_CURVES:
        return "\n".join([*lines, f"No curves: {WITHOUT_CURVES[name]}.", ""])
    entry = SCHEMES[name]
    lines += [f"`{entry.code}`", "", f"![{_alt(name)}](../images/{image(name).name})", ""]
    return "\n".join([*lines, *([entry.note, ""] if entry.note else [])])


def _alt(name: str) -> str:
    return f"Loss over steps on digits and on a quadratic, with {name} and without"


def source_of(name: str) -> Path:
    return Path(str(sys.modules[getattr(fl.schemes, name).__module__].__file__))


def file_of_tests(name: str) -> Path:
    return ROOT / "tests" / "schemes" / f"test_{source_of(name).name}"


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)
    for name in names or SCHEMES:
        print(draw(name).relative_to(ROOT))
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
