"""What trackers show, against Pillow, numpy and the standard library."""

from __future__ import annotations

import io
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fnloop as fl
from fnloop.trackers import Audio, File, Histogram, Image, Text
from fnloop.trackers.flat_config import flat, plain_name

RANDOM = np.random.default_rng(0)


def decoded(image: Image) -> Any:
    PIL = pytest.importorskip("PIL.Image")
    return np.asarray(PIL.open(io.BytesIO(image.png())))


@pytest.mark.parametrize("shape", [(13, 7), (13, 7, 1), (13, 7, 3), (13, 7, 4)])
def test_a_png_is_what_pillow_reads(shape: tuple[int, ...]) -> None:
    pixels = RANDOM.integers(0, 256, shape).astype(np.uint8)
    assert np.array_equal(decoded(Image(pixels)), pixels.reshape(decoded(Image(pixels)).shape))
    tensor = torch.from_numpy(pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0).copy())
    assert np.array_equal(Image(tensor).pixels(), Image(pixels).pixels())


def test_floats_are_cut_off_and_nan_is_black() -> None:
    row = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 7.0, float("nan"), float("inf"), -float("inf")]])
    assert Image(row).pixels()[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255, 0]
    assert Image(row > 0.6).pixels()[0, :, 0].tolist() == [0, 0, 0, 255, 255, 0, 255, 0]
    assert Image(torch.tensor([[300, -5]])).pixels()[0, :, 0].tolist() == [255, 0]


def test_floats_in_0_to_255_are_told_of() -> None:
    with pytest.warns(UserWarning, match="up to 255: what is above 1 is white.*divide by 255"):
        Image(torch.tensor([[0.0, 255.0]])).pixels()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image(torch.tensor([[-3.0, 4.0, torch.inf, torch.nan]])).pixels()
        Image(torch.tensor([[0, 255]])).pixels()


def test_several_are_put_side_by_side() -> None:
    many = torch.arange(1, 6).view(5, 1, 1, 1).expand(5, 1, 2, 2).to(torch.uint8)
    grid = Image(many).pixels()[..., 0]
    assert grid.tolist() == [
        [1, 1, 0, 2, 2, 0, 3, 3],
        [1, 1, 0, 2, 2, 0, 3, 3],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [4, 4, 0, 5, 5, 0, 0, 0],
        [4, 4, 0, 5, 5, 0, 0, 0],
    ]


def test_a_figure_is_drawn_as_matplotlib_writes_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    PIL = pytest.importorskip("PIL.Image")
    figure = Figure(figsize=(3.33, 2.17), dpi=97)
    figure.add_subplot().plot([1, 3, 2])
    drawn = Image(figure)
    figure.savefig(tmp_path / "a.png", dpi=97)
    figure.clear()  # it is used for the next one
    assert np.array_equal(drawn.pixels(), np.asarray(PIL.open(tmp_path / "a.png")))
    assert Image(PIL.new("RGB", (4, 2), (1, 2, 3))).pixels()[0, 0].tolist() == [1, 2, 3]


def test_a_value_is_a_copy() -> None:
    tensor = torch.zeros(2, 3, dtype=torch.uint8)
    image, bars = Image(tensor), Histogram(tensor)
    sound = Audio(numbers := torch.zeros(4), 8000)
    tensor.fill_(9)
    numbers.fill_(1)
    assert not image.pixels().any() and not sound.samples().any()
    assert bars.read().edges[0] == -0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("size", [1, 2, 1000, 100_000])
def test_a_histogram_is_that_of_numpy(dtype: torch.dtype, size: int) -> None:
    values = (10 * torch.randn(size, generator=torch.Generator().manual_seed(size))).to(dtype)
    found = Histogram(values, bins=50).read()
    exact = values.float() if dtype == torch.bfloat16 else values
    counts, edges = np.histogram(exact.numpy(), 50)
    assert np.array_equal(found.counts, counts)
    assert found.edges == pytest.approx(edges, rel=1e-6, abs=1e-5)
    assert found.total == pytest.approx(float(values.double().sum()), rel=1e-6, abs=1e-6)
    assert found.squares == pytest.approx(float(values.double().square().sum()), rel=1e-6)


