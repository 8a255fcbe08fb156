from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl
from fnloop.data.sources import as_source, one_epoch
from fnloop.values.rows import rows

LENGTHS = (6, 9, 14)


def text(i: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(i)
    tokens = torch.randint(1, 20, (1 + 5 * i % 14,), generator=generator)
    return {"tokens": tokens, "label": int(tokens.sum() % 3), "name": f"text {i}"}


TEXTS = [text(i) for i in range(23)]


class Classifier(nn.Module):
    """Attends to all tokens, and takes the mean over them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        return self.head((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def weighted(model: Any, padded: fl.data.Padded) -> Any:
    batch, mask, weight = padded
    scores = model(batch["tokens"], mask["tokens"])
    losses = F.cross_entropy(scores, batch["label"], reduction="none")
    right = (scores.argmax(1) == batch["label"]).float()
    return fl.Mean((weight * losses).sum(), weight.sum()), {
        "accuracy": fl.Mean((weight * right).sum(), weight.sum())
    }


def state_of(step: Any) -> Any:
    return step.init(lambda: Classifier().double(), seed=0)


def by_hand(state: Any, texts: list[dict[str, Any]]) -> tuple[float, float, dict[str, Any]]:
    """Mean loss, accuracy and gradients of texts that are read one by one, without padding."""
    model = fl.to_module(state)
    losses, right = [], []
    for each in texts:
        tokens, label = each["tokens"][None], torch.tensor([each["label"]])
        scores = model(tokens, torch.ones_like(tokens, dtype=torch.bool))
        losses.append(F.cross_entropy(scores, label))
        right.append(int(scores.argmax()) == each["label"])
    loss = torch.stack(losses).mean()
    names, params = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, params)
    return loss.item(), sum(right) / len(right), dict(zip(names, grads, strict=True))


def same(metrics: Any, grads: Any, expected: tuple[float, float, dict[str, Any]]) -> None:
    loss, accuracy, gradients = expected
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-12)
    assert float(metrics["accuracy"]) == pytest.approx(accuracy, rel=1e-12)
    assert gradients.keys() == dict(grads.mean.items()).keys()
    for name, grad in gradients.items():
        torch.testing.assert_close(grads.mean[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [1, 5, 23])
@pytest.mark.parametrize("size", [None, 23, 40])
@pytest.mark.parametrize("parts", [1, 3])
def test_loss_metrics_and_gradients_are_those_without_padding(
    count: int, size: int | None, parts: int
) -> None:
    step = fl.pipe(weighted, fl.grad, fl.accumulate(parts))
    state = state_of(step)
    batch = fl.data.pad(LENGTHS, {"tokens": 0}, size)(TEXTS[:count])
    _, grads = step(state, batch) if count >= parts or size else (None, None)
    if grads is not None:
        same(grads.metrics, grads, by_hand(state, TEXTS[:count]))
        assert float(grads.weight) == count


def test_what_was_added_does_not_count_whatever_it_is() -> None:
    step = fl.pipe(weighted, fl.grad)
    state = state_of(step)
    for value in (0, 19):
        batch = fl.data.pad((14, 30), {"tokens": value}, batch_size=8)(TEXTS[:5])
        _, grads = step(state, batch)
        same(grads.metrics, grads, by_hand(state, TEXTS[:5]))


def test_an_evaluation_is_the_mean_over_the_examples() -> None:
    state = state_of(fl.pipe(weighted, fl.grad))
    loss, accuracy, _ = by_hand(state, TEXTS)
    pad = fl.data.pad(LENGTHS, {"tokens": 0}, batch_size=10)
    buckets = pad.buckets([len(each["tokens"]) for each in TEXTS])
    for data in (
        fl.Batches(TEXTS, 10, collate=pad),
        fl.Batches(TEXTS, 10, collate=pad, buckets=buckets),
        fl.data.prefetch(fl.Batches(TEXTS, 10, collate=pad, buckets=buckets, shuffle=False)),
        DataLoader(TEXTS, 10, collate_fn=pad),  # pyright: ignore[reportArgumentType]
    ):
        expected = {"loss": pytest.approx(loss), "accuracy": pytest.approx(accuracy)}
        assert fl.evaluate(weighted, state, data) == expected


def test_a_compiled_step_has_a_graph_for_all_lengths_or_for_each() -> None:
    pad = fl.data.pad(LENGTHS, {"tokens": 0}, batch_size=4)
    buckets = pad.buckets([len(each["tokens"]) for each in TEXTS])
    texts = [{name: each[name] for name in ("tokens", "label")} for each in TEXTS]
    data = fl.Batches(texts, 4, collate=pad, buckets=buckets)
    step = fl.pipe(weighted, fl.grad, fl.update(fl.optim.adamw(1e-2)))
    eager, _ = fl.fit(step, state_of(step), data, epochs=3)
    for dynamic, graphs in ((True, 2), (False, 3)):
        fast = fl.compile(step, backend="aot_eager", dynamic=dynamic)
        state, _ = fl.fit(fast, state_of(fast), data, epochs=3)
        assert fast.graphs == graphs
        for name, value in eager.params.items():
            torch.testing.assert_close(state.params[name], value, rtol=1e-6, atol=1e-8)


def test_outputs_are_in_the_order_of_the_data() -> None:
    state = state_of(fl.pipe(weighted, fl.grad))
    pad = fl.data.pad(LENGTHS, {"tokens": 0}, batch_size=10)
    data = fl.Batches(TEXTS, 10, shuffle=False, collate=pad)

    def names(model: Any, padded: Any) -> list[str]:
        return [n for n, w in zip(padded.batch["name"], padded.weight, strict=True) if w]

    found = [name for part in fl.predict(names, state, data) for name in part]
    assert found == [each["name"] for each in TEXTS]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    missing=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_is_padding_by_hand(lengths: list[int], sizes: list[int], missing: int) -> None:
    sizes.append(12)
    examples = [(torch.rand(n, 2), torch.arange(n) + 1, -n) for n in lengths]
    pad = fl.data.pad(sizes, {"0": -1.5, "1": -100}, batch_size=len(lengths) + missing)
    (x, y, z), mask, weight = pad(examples)
    size = min(size for size in sizes if size >= max(lengths))
    for found, i, value in ((x, 0, -1.5), (y, 1, -100)):
        column = [example[i] for example in examples]
        expected = pad_sequence(column, batch_first=True, padding_value=value)
        added = (0, 0) * (expected.ndim - 2) + (0, size - expected.shape[1])
        expected = F.pad(expected, added, value=value)
        assert torch.equal(found[: len(lengths)], expected)
        assert torch.equal(found[len(lengths) :], expected[:1].expand(missing, *expected.shape[1:]))
    assert z.tolist() == [-n for n in [*lengths, *lengths[:1] * missing]]
    assert torch.equal(mask["0"], mask["1"])
    assert mask["0"].dtype == torch.bool and mask["0"].shape == x.shape[:2]
    assert torch.equal(
        x[: len(lengths)][mask["0"][: len(lengths)]], torch.cat([e[0] for e in examples])
    )
    assert weight.tolist() == [1.0] * len(lengths) + [0.0] * missing
    assert pad.buckets(lengths).tolist() == [min(s for s in sizes if s >= n) for n in lengths]


class Pair(NamedTuple):
    x: Any
    y: Any


def test_the_batch_has_the_structure_of_the_examples() -> None:
    pad = fl.data.pad((4,), {"pair/x": 0, "more/0": 7, "list": 1}, batch_size=3)
    examples = [
        {"pair": Pair([1, 2], 0.5), "more": (np.arange(3), "a"), "list": [True], "fixed": [1, 2]},
        {"pair": Pair([3], 1.5), "more": (np.arange(1), "b"), "list": [False], "fixed": [3, 4]},
    ]
    batch, mask, _ = pad(examples)
    assert isinstance(batch["pair"], Pair) and isinstance(batch["more"], tuple)
    assert batch["pair"].x.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [1, 2, 0, 0]]
    assert batch["pair"].y.tolist() == [0.5, 1.5, 0.5]
    assert batch["more"][0].tolist() == [[0, 1, 2, 7], [0, 7, 7, 7], [0, 1, 2, 7]]
    assert batch["more"][1] == ["a", "b", "a"]
    assert batch["list"].tolist() == [[True] * 4, [False, True, True, True], [True] * 4]
    assert [part.tolist() for part in batch["fixed"]] == [[1, 3, 1], [2, 4, 2]]
    assert {path: m.sum(1).tolist() for path, m in mask.items()} == {
        "pair/x": [2, 1, 2],
        "more/0": [3, 1, 3],
        "list": [1, 1, 1],
    }
    batch, _, _ = fl.data.pad((2,), {"0": 0})([[[5], 1], [[6, 7], 2]])
    assert [part.tolist() for part in batch] == [[[5, 0], [6, 7]], [1, 2]]


def test_examples_that_are_sequences_have_one_mask() -> None:
    sequences = [torch.arange(n) for n in (1, 3, 2)]
    data = fl.Batches(sequences, 2, shuffle=False, collate=fl.data.pad((3,), -1, batch_size=2))
    batch, mask, weight = list(data)[1]
    assert batch.tolist() == [[0, 1, -1]] * 2 and mask.sum(1).tolist() == [2, 2]
    assert weight.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.uint16, torch.bool, torch.bfloat16, torch.complex64]
)
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    value: Any = False if dtype == torch.bool else 0
    batch, _, _ = fl.data.pad((3,), value)([torch.ones(2).to(dtype), torch.ones(1).to(dtype)])
    assert batch.dtype == dtype and batch.to(torch.complex64).real.sum() == 3


def test_a_padded_batch_is_cut_by_examples() -> None:
    batch = fl.data.pad(LENGTHS, {"tokens": 0}, batch_size=4)(TEXTS[:3])
    assert rows(batch) == 4
    seen: list[Any] = []

    def noting(model: Any, padded: Any) -> Any:
        seen.append((type(padded), padded.batch["name"], padded.weight.tolist()))
        return weighted(model, padded)

    step = fl.pipe(noting, fl.grad, fl.accumulate(2))
    step(state_of(step), batch)
    assert seen == [
        (fl.data.Padded, ["text 0", "text 1"], [1.0, 1.0]),
        (fl.data.Padded, ["text 2", "text 0"], [1.0, 0.0]),
    ]


def test_workers_pad() -> None:
    pad = fl.data.pad(LENGTHS, {"tokens": 0}, batch_size=10)
    assert repr(pickle.loads(pickle.dumps(pad))) == repr(pad)
    loaded: Any = DataLoader(TEXTS, 10, collate_fn=pad, num_workers=1)  # pyright: ignore
    here = fl.Batches(TEXTS, 10, shuffle=False, collate=pad)
    assert fl.tree_equal(list(one_epoch(loaded)), list(here))
    assert as_source(loaded).about()["collate"] == here.about()["collate"]
    assert here.about()["collate"] == "pad((6, 9, 14), {'tokens': 0}, batch_size=10)"


def test_a_scalar_would_count_what_was_added() -> None:
    def scalar(model: Any, padded: Any) -> Any:
        batch, mask, _ = padded
        return F.cross_entropy(model(batch["tokens"], mask["tokens"]), batch["label"])

    def scalar_metric(model: Any, padded: Any) -> Any:
        return {"loss": scalar(model, padded)}

    step = fl.pipe(scalar, fl.grad)
    state = state_of(step)
    batch = fl.data.pad(LENGTHS, {"tokens": 0}, batch_size=4)(TEXTS[:3])
    message = r"returned a scalar.*fl\.data\.Padded.*fl\.Mean\(\(weight \* losses\)"
    with pytest.raises(ValueError, match="scalar " + message):
        step(state, batch)
    with pytest.raises(ValueError, match="scalar_metric.* " + message):
        fl.evaluate(scalar_metric, state, [batch])


A, B = {"x": torch.arange(3), "y": 1}, {"x": torch.arange(2), "y": 1}


@pytest.mark.parametrize(
    ("values", "examples", "message"),
    [
        ({"x": 0}, [A, {"x": torch.arange(9)}], "field 'x' has length 9, and the largest .* is 4"),
        ({"x": 0}, [A, {"x": torch.arange(0)}], "field 'x' is empty"),
        ({"x": 0}, [A, {"x": []}], "field 'x' is empty"),
        ({"y": 0}, [A, B], "field 'y' of an example is 1, which is no sequence"),
        ({"x": 0}, [{"x": "abc"}], "field 'x' of an example is 'abc', which is no sequence"),
        ({"z": 0}, [A, B], "no field 'z': it has 'x', 'y'"),
        ({"x/0": 0}, [A], "no field 'x/0': it has 'x', 'y'"),
        (0, [A], "Name the fields that are sequences"),
        (0, [torch.arange(5)], "A sequence of the examples has length 5"),
        ({"x": 0.5}, [A, B], r"'x' are torch.int64, which cannot hold the value 0.5"),
        ({"x": 300}, [{"x": torch.ones(2).byte()}], r"uint8, which cannot hold the value 300"),
        ({"x": 2}, [{"x": torch.ones(2).bool()}], r"bool, which cannot hold the value 2"),
        ({"x": True}, [{"x": torch.ones(2)}], r"float32, which cannot hold the value True"),
        ({"x": float("inf")}, [A], r"int64, which cannot hold the value inf"),
        ({"x": 0}, [A, {"x": torch.ones(2), "y": 1}], r"there are i64\[3\] and f32\[2\]"),
        ({"x": 0}, [A, {"x": torch.ones(2, 2).long()}], r"there are i64\[3\] and i64\[2,2\]"),
        ({"x": 0}, [A, {"x": torch.arange(2)}], r"has \['x', 'y'\], another \['x'\]"),
        ({"x": 0}, [{"x": [1], "z": [1]}, {"x": [1], "z": [1, 2]}], "'z' of .* name it for pad"),
        ({"x": 0}, [A] * 6, r"pad\(batch_size=5\) was given 6 examples"),
        ({"x": 0}, [], "no example"),
    ],
)
def test_examples_that_cannot_be_padded(values: Any, examples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fl.data.pad((2, 4), values, batch_size=5)(examples)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((), 0), ValueError, "at least one length"),
        ((4, 0), TypeError, "pad.lengths=.* takes a list"),
        (((0,), 0), ValueError, "at least 1, got 0"),
        (((4.5,), 0), TypeError, "got 4.5"),
        (((4,), {}), ValueError, "at least one field"),
        (((4,), {"x": "0"}), TypeError, "a number for each field"),
        (((4,), {0: 0}), TypeError, "a number for each field by its path"),
        (((4,), None), TypeError, "a number for each field"),
        (((4,), 0, 0), ValueError, r"pad\(batch_size=.*at least 1, got 0"),
    ],
)
def test_arguments(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fl.data.pad(*arguments)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3, 0], ValueError, "sequence of example 1 is empty"),
        ([3, 4, 5], ValueError, "sequence of example 2 has length 5, and the largest .* 4"),
        ([3.0], TypeError, r"the length of each example.*got f32\[1\]"),
        (["a"], TypeError, "got list"),
        (3, TypeError, r"got i64\[\]"),
    ],
)
def test_lengths_that_have_no_bucket(lengths: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fl.data.pad((2, 4), 0).buckets(lengths)


def test_collate_is_for_datasets() -> None:
    with pytest.raises(TypeError, match=r"this data is a tuple of tensors.*Give a list"):
        fl.Batches((torch.arange(3), torch.arange(3)), 2, collate=list)
    with pytest.raises(TypeError, match="collate= takes a function"):
        fl.Batches([1, 2], 2, collate=3)  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(ValueError, match=r"collate=fl\.data\.pad"):
        next(iter(fl.Batches(TEXTS, 10)))
    pairs = TensorDataset(torch.arange(3), torch.arange(3))
    assert len(next(iter(fl.Batches(pairs, 3, collate=list)))) == 3


@pytest.mark.lightning("H8")
def test_what_a_collate_function_draws_is_a_function_of_the_cursor() -> None:
    def mix(examples: list[int]) -> tuple[list[int], float]:
        return examples, float(torch.rand(()))

    before = torch.get_rng_state()
    one = list(fl.Batches([*range(10)], 4, collate=mix))
    assert one == list(fl.Batches([*range(10)], 4, collate=mix))
    assert len({drawn for _, drawn in one}) == 3
    _, again = fl.Batches([*range(10)], 4, collate=mix).at(torch.tensor([0, 4, 1]))
    assert again == one[1]
    assert torch.equal(torch.get_rng_state(), before)
    about = fl.Batches([1], 1, collate=mix).about()
    assert about["collate"].endswith("mix")
