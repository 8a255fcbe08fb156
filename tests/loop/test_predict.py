"""Predictions, yielded and written to files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


X, Y = torch.randn(23, 4), torch.randint(0, 3, (23,))


def scores(model, x):
    logits = model(x)
    return {"logits": logits, "top": (logits.argmax(1), logits.max(1).values)}


def in_order(x=X, batch_size=5):
    return fl.Batches(x, batch_size, shuffle=False)


@pytest.fixture
def state():
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.5)).init(model())


def contents(place):
    """The bytes of each file."""
    return {path.name: path.read_bytes() for path in Path(place).iterdir()}


@pytest.mark.lightning("T29", "M3")
def test_predict_keeps_the_order():
    net = model()
    state = fl.grad(loss).init(net)
    outputs = torch.cat(list(fl.predict(lambda m, x: m(x), state, fl.Batches(X, 5, shuffle=False))))
    torch.testing.assert_close(outputs, net.eval()(X).detach())
    assert not outputs.requires_grad


def test_steps_between_predictions_do_not_disturb_it():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.5)))
    state = step.init(model())
    outputs = []
    trained = state
    for y in fl.predict(lambda m, x: m(x), state, fl.Batches(X, 5, shuffle=False)):
        trained, _ = step(trained, (X, Y))
        outputs.append(y)
    undisturbed = list(fl.predict(lambda m, x: m(x), state, fl.Batches(X, 5, shuffle=False)))
    assert fl.tree_equal(outputs, undisturbed)


def test_predictions_of_shuffled_data_are_refused():
    state = fl.grad(loss).init(model())
    with pytest.raises(ValueError, match="shuffle=False"):
        list(fl.predict(lambda m, x: m(x), state, fl.Batches(X, 5)))


@pytest.fixture
def expected(state):
    """What is written, by hand."""
    net = fl.to_module(state).eval()
    with torch.no_grad():
        logits = torch.cat([net(x) for x in X.split(5)])
    return {
        "index": np.arange(23),
        "logits": logits.numpy(),
        "top.0": logits.argmax(1).numpy(),
        "top.1": logits.max(1).values.numpy(),
    }


@pytest.mark.lightning("C19", "M3")
def test_a_folder_gets_an_array_for_each_output(state, expected, tmp_path):
    place = fl.predict(scores, state, in_order(), to=tmp_path / "a" / "out")
    assert place == tmp_path / "a" / "out" and os.listdir(tmp_path / "a") == ["out"]
    assert {path.stem for path in place.glob("*.npy")} == set(expected)
    for name, array in expected.items():
        found = np.load(place / f"{name}.npy", mmap_mode="r")
        assert found.dtype == array.dtype and np.array_equal(found, array), name
    assert json.loads((place / "predictions.json").read_text())["rows"] == 23
    assert len(os.listdir(place)) == 5


def test_a_parquet_file_has_the_same_as_columns(state, expected, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    place = fl.predict(scores, state, in_order(), to=tmp_path / "out.parquet")
    assert os.listdir(tmp_path) == ["out.parquet"]
    table = pd.read_parquet(place)
    assert set(table.columns) == set(expected)
    for name, array in expected.items():
        assert np.array_equal(np.stack(table[name].to_list()), array), name


def test_without_pyarrow_the_error_says_how_to_get_it(state, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'fnloop\[parquet\]'"):
        fl.predict(scores, state, in_order(), to=tmp_path / "out.parquet")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_what_is_complete_stays_and_is_compared(name, state, tmp_path):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    seen, to = [], tmp_path / name

    def watched(model, x):
        seen.append(len(x))
        return scores(model, x)

    fl.predict(watched, state, in_order(), to=to)
    assert fl.predict(watched, state, in_order(), to=to) == to
    assert seen == [5, 5, 5, 5, 3, 5]  # the first batch again, to compare
    other = state.replace(params={n: p + 1 for n, p in state.params.items()})
    with pytest.raises(FileExistsError, match="weights: "):
        fl.predict(scores, other, in_order(), to=to)
    with pytest.raises(FileExistsError, match="params: None -> ema"):
        fl.predict(scores, state, in_order(), "ema", to=to)
    with pytest.raises(FileExistsError, match=r"data\.examples: 23 -> 9"):
        fl.predict(scores, state, in_order(X[:9]), to=to)
    with pytest.raises(FileExistsError, match=r"data\.batch_size: 5 -> 4"):
        fl.predict(scores, state, in_order(batch_size=4), to=to)
    with pytest.raises(FileExistsError, match="by another function: for the first batch 'logits'"):
        fl.predict(lambda m, x: {**scores(m, x), "logits": m(x) + 1}, state, in_order(), to=to)
    with pytest.raises(FileExistsError, match=r"'output', 'top\.0', 'top\.1' differs"):
        fl.predict(lambda m, x: m(x), state, in_order(), to=to)


def cut_short(state, to, fn=scores, data=None, after=2):
    """Predict, and fail behind so many batches."""
    left = [after]

    def failing(model, x):
        left[0] -= 1
        if left[0] < 0:
            raise ZeroDivisionError
        return fn(model, x)

    with pytest.raises(ZeroDivisionError):
        fl.predict(failing, state, in_order() if data is None else data, to=to)


LOADER = torch.utils.data.DataLoader(X, 5)
DATA = {
    "batches": in_order,
    "prefetched": lambda: fl.data.prefetch(in_order()),
    "limited": lambda: fl.data.limit(in_order(), 4),
    "loader": lambda: torch.utils.data.DataLoader(X, 5),
    "list": lambda: list(X.split(5)),
    "function": lambda: lambda epoch: iter(X.split(5)),
    "stateful": lambda: Positioned(),
}


class Positioned:
    """A loader that keeps its own position."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < 5:
            self.position += 1
            yield X.split(5)[self.position - 1]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@pytest.mark.parametrize("kind", DATA)