def test_a_histogram_of_nothing_finite_counts_nothing() -> None:
    bad = Histogram(torch.tensor([float("nan"), float("inf"), 1.0, 3.0]), bins=2)
    assert bad.nonfinite == 2 and bad.read().counts.tolist() == [1, 1]
    assert Histogram(torch.tensor([])).read().counts.sum() == 0
    assert Histogram(torch.full((3,), float("nan"))).nonfinite == 3


def test_a_sound_is_a_wav_file() -> None:
    tone = torch.sin(torch.arange(800) / 10)
    with wave.open(io.BytesIO(Audio(torch.stack([tone, 2 * tone]), 8000).wav())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8000)
        read = np.frombuffer(file.readframes(800), "<i2").reshape(-1, 2)
    assert read[:, 0] / 32767 == pytest.approx(tone.numpy(), abs=2e-5)
    assert read[:, 1].max() == 32767  # cut off


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Image(torch.zeros(8, 8, 3)), r"\[C, H, W\].* was given \[8, 8, 3\]"),
        (lambda: Image(np.zeros((3, 8, 8))), r"\[H, W, C\].* was given \[3, 8, 8\]"),
        (lambda: Image("a.png"), "takes a tensor or an array, and was given str"),
        (lambda: Audio(torch.zeros(800, 2), 8000), r"channels that come last"),
        (lambda: Audio(torch.zeros(800), 0), "rate"),
        (lambda: Text([1, 2]), "takes a string, got a list"),  # type: ignore
        (lambda: Histogram(torch.zeros(2), bins=1000), "at most 512 bins"),
        (lambda: Histogram(["a"]), "no numbers"),
        (lambda: File("missing.txt"), "missing.txt is no file"),
    ],
)
def test_wrong_values_are_refused(make: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError, FileNotFoundError), match=text):
        make()


def test_flat_names() -> None:
    assert flat({"a": {"b": [1, {"c": 2}]}, "d": {}}) == {"a.b.0": 1, "a.b.1.c": 2}
    assert plain_name("grads/0.weight") == "grads/0.weight"


def test_nothing_that_is_shown_changes_a_bit(tmp_path: Path) -> None:
    def loss(model: Any, batch: Any) -> Any:
        x, y = batch
        scores = torch.nn.functional.dropout(model(x), 0.3)
        return torch.nn.functional.cross_entropy(scores, y), {
            "confusion": fl.metrics.confusion(scores, y, classes=3)
        }

    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.adam(0.1)))
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    data = fl.Batches((x, torch.arange(24) % 3), 6)
    state = step.init(lambda: torch.nn.Linear(4, 3), seed=0)
    plain, _ = fl.fit(step, state, data, steps=8)

    kinds = fl.trackers
    file = kinds.JSONL(tmp_path / "a.jsonl")
    board = kinds.TensorBoard(tmp_path / "board")
    pytest.importorskip("tensorboard")
    views = [
        fl.every(3, kinds.histograms("weight")),
        fl.every(
            0.5,
            kinds.gradients(
                fl.pipe(loss, fl.grad, fl.accumulate(2)),
                (x, torch.arange(24) % 3),
                "*",
            ),
            unit="epoch",
        ),
        fl.every(4, kinds.matrix("confusion", ["a", "b", "c"])),
        fl.every(100, kinds.show(lambda state, metrics: {"n": Text(str(int(state.cursor[2])))})),
    ]
    shown, _ = fl.fit(step, state, data, steps=8, callbacks=[fl.track(file, board, *views)])
    assert fl.tree_equal(shown, plain)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(
        str(tmp_path / "board" / "run-1"), {"histograms": 0, "images": 0, "tensors": 0}
    ).Reload()
    at = {name: [e.step for e in read.Histograms(name)] for name in read.Tags()["histograms"]}
    assert at == {
        "params/weight": [3, 6, 8],
        "grads/weight": [2, 4, 6, 8],
        "grads/bias": [2, 4, 6, 8],
    }
    assert [event.step for event in read.Images("confusion")] == [4, 8]
    assert [event.step for event in read.Tensors("n/text_summary")] == [8]
    last = read.Histograms("params/weight")[-1].histogram_value
    assert sum(last.bucket) == 12 and last.max == float(shown.params["weight"].max())


