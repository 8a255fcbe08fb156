from __future__ import annotations

import fnmatch
import itertools

import torch

from fnloop.optim.patterns import as_where, chosen, matches
from fnloop.values.tensors import Tensors


def test_stars_are_those_of_fnmatch():
    names = ["".join(letters) for n in range(5) for letters in itertools.product("ab", repeat=n)]
    patterns = [p for p in ("".join(x) for x in itertools.product("ab*", repeat=4)) if "*" in p]
    for name, pattern in itertools.product(names, patterns):
        assert matches(name, pattern) == fnmatch.fnmatchcase(name, pattern), (name, pattern)


def test_a_name_is_a_parameter_or_a_module():
    assert matches("layers.1.weight", "layers.1") and matches("layers.1.weight", "layers")
    assert not matches("layers.10.weight", "layers.1")


def test_forms_of_where():
    params = Tensors({"a.w": torch.ones(2, 2), "a.b": torch.ones(2), "c": torch.ones(())})
    assert chosen(as_where("a"), params) == ["a.w", "a.b"]
    assert chosen(as_where(["*.b", "c"]), params) == ["a.b", "c"]
    assert chosen(as_where(lambda name, p: p.ndim < 2), params) == ["a.b", "c"]
