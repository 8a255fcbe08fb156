"""Random operations are noted, drawn beforehand, and put in place."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fnloop._torch.draws import Draws, Maker, RandomnessError, draw
from fnloop._torch.fakes import fake_mode
from fnloop._torch.members import drawing
from fnloop._torch.random import is_random, seeded


def drawn_at_once(place, maker):
    return maker()


def note(function, micro=(0,)):
    """The draws of a function that is run on tensors without values."""
    draws = Draws(drawn_at_once)
    with fake_mode(), draws, draws.block(micro):
        function()
    return draws


def drawn(draws, seeds):
    blocks = range(len(draws.seeds))
    makers = [[m for place, m in draws.found.items() if place.block == i] for i in blocks]
    values = draw(makers, [[seed] for seed in seeds], torch.device("cpu"))
    return dict(zip(draws.found, values, strict=True))


def replay(function, values):
    draws = Draws(lambda place, maker: values[place])
    with draws, draws.block((0,)):
        return function()


def many():
    x = torch.ones(3, 4)
    return [
        torch.rand(5),
        torch.randn_like(x.t()),
        torch.randperm(6),
        torch.empty(2, 2).normal_(1.0, 3.0),
        torch.bernoulli(x, 0.4),
        F.dropout(x, 0.5),
        torch.randint(0, 9, (4,)),
        *torch.native_dropout(x.t(), 0.5, True),
        *torch.native_dropout(x.half(), 1.0, True),
    ]


def test_what_is_put_in_place_is_what_torchs_generator_draws():
    with seeded(11):
        expected = many()
    got = replay(many, drawn(note(many), [11]))
    for a, b in zip(expected, got, strict=True):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.equal(a, b)


def test_each_block_starts_from_its_seed():
    draws = Draws(drawn_at_once)
    with fake_mode(), draws:
        for position in ((0, "loss"), (1, "loss"), (0, "loss")):
            with draws.block(position):
                torch.rand(3)
    assert draws.seeds == [(0, "loss"), (1, "loss"), (0, "loss")]
    first, second, third = drawn(draws, [5, 6, 5]).values()
    with seeded(6):
        assert torch.equal(second, torch.rand(3))
    assert torch.equal(first, third) and not torch.equal(first, second)


def test_who_sets_the_generator_back_draws_the_same_again():
    def twice():
        state = torch.get_rng_state()
        first = torch.rand(3)
        between = torch.rand(2)
        torch.set_rng_state(state)
        return first, torch.rand(3), between, torch.rand(2)

    draws = note(twice)
    assert len(draws.found) == 2
    first, again, between, once_more = replay(twice, drawn(draws, [3]))
    assert torch.equal(first, again) and torch.equal(between, once_more)

    def otherwise():
        state = torch.get_rng_state()
        torch.rand(3)
        torch.set_rng_state(state)
        torch.randn(3)

    with pytest.raises(RandomnessError, match="set back"):
        note(otherwise)


def test_the_global_generator_stays_where_it_was():
    before = torch.get_rng_state()
    replay(many, drawn(note(many), [11]))
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_written_into_a_drawn_tensor_does_not_reach_the_next_run():
    values = drawn(note(lambda: torch.rand(3)), [1])
    kept = {place: t.clone() for place, t in values.items()}
    replay(lambda: torch.rand(3).zero_(), values)
    assert all(torch.equal(values[place], t) for place, t in kept.items())


def attention(**options):
    q = torch.ones(1, 2, 3, 4)
    return F.scaled_dot_product_attention(q, q, q, **options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"dropout_p": 0.0}])
def test_attention_without_dropout_draws_nothing(options):
    assert not note(lambda: attention(**options)).found


def test_attention_with_dropout_draws_once():
    assert len(note(lambda: attention(dropout_p=0.5)).found) == 1


def test_dropout_of_a_gpu_draws_nothing_in_evaluation():
    assert not note(lambda: torch.native_dropout(torch.ones(3), 0.5, False)).found


@pytest.mark.parametrize(
    ("dropout", "train", "draws"), [(0.0, True, False), (0.3, True, True), (0.3, False, False)]
)
def test_recurrent_layers_of_cudnn_draw_if_they_have_dropout(dropout, train, draws):
    x = torch.ones(2, 3, 4)
    arguments = (x, [x], 4, None, x, x, 2, 4, 0, 1, True, dropout, train, False, [], None)
    assert is_random(torch.ops.aten._cudnn_rnn.default, arguments, {}) is draws


@pytest.mark.parametrize(
    "function, message",
    [
        (
            lambda: torch.ops.aten._scaled_dot_product_flash_attention(
                *[torch.ones(1, 2, 8, 8)] * 3, dropout_p=0.5
            ),
            "SDPBackend.MATH",
        ),
        (lambda: torch.multinomial(torch.ones(3), 2, True), "depend on a tensor's values"),
        (lambda: torch.bernoulli(torch.ones(3).half()), "depend on a tensor's values"),
        (lambda: torch.empty(3).bernoulli_(torch.ones(3)), "depend on a tensor's values"),
        (lambda: torch.rand(3, generator=torch.Generator()), "generator of its own"),
        (lambda: (torch.manual_seed(3), torch.rand(3)), "manual_seed"),
    ],
)
def test_what_is_refused(function, message):
    before = torch.get_rng_state()
    try:
        with pytest.raises(RandomnessError, match=message):
            note(function)
    finally:
        torch.set_rng_state(before)


def test_outside_of_a_block_nothing_may_be_drawn():
    with (
        fake_mode(),
        Draws(drawn_at_once),
        pytest.raises(RandomnessError, match="outside of the loss"),
    ):
        torch.rand(3)


def test_members_draw_what_each_draws_alone():
    draws = note(lambda: (torch.rand(2, 3), torch.empty(2, 4).normal_()))
    makers = [list(draws.found.values())]
    first, second = draw(makers, [[3, 8]], torch.device("cpu"))
    for i, seed in enumerate((3, 8)):
        with seeded(seed):
            assert torch.equal(first[i], torch.rand(3))
            assert torch.equal(second[i], torch.empty(4).normal_())


def test_members_drop_out_what_each_drops_out_alone():
    """By the operation that dropout is on a GPU, which returns two tensors."""
    drop = lambda x: torch.native_dropout(x, 0.5, True)  # noqa: E731
    x = torch.ones(2, 3, 4)
    with drawing([3, 8], torch.device("cpu")):
        values, masks = torch.func.vmap(drop, randomness="different")(x)
    for i, seed in enumerate((3, 8)):
        with seeded(seed):
            value, mask = drop(x[i])
        assert torch.equal(values[i], value) and torch.equal(masks[i], mask)


def test_masks_of_dropout_are_booleans_until_they_are_read():
    maker = Maker(
        torch.ops.aten.bernoulli_.float,
        (0.75,),
        {},
        ((1000,), (1,), torch.float32, torch.device("cpu")),
    )
    (mask,) = draw([[maker]], [[3]], torch.device("cpu"))
    torch.manual_seed(3)
    assert mask.dtype is torch.bool
    assert torch.equal(mask.float(), torch.empty(1000).bernoulli_(0.75))
