"""PackedRows sequences, from which a language model learns as from each text alone."""

from __future__ import annotations

import functools
import itertools
import random
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import fnloop as fl
from fnloop.data.packing import best_fit
from fnloop.data.sources import one_epoch

SIZE, WORDS = 16, 11


@given(st.lists(st.integers(1, 20), min_size=1, max_size=80))
@settings(deadline=None, max_examples=100)
def test_each_example_is_in_one_row_which_holds_it(lengths: list[int]) -> None:
    rows = best_fit(lengths, 20)
    assert sorted(itertools.chain(*rows)) == [*range(len(lengths))]
    totals = [sum(lengths[i] for i in row) for row in rows]
    assert max(totals) <= 20
    smallest = [min(lengths[i] for i in row) for row in rows]
    for a, b in itertools.combinations(range(len(rows)), 2):  # no row could take in another's
        assert totals[a] + smallest[b] > 20 or totals[b] + smallest[a] > 20
    assert rows == best_fit(lengths, 20) and rows == sorted(map(sorted, rows))


def fewest(lengths: list[int], size: int) -> int:
    """The fewest possible rows, by dynamic programming over sets: (rows, room used in the last)."""

    @functools.cache
    def best(left: int) -> tuple[int, int]:
        if not left:
            return 1, 0
        found = []
        for i, length in enumerate(lengths):
            if left >> i & 1:
                rows, used = best(left ^ 1 << i)
                found.append((rows, used + length) if used + length <= size else (rows + 1, length))
        return min(found)

    return best((1 << len(lengths)) - 1)[0]


def test_few_rows_more_than_the_fewest_possible() -> None:
    draw = random.Random(0)
    rows, least = 0, 0
    for _ in range(60):
        lengths = [draw.randint(1, 12) for _ in range(draw.randint(4, 9))]
        mine, possible = len(best_fit(lengths, 12)), fewest(lengths, 12)
        assert possible <= mine <= possible + 1
        rows, least = rows + mine, least + possible
    assert rows <= 1.02 * least
    many = [draw.randint(20, 100) for _ in range(2000)]
    assert len(best_fit(many, 512)) <= 1.01 * -(-sum(many) // 512)


def text(i: int) -> torch.Tensor:
    make = torch.Generator().manual_seed(i)
    return torch.randint(1, WORDS, (1 + 7 * i % 13,), generator=make)


TEXTS = [text(i) for i in range(23)]
PACKED = fl.data.pack(
    [{"tokens": x, "twice": 2 * x} for x in TEXTS], SIZE, {"tokens": 0, "twice": -1}
)


def test_rows_hold_their_texts_with_numbers_and_positions() -> None:
    found: dict[int, torch.Tensor] = {}
    for row, numbers in zip(PACKED, PACKED.rows, strict=True):
        assert row.document.shape == row.position.shape == row.batch["tokens"].shape == (SIZE,)
        for k, number in enumerate(numbers):
            inside = row.document == k + 1
            assert row.position[inside].tolist() == [*range(len(TEXTS[number]))]
            found[number] = row.batch["tokens"][inside]
            assert torch.equal(row.batch["twice"][inside], 2 * TEXTS[number])
        rest = row.document == 0
        assert row.batch["tokens"][rest].eq(0).all() and row.batch["twice"][rest].eq(-1).all()
        assert not row.position[rest].any()
    assert all(torch.equal(found[i], x) for i, x in enumerate(TEXTS))
    assert repr(PACKED) == f"pack(23 examples in {len(PACKED)} rows of 16)"


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.into(self.norm(x)).chunk(3, dim=-1)
        )
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.inner(x)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 8), nn.Embedding(SIZE, 8)
        self.blocks, self.head = nn.ModuleList([Block(8, 2), Block(8, 2)]), nn.Linear(8, WORDS)

    def forward(self, tokens: Any, position: Any, mask: Any) -> torch.Tensor:
        x = self.words(tokens) + self.places(position)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


def loss(model: Any, packed: fl.data.PackedRows) -> Any:
    tokens = packed.batch["tokens"]
    scores = model(tokens, packed.position, packed.attends())
    losses = F.cross_entropy(scores[:, :-1].mT, tokens[:, 1:], reduction="none")
    weight = packed.continues()
    return fl.Mean((weight * losses).sum(), weight.sum())


@functools.cache
def alone() -> tuple[float, int, dict[str, torch.Tensor], GPT]:
    """The mean over all predicted tokens and its gradient, from each text by itself."""
    torch.manual_seed(0)
    model = GPT().double()
    total, count = torch.zeros(()), 0
    for x in TEXTS:
        n = len(x)
        scores = model(x[None], torch.arange(n)[None], torch.ones(n, n, dtype=torch.bool).tril())
        total = total + F.cross_entropy(scores[0, :-1], x[1:], reduction="sum")
        count += n - 1
    (total / count).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(total.detach()) / count, count, grads, model


ALL = [next(iter(one_epoch(fl.Batches(PACKED, len(PACKED)))))]


