"""Machine code that is found by what it was compiled from, and by nothing less."""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch

from fnloop._torch import fakes, graph, libraries, machine_code, products

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of its own, and a program that has set nothing else."""
    for name in libraries.os.environ:
        if name.startswith(libraries._VARIABLES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "fnloop"


def recorded(function, *tensors):
    mode = fakes.fake_mode()
    inputs = fakes.without_values(tensors, mode)
    return graph.record(function, inputs, mode), inputs


def options(threads=0):
    made = machine_code.options(torch.device("cpu"), "default", Counter(), 1.0)
    return {**made, "cpp.threads": threads}


def key(function, *tensors, **given):
    found, inputs = recorded(function, *tensors)
    return libraries.key_of(found, inputs, options(**given))


def built(function, *tensors):
    found, inputs = recorded(function, *tensors)
    return machine_code.build(found, inputs, "inductor", options())


def scaled(by):
    return lambda x: [(x * by).sin().sum()]


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_the_same_graph_has_the_same_key_and_no_other_has():
    weights = torch.tensor([1.0, 2.0, 3.0])
    others = [
        key(scaled(3.0), X),
        key(scaled(2), X),
        key(lambda x: [(x * 2.0).cos().sum()], X),
        key(lambda x: [(x * 2.0).sin().sum(0)], X),
        key(scaled(2.0), X[:4]),
        key(scaled(2.0), X.t().contiguous().t()),
        key(scaled(2.0), X.double()),
        key(scaled(2.0), X, threads=1),
        key(scaled(weights), X),
        key(scaled(weights + 1), X),
        key(scaled(weights.double()), X),
    ]
    assert None not in others and len({*others, key(scaled(2.0), X)}) == len(others) + 1
    assert key(scaled(2.0), X) == key(scaled(2.0), X)
    assert key(scaled(weights), X) == key(scaled(weights.clone()), X)


def test_a_key_holds_for_the_state_of_the_program(monkeypatch):
    before, threads = key(scaled(2.0), X), torch.get_num_threads()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    precision = products.by_onednn()  # which knows how to put it back

    def with_(change, undo):
        change()
        try:
            return key(scaled(2.0), X)
        finally:
            undo()

    others = [
        with_(lambda: torch.set_num_threads(threads + 1), lambda: torch.set_num_threads(threads)),
        with_(
            lambda: torch.set_default_dtype(torch.float64),
            lambda: torch.set_default_dtype(torch.float32),
        ),
        with_(
            lambda: torch.use_deterministic_algorithms(True),
            lambda: torch.use_deterministic_algorithms(False, warn_only=warns),
        ),
        with_(precision.__enter__, lambda: precision.__exit__(None, None, None)),
        with_(lambda: monkeypatch.setenv("CXX", "clang++"), lambda: monkeypatch.delenv("CXX")),
    ]
    assert len({before, *others}) == len(others) + 1
    assert key(scaled(2.0), X) == before


def test_code_that_depends_on_more_has_no_key(monkeypatch):
    from torch._inductor import config

    assert key(scaled(2.0), X) is not None
    for variable in ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "TORCH_LOGS"):
        with monkeypatch.context() as m:
            m.setenv(variable, "1")
            assert key(scaled(2.0), X) is None
    with config.patch(epilogue_fusion=False):
        assert key(scaled(2.0), X) is None
    with torch.library._scoped_library("fnloop_test", "FRAGMENT") as library:
        library.define("double(Tensor x) -> Tensor")
        library.impl("double", lambda x: x * 2, "CompositeExplicitAutograd")
        library.impl("double", torch.empty_like, "Meta")
        assert key(lambda x: [torch.ops.fnloop_test.double(x)], X) is None
    symbols = fakes.Symbols([5])
    inputs = [fakes.like(X, [symbols.sizes[0], 3], [3, 1], symbols.mode)]
    found = graph.record(scaled(2.0), inputs, symbols.mode)
    assert libraries.key_of(found, inputs, options()) is None
    assert key(scaled(2.0), X) is not None


def test_a_second_build_does_without_inductor(folder, monkeypatch):
    function = lambda x: [(x * 2.0).sin(), x.sum()]  # noqa: E731
    first = built(function, X)([X])
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(machine_code, "_inductor", None)
    given = [X]
    second = built(function, X)(given)
    assert given == []  # a list that is emptied lets memory go
    for a, b, c in zip(first, second, function(X), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)


def test_constants_that_a_library_is_handed_are_not_forgotten(folder):
    weights = torch.linspace(1, 2, 3000)
    for _ in range(2):
        (result,) = built(lambda x: [x * weights], torch.ones(2, 3000))([torch.ones(2, 3000)])
        assert torch.equal(result, weights.expand(2, -1))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("handed", "made", "alone"),
    [
        ("args", "results", True),
        ("args + [torch.ones(2)]", "results", False),
        ("args[::-1]", "results", False),
        ("args", "[results[0], results[1].item()]", False),
        ("args", "[results[0].item(), results[1], results[2]]", False),
    ],
)
def test_only_a_library_that_is_handed_just_the_inputs_is_kept(tmp_path, handed, made, alone):
    text = f"""
        def around(f):
            def g(args):
                handles = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors({handed})
                args.clear()
                handles = f(handles)
                results = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(handles)
                return {made}
            return g
        """
    scope = {"torch": torch}
    exec(textwrap.dedent(text), scope)
    entry = MethodType(lambda library, handles: handles, SimpleNamespace(__file__=str(tmp_path)))
    compiled = SimpleNamespace(
        current_callable=scope["around"](entry), constants={}, torchbind_constants={}
    )
    assert libraries._library(compiled) == (tmp_path if alone else None)


@pytest.mark.parametrize("damage", ["the file is cut", "the library is gone", "it is no library"])
def test_what_is_damaged_is_compiled_again(folder, damage):
    expected = scaled(2.0)(X)
    built(scaled(2.0), X)
    (file,) = folder.iterdir()
    before = file.read_text()
    missing = folder.parent / "other.so"
    if damage == "it is no library":
        missing.write_text("garbage")
    file.write_text(before[:9] if damage == "the file is cut" else f'"{missing}"')
    assert libraries.found(file.name) is None
    torch.testing.assert_close(built(scaled(2.0), X)([X]), expected)
    assert file.read_text() == before and Path(before.strip('"')).is_file()
