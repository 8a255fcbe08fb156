"""What a loss does not reach is left alone with its memory, as ``torch.optim`` leaves it."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl
from fnloop import optim, schedules
from fnloop.transforms.plan import packed
from fnloop.trees.paths import tree_paths

OPTIMIZERS = {
    "sgd": optim.sgd(0.1, weight_decay=0.1),
    "sgd momentum": optim.sgd(0.1, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "sgd nesterov": optim.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optim.adam(0.1, weight_decay=0.1, amsgrad=True),
    "adamw": optim.adamw(schedules.cosine(0.1, steps=10, warmup=2)),
    "adamax": optim.adamax(0.1),
    "nadam": optim.nadam(0.1, weight_decay=0.1, decoupled=True),
    "radam": optim.radam(0.1, b2=0.9),
    "rmsprop": optim.rmsprop(0.1, momentum=0.9, centered=True),
    "adagrad": optim.adagrad(0.1, lr_decay=0.1, initial_accumulator=0.1),
    "adadelta": optim.adadelta(1.0),
    "adafactor": optim.adafactor(0.1, weight_decay=0.1),
    "lion": optim.lion(0.1, weight_decay=0.1),
    "lamb": optim.lamb(0.1),
    "soap": optim.soap(0.1, every=1),
    "schedule_free": optim.schedule_free(optim.adamw(0.1, b1=0.0)),
    "chain": optim.chain(
        optim.clip_by_norm(1.0),
        optim.add_decayed_weights(0.1),
        optim.clip_by_value(0.5),
        optim.adamw(0.1),
        optim.scale_by(0.7),
    ),
    "masked": optim.chain(
        optim.masked(optim.add_decayed_weights(0.1), ["a"]), optim.sgd(0.1, momentum=0.9)
    ),
    "by_label": optim.by_label(
        {"a": optim.adamw(0.1), "b": optim.sgd(0.1, momentum=0.9), "rest": optim.lion(0.1)},
        {"a": "a", "b": "b", "*": "rest"},
    ),
    "muon": optim.by_label(
        {"matrix": optim.muon(0.1), "rest": optim.adamw(0.1)},
        lambda name, p: "matrix" if p.ndim == 2 else "rest",
    ),
}
BRIDGED = {
    "from_torch": optim.from_torch(torch.optim.RMSprop, lr=0.1, momentum=0.9),
    "from_torch adam": optim.from_torch(torch.optim.Adam, lr=0.1, weight_decay=0.1),
}
every = pytest.mark.parametrize("name", OPTIMIZERS)
every_and_bridged = pytest.mark.parametrize("name", [*OPTIMIZERS, *BRIDGED])


def optimizer_of(name):
    return {**OPTIMIZERS, **BRIDGED}[name]


class Heads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = (torch.nn.Linear(3, 3) for _ in range(3))


def loss_a(model, x):
    return model.a(model.body(x).tanh()).square().mean()


def loss_b(model, x):
    return model.b(model.body(x).tanh()).square().mean()


def head_of(model, x):
    """The micro-batch says by its sign which head it is for."""
    return loss_a(model, x) if float(x[0, 0]) > 0 else loss_b(model, x)


def steps_of(optimizer, *stages):
    return [fl.pipe(loss, fl.grad, *stages, fl.update(optimizer)) for loss in (loss_a, loss_b)]


def start(step):
    return step.init(Heads, seed=3)


def batch(seed=0):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


def of(state, head):
    """What the state holds of one head: its parameters and their memory, by path."""
    leaves = {p: leaf.clone() for p, leaf in zip(tree_paths(state), leaves_of(state), strict=True)}
    return {path: leaf for path, leaf in leaves.items() if f"/{head}." in path}


def leaves_of(state):
    from fnloop.trees.paths import tree_items

    return [leaf for _, leaf in tree_items(state)]


def check_left_alone(before, after, head="b"):
    mine, theirs = of(before, head), of(after, head)
    assert len(mine) >= 2 and fl.tree_equal(mine, theirs), fl.tree_diff(mine, theirs)
    reached = "a" if head == "b" else "b"
    assert not fl.tree_equal(of(before, reached), of(after, reached))
    assert int(after.step) == int(before.step) + 1


@every_and_bridged
@pytest.mark.parametrize("layout", ["separate", "packed"])
def test_eager(name, layout):
    step_a, step_b = steps_of(optimizer_of(name))
    state = start(step_a)
    if layout == "packed":
        state = packed(state)
    for i, (step, other) in enumerate([(step_a, "b"), (step_b, "a"), (step_a, "b")]):
        after, metrics = step(state, batch(i))
        assert float(metrics["skipped"]) == 0
        check_left_alone(state, after, other)
        fl.testing.check_stable(step, state, batch(i))
        state = after


@every
@pytest.mark.parametrize("donate", [False, True])
def test_compiled(name, donate):
    plain = steps_of(optimizer_of(name))
    fast = [fl.compile(step, donate=donate, backend="aot_eager") for step in plain]
    state = expected = start(plain[0])
    state = fl.tree_map(torch.clone, state)
    for i, which in enumerate((0, 1, 0)):
        before = fl.tree_map(torch.clone, state)
        state, _ = fast[which](state, batch(i))
        expected, _ = plain[which](expected, batch(i))
        check_left_alone(before, state, "ba"[which])
        rtol = 0.02 if name == "muon" else 1e-4
        torch.testing.assert_close(dict(state.params), dict(expected.params), rtol=rtol, atol=1e-4)


@every_and_bridged
def test_accumulated_it_is_reached_if_one_micro_batch_reaches_it(name):
    optimizer = optimizer_of(name)
    step = fl.pipe(head_of, fl.grad, fl.accumulate(2), fl.update(optimizer))
    state = start(step)
    x = batch().abs()
    after, _ = step(state, fl.data.Micro((x, x[:2])))
    check_left_alone(state, after)
    for parts in ((x, -x), (-x, x)):  # the mean of a gradient and of nothing: half of it
        both, _ = step(state, fl.data.Micro(parts))

        def whole(model, x):
            return (loss_a(model, x) + loss_b(model, -x)) / 2

        expected, _ = fl.pipe(whole, fl.grad, fl.update(optimizer))(state, x)
        for head in ("a", "b"):
            assert not fl.tree_equal(of(state, head), of(both, head))
        rtol, atol = (0.05, 1e-2) if name == "muon" else (1e-4, 1e-5)
        if name not in ("lion", "by_label"):  # a sign of rounding
            torch.testing.assert_close(
                dict(both.params), dict(expected.params), rtol=rtol, atol=atol
            )


@every_and_bridged
def test_a_step_that_is_skipped_leaves_everything_alone(name):
    step, _ = steps_of(optimizer_of(name))
    state, _ = step(start(step), batch())
    fl.testing.check_skips(step, state, torch.full((4, 3), torch.nan))


def test_a_masked_optimizer_of_which_nothing_is_reached_rests_with_its_count():
    step_a, step_b = steps_of(optim.masked(optim.adamw(0.1), ["a"]))
    state, _ = step_a(start(step_a), batch())
    after, _ = step_b(state, batch(1))
    assert fl.tree_equal(state["update"], after["update"])
    assert fl.tree_equal(state.params, after.params) and int(after.step) == 2
    again, _ = step_a(after, batch(2))
    assert float(again["update"]["adamw"]["count"]) == 2


@every
def test_vmapped(name):
    step, _ = steps_of(optimizer_of(name))
    states = [step.init(Heads, seed=seed) for seed in range(2)]
    stacked = fl.tree_map(lambda *leaves: torch.stack(leaves), *states)
    after, _ = torch.func.vmap(step, in_dims=(0, None), randomness="different")(stacked, batch())
    for i, state in enumerate(states):
        check_left_alone(state, fl.tree_map(lambda leaf, i=i: leaf[i], after))


@pytest.mark.parametrize(
    ("cls", "keywords"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 0.1}),
        (torch.optim.NAdam, {"lr": 0.1}),
        (torch.optim.RMSprop, {"lr": 0.1, "centered": True, "momentum": 0.5}),
        (torch.optim.Rprop, {"lr": 0.1}),
        (torch.optim.ASGD, {"lr": 0.1}),
        (torch.optim.Adafactor, {}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_from_torch_is_torch_with_gradients_of_none(cls, keywords):
    model = fl.to_module(start(steps_of(optim.sgd(0.1))[0]))
    plain = steps_of(optim.from_torch(cls, **keywords))
    state = plain[0].init(model)
    reference = cls(model.parameters(), **keywords)
    for i, which in enumerate([0, 0, 1, 0, 1, 1, 0]):  # the second head begins later
        state, _ = plain[which](state, batch(i))
        reference.zero_grad(set_to_none=True)
        (loss_a, loss_b)[which](model, batch(i)).backward()
        assert (model.b.weight.grad is None) == (which == 0)
        reference.step()
        for n, p in model.named_parameters():
            torch.testing.assert_close(state.params[n], p.detach(), rtol=1e-5, atol=1e-6)


def test_plain_sgd_of_ours_too_is_torch_with_gradients_of_none():
    plain = steps_of(optim.sgd(0.1, momentum=0.9, weight_decay=0.1))
    state = start(plain[0])
    model = fl.to_module(state)
    reference = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for i, which in enumerate([0, 0, 1, 0, 1]):
        state, _ = plain[which](state, batch(i))
        reference.zero_grad(set_to_none=True)
        (loss_a, loss_b)[which](model, batch(i)).backward()
        reference.step()
        for n, p in model.named_parameters():
            torch.testing.assert_close(state.params[n], p.detach(), rtol=1e-5, atol=1e-6)