def test_what_was_cut_goes_on_behind_the_last_batch(kind, state, tmp_path):
    noisy = lambda m, x: {"y": m(x) + torch.rand(()), "x": x}  # noqa: E731
    whole = fl.predict(noisy, state, DATA[kind](), to=tmp_path / "whole")
    cut_short(state, tmp_path / "cut", noisy, DATA[kind]())
    seen = []

    def watched(model, x):
        seen.append(len(x))
        return noisy(model, x)

    fl.predict(watched, state, DATA[kind](), to=tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(whole)
    assert seen == [5, 5, 5, 3][: 3 if kind == "limited" else 4]  # the first again, and the rest


def test_what_was_cut_is_of_these_weights_and_this_data(state, tmp_path):
    to = tmp_path / "cut"
    cut_short(state, to)
    with pytest.raises(FileExistsError, match=r"cut.unfinished holds other .*\n  data.examples"):
        fl.predict(scores, state, in_order(X[:9]), to=to)
    with pytest.raises(FileExistsError, match="by another function"):
        fl.predict(lambda m, x: {**scores(m, x), "logits": -m(x)}, state, in_order(), to=to)
    with pytest.raises(ValueError, match="holds the first 2 batches, and this data is an iterator"):
        fl.predict(scores, state, iter(X.split(5)), to=to)
    # What another machine rounds otherwise is no other function.
    fl.predict(lambda m, x: {**scores(m, x), "logits": m(x) * (1 + 1e-6)}, state, in_order(), to=to)


def test_what_a_power_failure_has_left_is_found(state, tmp_path):
    whole = fl.predict(scores, state, in_order(), to=tmp_path / "whole")
    cut_short(state, tmp_path / "cut", after=4)
    work = tmp_path / "cut.unfinished"
    for damage in (
        lambda: (work / "logits.npy").write_bytes((work / "logits.npy").read_bytes()[:-30]),
        lambda: (work / "top.1.npy").write_bytes((work / "top.1.npy").read_bytes()[:-8] + bytes(8)),
        lambda: (work / "batches.log").write_bytes((work / "batches.log").read_bytes() + b"[5,0"),
        lambda: (work / "batches.log").write_bytes((work / "batches.log").read_bytes()[:-3]),
        lambda: (work / "top.0.npy").write_bytes(b""),
    ):
        shutil.rmtree(tmp_path / "copy.unfinished", ignore_errors=True)
        damage()
        shutil.copytree(work, tmp_path / "copy.unfinished")
        fl.predict(scores, state, in_order(), to=tmp_path / "copy")
        assert contents(tmp_path / "copy") == contents(whole)
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["out", "out.parquet"])
@pytest.mark.lightning("C19")
def test_killed_at_any_place_it_ends_in_the_same_bytes(name, tmp_path):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    script = Path(__file__).with_name("killed_predictions.py")
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), name, "31"],
        capture_output=True,
        text=True,
        env={**os.environ, **path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout)
    assert seen["killed"] > 9 and seen["went on"] > 5 and seen["were complete"] >= 1


