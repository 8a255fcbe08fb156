"""Random numbers of a stage: a function of key, calls, micro-batch and name."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fnloop as fl

MEMBERS = 3
SHARED = torch.linspace(0.1, 0.9, MEMBERS * 4).reshape(MEMBERS, 4)  # as many rows as members


def start(seed=0):
    return fl.grad(lambda model, x: model(x).mean()).init(torch.nn.Linear(2, 1), seed=seed)


def draw(state, name="noise"):
    with fl.randomness(state, name):
        return torch.rand(5)


def test_it_repeats_and_starts_from_the_state_alone():
    state = start()
    first = draw(state)
    torch.manual_seed(7)
    assert torch.equal(first, draw(state)) and torch.equal(first, draw(start()))


@pytest.mark.lightning("Z1")
def test_it_differs_by_name_call_micro_batch_and_key():
    state = start()
    drawn = [
        draw(state),
        draw(state, "other"),
        draw(state.replace(calls=state.calls + 1)),
        draw(state.within(micro=1)),
        draw(start(seed=1)),
        draw(state.replace(calls=state.calls + 1).within(micro=1)),
    ]
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(drawn)


def test_neither_step_nor_cursor_nor_parameters_matter():
    state = start()
    other = state.replace(
        step=state.step + 1, cursor=state.cursor + 1, params=state.params.scale(2.0)
    )
    assert torch.equal(draw(state), draw(other))


def test_the_global_generator_is_put_back_also_after_an_error():
    state, before = start(), torch.get_rng_state()
    draw(state)
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(RuntimeError, match="boom"), fl.randomness(state, "noise"):
        torch.rand(3)
        raise RuntimeError("boom")
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_nest():
    state = start()
    with fl.randomness(state, "outer"):
        whole = torch.rand(2), torch.rand(2)
    with fl.randomness(state, "outer"):
        first = torch.rand(2)
        inner = draw(state)
        second = torch.rand(2)
    assert torch.equal(inner, draw(state))
    assert torch.equal(first, whole[0]) and torch.equal(second, whole[1])


def test_a_loss_draws_from_the_stream_of_its_name():
    seen = []
    stage = fl.grad(lambda model, x: (seen.append(torch.rand(5)), model(x).mean())[1])
    state = stage.init(torch.nn.Linear(2, 1))
    stage(state, torch.ones(3, 2))
    assert torch.equal(seen[0], draw(state, "loss"))


DRAWS = {
    "rand": lambda x: torch.rand(4),
    "rand, as many as members": lambda x: torch.rand(MEMBERS, MEMBERS),
    "randn": lambda x: torch.randn(MEMBERS, 2),
    "randint": lambda x: torch.randint(0, 100, (MEMBERS,)),
    "rand_like": torch.rand_like,
    "rand_like of a row": lambda x: torch.rand_like(x[0]),
    "rand_like of what all share": lambda x: torch.rand_like(SHARED),
    "randn_like": torch.randn_like,
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout of what all share": lambda x: F.dropout(SHARED, 0.5),
    "dropout of channels": lambda x: F.dropout1d(x, 0.5),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.5),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli of what all share": lambda x: torch.bernoulli(SHARED),
    "normal_": lambda x: x.clone().normal_(1.0, 2.0),
    "normal": lambda x: torch.normal(SHARED, 1.0),
    "randperm": lambda x: torch.randperm(7),
    "randperm, as many as members": lambda x: torch.randperm(MEMBERS),
    "two randperms": lambda x: torch.stack([torch.randperm(7), torch.randperm(7)]),
    "multinomial": lambda x: torch.multinomial(x.abs(), 2),
    "multinomial of a row": lambda x: torch.multinomial(x[0].abs(), 2),
    "multinomial of what all share": lambda x: torch.multinomial(SHARED, 2),
    "in a row": lambda x: torch.rand(4) + torch.randperm(4) + x[0].clone().normal_(),
    "nothing": lambda x: x + 1,
}


def members(seeds=range(MEMBERS)):
    states = [start(seed) for seed in seeds]
    return states, fl.tree_map(lambda *leaves: torch.stack(leaves), *states)


@pytest.mark.parametrize("what", DRAWS)
def test_each_member_draws_to_the_bit_what_it_draws_alone(what):
    states, together = members()
    x = torch.randn(MEMBERS, MEMBERS, 4, generator=torch.Generator().manual_seed(0))

    def run(state, x):
        with fl.randomness(state, "noise"):
            return DRAWS[what](x)

    before = torch.get_rng_state()
    drawn = torch.func.vmap(run, randomness="different")(together, x)
    alone = [run(state, part) for state, part in zip(states, x, strict=True)]
    assert torch.equal(before, torch.get_rng_state())
    assert drawn.shape == torch.stack(alone).shape
    assert all(map(torch.equal, drawn, alone))
    if what != "nothing":
        assert not all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_members_may_differ_by_their_calls_alone():
    state = start()
    calls = torch.arange(3)
    drawn = torch.func.vmap(lambda c: draw(state.replace(calls=c)), randomness="different")(calls)
    for count, numbers in zip(calls, drawn, strict=True):
        assert torch.equal(numbers, draw(state.replace(calls=count)))


def test_members_of_one_key_may_draw_the_same():
    state = start()
    drawn = torch.func.vmap(lambda x: draw(state) + x, randomness="same")(torch.zeros(2))
    assert torch.equal(drawn[0], draw(state)) and torch.equal(drawn[1], draw(state))


def test_the_same_numbers_for_different_keys_are_refused():
    _, together = members()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r'different keys.*randomness="different"'):
        torch.func.vmap(draw, randomness="same")(together)
    assert torch.equal(before, torch.get_rng_state())
    assert draw(start()).shape == (5,)  # nobody holds the generators any more


def test_dropout_in_a_step_of_many_members():
    net = lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))  # noqa: E731
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(fl.optim.sgd(0.1)))
    fl.testing.check_vmaps(step, [step.init(net, seed=seed) for seed in range(3)], torch.ones(4, 4))


class Transposed(torch.nn.Module):
    """A parameter, and a gradient, whose memory does not lie in the order of its values."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(5, 4))
        self.second = torch.nn.Parameter(torch.ones(5, 8).t())

    def forward(self, x):
        return (x @ self.first.t()).tanh() @ self.second.t()


