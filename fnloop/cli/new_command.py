"""``fnloop new``: a stage, optimizer, callback, effect or tracker to begin with, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace

from fnloop.cli.messages import Problem, did_you_mean, usage


class Template(NamedTuple):
    """A file of ``fnloop.cli.templates``, beside which its tests lie.

    Attributes:
        file: Its name.
        word: The name to replace, in it: that of a function or class, and of memory.
        use: How what it defines is written; ``{name}`` and ``{Name}`` are its names.
    """

    file: str
    word: str
    use: str


TEMPLATES = {
    "grad": Template(
        "gradient_stage", "new_grad", "fl.pipe(loss, fl.grad, {name}(), fl.update(optimizer))"
    ),
    "step": Template(
        "step_stage", "new_step", "fl.pipe(loss, fl.grad, fl.update(optimizer), {name}())"
    ),
    "callback": Template("own_callback", "new_callback", 'fl.fit(..., callbacks=[{name}("loss")])'),
    "optimizer": Template("own_optimizer", "new_optimizer", "fl.update({name}(lr=0.01))"),
    "effect": Template("own_effect", "new_effect", 'fl.fit(..., callbacks=[{Name}("a.txt")])'),
    "tracker": Template(
        "own_tracker", "new_tracker", 'fl.fit(..., callbacks=[fl.track({Name}("a.txt"))])'
    ),
}

STAGES = ("grad", "step", "callback")
WHAT = ("stage", "optimizer", "callback", "effect", "tracker")


def run_new(arguments: Namespace) -> int:
    """``fnloop new WHAT NAME [--kind grad|step|callback]``."""
    what, name = arguments.what, arguments.name
    if what not in WHAT:
        raise usage(
            f"fnloop new makes one of {', '.join(WHAT)}, and was asked for {what!r}."
            + did_you_mean(what, WHAT)
        )
    kind: str | None = arguments.get("kind")
    if what != "stage" and kind is not None:
        raise usage(f"--kind is that of a stage, and {name} is to be of another sort: {what}.")
    which = (kind or "grad") if what == "stage" else what
    if what == "stage" and which not in STAGES:
        raise usage(f"--kind is one of {', '.join(STAGES)}, and not {which!r}.")
    _check_name(name)
    template = TEMPLATES[which]
    texts = written(template, name)
    there = [path for path in texts if Path(path).exists()]
    if there:
        raise Problem(
            f"{there[0]} is there already, and fnloop new writes over nothing. Take another name, "
            "or move the file away."
        )
    for path, text in texts.items():
        with Path(path).open("x", encoding="utf-8") as file:
            file.write(text)
    code, test = texts
    width = len(test)
    print(f"{code:<{width}}  {template.use.format(name=name, Name=camel(name))}")
    print(f"{test:<{width}}  pytest {test}")
    return 0


def written(template: Template, name: str) -> dict[str, str]:
    """The text of both files, by file name.

    >>> code, test = written(TEMPLATES["step"], "mean_of_all").values()
    >>> "class MeanOfAll(" in code, "from mean_of_all import mean_of_all" in test
    (True, True)
    """
    folder = files("fnloop.cli.templates")
    code = (folder / f"{template.file}.py").read_text(encoding="utf-8")
    test = (folder / f"{template.file}_tests.py").read_text(encoding="utf-8")
    test = test.replace(f"from fnloop.cli.templates.{template.file} import", f"from {name} import")
    return {
        f"{name}.py": _named(code, template.word, name),
        f"test_{name}.py": _named(test, template.word, name),
    }


def camel(name: str) -> str:
    """The name of a class.

    >>> camel("auto_clip")
    'AutoClip'
    """
    return "".join(part.capitalize() for part in name.split("_"))


def _named(text: str, word: str, name: str) -> str:
    text = re.sub(rf"\b{camel(word)}\b", camel(name), text)
    return re.sub(rf"\b{word}\b", name, text)


def _check_name(name: str) -> None:
    if keyword.iskeyword(name):
        raise usage(
            f"NAME is that of a Python file and of what it defines, and {name} is a word of "
            f"Python's own. Take another, such as my_{name}."
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise usage(
            f"NAME is that of a Python file and of what it defines: lower-case letters, digits and "
            f"_, as in auto_clip; {name!r} is not."
        )
    if not Path(f"{name}.py").exists() and importlib.util.find_spec(name) is not None:
        raise usage(f"There is a module {name} already, which {name}.py would hide. Rename it.")
