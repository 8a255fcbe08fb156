"""What files define, read without running them: as Python finds it by running them."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import fnloop as fl
from fnloop.cli import static

FILE = """
import torch
from torch import nn
import fnloop as fl
from beside import *
from .near import Near as Close
raise SystemExit("it ran")

class Head(nn.Linear):
    pass
"""


@pytest.fixture
def file():
    Path("beside.py").write_text("def beside(a, *, b: int = 1, **others): ...\n")
    Path("near.py").write_text("class Near:\n    def __init__(self, far: float): ...\n")
    Path("r.py").write_text(FILE)
    Path("circle.py").write_text("from circle import *\nfrom circle import A as A\n")
    return Path("r.py").absolute()


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("nn.Linear", torch.nn.Linear),
        ("nn.MultiheadAttention", torch.nn.MultiheadAttention),
        ("torch.optim.SGD", torch.optim.SGD),
        ("fl.optim.adamw", fl.optim.adamw),
        ("fl.schedules.cosine", fl.schedules.cosine),
        ("fl.early_stopping", fl.early_stopping),
        ("Head", torch.nn.Linear),
    ],
)
def test_arguments_are_those_of_the_class_itself(file, name, made):
    found = static.find(file, name)
    assert found is not None
    assert [each.name for each in static.arguments(found)] == list(
        inspect.signature(made).parameters
    )


def test_names_beside_the_file_and_those_that_there_are_not(file):
    found = static.find(file, "beside")
    assert [each.name for each in static.arguments(found)] == ["a", "b"]
    assert [each.name for each in static.arguments(static.find(file, "Close"))] == ["far"]
    assert static.find(file, "near.Near").file == file.parent / "near.py"  # not imported by it
    for name in ("nn.Linera", "thorch.nn.Linear", "A.B", "fl.optim"):
        assert static.find(file, name) is None
    assert static.find(file.parent / "circle.py", "A") is None
    assert static.find(file.parent / "none.py", "A") is None


def test_names_of_a_module_and_what_is_below_a_class(file):
    assert set(torch.nn.modules.__all__) <= set(static.names_in(file, "torch.nn"))
    public = {name for name in dir(fl.schedules) if name[:1] != "_"}
    assert set(static.names_in(file, "fnloop.schedules")) <= public
    assert static.module_of(file, "nn") == "torch.nn" and static.module_of(file, "x") is None
    module, head = static.find(file, "nn.Module"), static.find(file, "Head")
    assert static.derives(head, module) and not static.derives(module, head)