@pytest.mark.parametrize("k", [1, 3])
def test_a_language_model_learns_as_from_each_text_alone(k: int) -> None:
    value, count, expected, model = alone()
    step = fl.pipe(loss, fl.grad, fl.accumulate(k))
    _, grads = step(step.init(model), ALL[0])
    assert int(grads.weight) == count
    assert float(grads.metrics["loss"]) == pytest.approx(value, rel=1e-13)
    assert grads.mean.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(grads.mean[name], gradient, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("data", [fl.Batches(PACKED, 3), DataLoader(PACKED, 2, shuffle=True)])  # type: ignore
def test_an_evaluation_is_that_of_each_text_alone(data: Any) -> None:
    value, _, _, model = alone()
    state = fl.pipe(loss, fl.grad).init(model)
    assert fl.evaluate(loss, state, data)["loss"] == pytest.approx(value, rel=1e-13)


def test_rows_are_one_graph_and_a_run_resumes_to_the_bit(tmp_path: Any) -> None:
    step = fl.compile(
        fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2))),
        backend="aot_eager",
    )
    data = fl.Batches(PACKED, 4, drop_last=True)
    start = step.init(GPT, seed=0)
    whole, history = fl.fit(step, start, data, steps=8)
    assert step.graphs == 1 and history["loss"][-1] < history["loss"][0]
    fl.fit(step, start, data, steps=3, callbacks=[fl.checkpoint(tmp_path)])
    resumed, _ = fl.fit(step, step.init(GPT, seed=1), data, steps=8, resume=tmp_path)
    assert fl.tree_equal(resumed, whole)


def test_a_document_sees_nothing_of_others() -> None:
    model = alone()[3]
    row = next(PACKED[i] for i, numbers in enumerate(PACKED.rows) if len(numbers) > 1)
    packed = fl.data.PackedRows(row.batch["tokens"][None], row.document[None], row.position[None])
    second = packed.document == 2
    before = model(packed.batch, packed.position, packed.attends())
    changed = torch.where(second, 1, packed.batch)
    after = model(changed, packed.position, packed.attends())
    assert torch.equal(before[~second], after[~second]) and before.isfinite().all()
    both = packed.attends(causal=False)
    assert torch.equal(both, both.mT) and torch.equal(both.tril(), packed.attends())


def test_a_scalar_over_rows_would_weigh_tokens_wrongly() -> None:
    def scalar(model: Any, packed: Any) -> Any:
        return loss(model, packed).value()

    step = fl.pipe(scalar, fl.grad)
    with pytest.raises(ValueError, match=r"scalar.*fl\.data\.PackedRows.*batch\.continues\(\)"):
        step(step.init(alone()[3]), ALL[0])


def test_lengths_that_are_given_spare_the_reading() -> None:
    class Texts(Dataset[Any]):
        read = 0

        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, i: int) -> Any:
            self.read += 1
            return TEXTS[i]

    texts = Texts()
    rows = fl.data.pack(texts, SIZE, 0, lengths=[len(x) for x in TEXTS])
    assert texts.read == 0 and rows.rows == PACKED.rows
    assert torch.equal(rows[1].batch, PACKED[1].batch["tokens"])
    assert texts.read == len(rows.rows[1])


A = {"x": [1, 2], "y": [3, 4]}
BOTH = {"x": 0, "y": 0}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1] * 5], 4, 0), ValueError, r"example 0 has length 5, and a row has 4\. Cut it"),
        (([[1], []], 4, 0), ValueError, "example 1 is empty"),
        (([], 4, 0), ValueError, "0 examples"),
        (([[1]], 0, 0), ValueError, r"pack\(length=.*at least 1"),
        (([[1]], 4, {}), ValueError, "at least one field"),
        (([[1]], 4, None), TypeError, "pack takes a number for each field"),
        (([[1]], 4, 0, [1, 2]), ValueError, "1 examples and 2 lengths"),
        (([[1]], 4, 0, [1.5]), TypeError, "the length of each example"),
        (([A], 4, 0), ValueError, "Name the fields that are sequences"),
        (([A], 4, {"x": 0}), ValueError, "field 'y', and pack was given 'x'"),
        (([A], 4, {"x": 0, "z": 0}), ValueError, "field 'y'"),
        (([{"x": [1]}], 4, {"x": 0, "z": 0}), ValueError, "no field 'z'"),
        (([{"x": [1, 2], "y": [3]}], 4, BOTH), ValueError, "'y' of example 0 has length 1, .* 2"),
        (([[1, 2]], 4, 0, [1]), ValueError, "Example 0 has length 2, .* packed with length 1"),
        (([[1], [0.5]], 4, 0), ValueError, "must be alike but for their length"),
        (([[1]], 4, 0.5), ValueError, "cannot hold the value 0.5"),
    ],
)
def test_what_cannot_be_packed(arguments: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        fl.data.pack(*arguments)[0]
    assert re.search(message, str(caught.value)), caught.value