def test_what_is_there_already_is_not_touched(state, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no predictions of fnloop"):
        fl.predict(scores, state, in_order(), to=tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert (fl.predict(scores, state, in_order(), to=tmp_path / "empty") / "index.npy").exists()


def test_two_do_not_write_to_one_place(state, tmp_path):
    def twice(model, x):
        with pytest.raises(FileExistsError, match=f"out is being written by process {os.getpid()}"):
            fl.predict(scores, state, in_order(), to=tmp_path / "out")
        return scores(model, x)

    fl.predict(twice, state, in_order(), to=tmp_path / "out")


@pytest.mark.parametrize(
    "fn, message",
    [
        (lambda m, x: m(x).mean(), "first dimension is the batch's"),
        (lambda m, x: m(x)[:2], "has 2 rows for a batch of 5 examples"),
        (lambda m, x: {"index": m(x)}, "'index' is that of the examples' numbers"),
        (lambda m, x: {"../a": m(x)}, "cannot be a file's"),
        (lambda m, x: {"a.b": x, "a": {"b": x}}, "is there twice"),
        (lambda m, x: m(x)[:, : len(x) - 2], "batch 5 is float32.1. for an example, and was"),
        (lambda m, x: {"y": x} if len(x) == 5 else {"z": x}, "batch 5 are 'z'.* first are 'y'"),
        (lambda m, x: np.array(["a"] * len(x)), "array of <U1; predictions are numbers"),
    ],
)
def test_outputs_that_cannot_be_written(fn, message, state, tmp_path):
    with pytest.raises(ValueError, match=message):
        fl.predict(fn, state, in_order(), to=tmp_path / "out")
    assert os.listdir(tmp_path) in ([], ["out.unfinished"])


def test_examples_that_were_repeated_to_fill_a_batch_are_left_out(state, tmp_path):
    texts = [torch.randn(n % 3 + 2, 4) for n in range(7)]
    pad = fl.data.pad([4], 0.0, batch_size=4)
    data = fl.Batches(texts, 4, shuffle=False, collate=pad)
    first = lambda m, b: m(b.batch[:, 0])  # noqa: E731
    with pytest.raises(ValueError, match=r"4 rows for a batch of 3 .* output\[batch.weight > 0\]"):
        fl.predict(first, state, data, to=tmp_path / "all")
    place = fl.predict(lambda m, b: first(m, b)[b.weight > 0], state, data, to=tmp_path / "own")
    assert np.load(place / "index.npy").tolist() == list(range(7))


@pytest.mark.parametrize("size", [4, 5])  # the parts of a group are alike, or the last is shorter
def test_a_group_has_the_examples_of_all_its_batches(size, state, tmp_path):
    data = fl.data.group(in_order(X[:16], size), 2)
    message = f"{size} rows for a batch of {2 * size} examples.* for part in batch.parts"
    with pytest.raises(ValueError, match=message):
        fl.predict(lambda m, b: m(b.parts[0]), state, data, to=tmp_path / "one")
    whole = lambda m, b: torch.cat([m(part) for part in b.parts])  # noqa: E731
    place = fl.predict(whole, state, data, to=tmp_path / "all")
    assert np.load(place / "index.npy").tolist() == list(range(16))
    net = fl.to_module(state).eval()
    with torch.no_grad():
        expected = torch.cat([net(x) for x in X[:16].split(size)])
    assert np.array_equal(np.load(place / "output.npy"), expected.numpy())


def test_places_that_are_none(state, tmp_path):
    for to in (tmp_path / "a.npy", "s3://bucket/a", "."):
        with pytest.raises((ValueError, ImportError)):
            fl.predict(scores, state, in_order(), to=to)
    with pytest.raises(ValueError, match="give to="):
        fl.predict(scores, state, in_order(), mesh=fl.mesh())
    with pytest.raises(ValueError, match="no batch"):
        fl.predict(scores, state, [], to=tmp_path / "out")
    assert not os.listdir(tmp_path)