def test_a_matrix_of_a_metric_that_nothing_reports_is_refused(tmp_path: Path) -> None:
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    view = fl.every(2, fl.trackers.matrix("los"))
    tracker = fl.track(fl.trackers.JSONL(tmp_path / "a.jsonl"), view)
    with pytest.raises(ValueError, match=r'track waits for the metric "los".* mean "loss"'):
        fl.fit(step, step.init(torch.nn.Linear(2, 1)), [torch.ones(1, 2)], 1, callbacks=[tracker])


def test_a_step_of_several_batches_stops_where_something_is_shown(tmp_path: Path) -> None:
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    data = fl.Batches(torch.ones(16, 2), 2)
    state = step.init(lambda: torch.nn.Linear(2, 1), seed=0)
    file = fl.trackers.JSONL(tmp_path / "a.jsonl")
    view = fl.every(3, fl.trackers.show(lambda s, m: {"w": Text(str(s.params["weight"].tolist()))}))
    compiled = fl.compile(step, backend="aot_eager", steps=4)
    fl.fit(compiled, state, data, steps=6, callbacks=[fl.track(file, view)])
    weights = {}
    for s, _ in fl.run(step, state, data, steps=6):
        weights[int(s.cursor[2])] = str(s.params["weight"].tolist())
    lines = [line for line in file.path.read_text().splitlines() if '"w"' in line]
    assert [weights[n] in line for n, line in zip((3, 6), lines, strict=True)] == [True, True]


class TestMistakes:
    step = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))

    def fit(self, *callbacks: Any) -> None:
        state = self.step.init(lambda: torch.nn.Linear(2, 1), seed=0)
        fl.fit(self.step, state, fl.Batches(torch.ones(4, 2), 2), steps=1, callbacks=[*callbacks])

    def track(self, path: Path, *views: Any) -> fl.track:
        return fl.track(fl.trackers.JSONL(path / "a.jsonl"), *views)

    def test_what_is_shown_by_nobody(self) -> None:
        with pytest.raises(
            TypeError, match=r"histograms is shown by trackers.*Give it to fl.track"
        ):
            self.fit(fl.every(2, fl.trackers.histograms()))

    def test_a_function_that_returns_no_value(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match=r"returned Tensor as 'x'; trackers show .*Image\(x\)"):
            self.fit(self.track(tmp_path, fl.trackers.show(lambda s, m: {"x": torch.ones(2, 2)})))
        with pytest.raises(TypeError, match="returned NoneType"):
            self.fit(self.track(tmp_path / "b", fl.trackers.show(lambda s, m: None)))  # type: ignore

    def test_a_bare_function_in_every(self, tmp_path: Path) -> None:
        def picture(state: Any, metrics: Any) -> Any:
            return {}

        with pytest.raises(TypeError, match=r"a callback. What trackers show is made by .*show"):
            self.track(tmp_path, fl.every(2, picture))

    def test_a_pattern_that_fits_nothing_is_an_error_before_the_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"histograms: 'wieght' fits no parameter"):
            self.fit(self.track(tmp_path, fl.every(100, fl.trackers.histograms("wieght"))))
        assert not [*tmp_path.iterdir()]

    def test_gradients_of_a_whole_step(self) -> None:
        with pytest.raises(TypeError, match=r"gradients takes a loss, or a gradient stage"):
            fl.trackers.gradients(self.step, torch.ones(2, 2))