@pytest.mark.parametrize("name", ["sgld", "noise", "dp_sgd"])
def test_what_a_tensor_is_given_does_not_depend_on_how_it_lies_in_memory(name):
    optimizer, part = fl.optim.sgd(0.1), {"dp_sgd": [fl.schemes.dp_sgd(1.0, 1.0)]}.get(name, [])
    if name == "noise":
        optimizer = fl.optim.chain(fl.optim.noise(0.3), optimizer)
    after = [fl.schemes.sgld(0.1)] if name == "sgld" else []
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    step = fl.pipe(loss, fl.grad, *part, fl.update(optimizer), *after)
    x = torch.ones(6, 4)
    fl.testing.check_layouts(step, step.init(Transposed), x)
    fl.testing.check_vmaps(step, [step.init(Transposed, seed=i) for i in range(3)], x)


def test_a_stream_in_a_stream_draws_for_each_member_as_it_does_alone():
    """With as many members as a tensor has rows, which must not be mistaken for them."""

    def draw(state):
        with fl.randomness(state, "outer"):
            first = torch.rand(MEMBERS, 2)
            with fl.randomness(state, "inner"):
                second = torch.rand(MEMBERS, 2)
                with fl.randomness(state, "innermost"):
                    third = torch.rand(2)
            return first, second, third, torch.rand(MEMBERS)

    states = [start(seed) for seed in range(MEMBERS)]
    stacked = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    together = torch.func.vmap(draw, randomness="different")(stacked)
    for i, state in enumerate(states):
        for ours, alone in zip(together, draw(state), strict=True):
            assert torch.equal(ours[i], alone)
