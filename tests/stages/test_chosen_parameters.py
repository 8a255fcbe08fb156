"""``grad(frozen=...)``: what is frozen keeps its bits, is not computed, and thaws by phases."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fnloop as fl
from fnloop import testing
from fnloop.loop.hyperparameters import hyperparameters


class Net(nn.Module):
    """No bias before a BatchNorm: its gradient is zero but for rounding, and Adam divides by it."""

    def __init__(self):
        super().__init__()
        self.stem = self.block(6)
        self.middle = self.block(8)
        self.head = nn.Linear(8, 3)

    def block(self, width):
        return nn.Sequential(
            nn.Linear(width, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh()
        )

    def forward(self, x):
        return self.head(self.middle(self.stem(x)))


def loss(model, batch):
    x, y = batch
    return F.cross_entropy(model(x), y)


def net():
    torch.manual_seed(0)
    return Net()


def batch(n=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def data():
    return fl.Batches(batch(24), batch_size=8, seed=3)  # three batches an epoch


def step_of(frozen, optimizer=None, grad=()):
    optimizer = optimizer or fl.optim.adamw(1e-2)
    return fl.pipe(loss, fl.grad(frozen=frozen), *grad, fl.update(optimizer))


def moved(before, after):
    """The modules of whose tensors any has changed; and those of whose parameters all have."""
    names = [*before.params, *before.buffers]
    old, new = ({**s.params, **s.buffers} for s in (before, after))
    return {name.split(".")[0] for name in names if not torch.equal(old[name], new[name])}


def by_hand(model, rates):
    """A step of torch's SGD with a learning rate for each part; others are frozen."""
    model = copy.deepcopy(model).train()
    for name, part in model.named_children():
        part.requires_grad_(name in rates)
        part.train(name in rates)
        for module in part.modules():  # no randomness: torch draws other numbers
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    groups = [{"params": model.get_submodule(n).parameters(), "lr": r} for n, r in rates.items()]
    optimizer = torch.optim.SGD(groups)
    loss(model, batch()).backward()
    optimizer.step()
    return model


@pytest.mark.parametrize(
    "frozen",
    [
        ["stem", "middle"],
        ["stem.*", "middle.*"],
        lambda name, p: not name.startswith("head"),
    ],
    ids=["modules", "globs", "function"],
)
def test_a_step_is_that_of_torch_with_the_rest_in_evaluation_mode(frozen):
    model = net()
    step = step_of(frozen, fl.optim.sgd(0.1))
    new, _ = step(step.init(model), batch())
    expected = by_hand(model, {"head": 0.1}).state_dict()
    for name, value in {**new.params, **new.buffers}.items():
        torch.testing.assert_close(value, expected[name])
        if "head" not in name:
            assert torch.equal(value, expected[name])


WAYS = {
    "eager": lambda s: s,
    "compiled": lambda s: fl.compile(s, backend="aot_eager"),
    "vmapped": lambda s: fl.stage(
        torch.func.vmap(s, in_dims=(0, None), randomness="different"), "step"
    ),
}


def stacked(state):
    """The state of a population of two."""
    return fl.tree_map(lambda leaf: torch.stack([leaf, leaf]), state)


@pytest.mark.parametrize("grad", [[], [fl.accumulate(3)]], ids=["plain", "cut"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.lightning("C13", "D10")
def test_running_statistics_keep_their_bits_in_every_form(way, grad):
    step = step_of(["stem", "middle"], grad=grad)
    state = before = step.init(net())
    run = WAYS[way](step)
    if way == "vmapped":
        state = before = stacked(state)
    for i in range(3):
        state, _ = run(state, batch(seed=i))
    assert moved(before, state) == {"head"}


def test_a_norm_alone_may_be_frozen():
    step = step_of("*.1.*")
    before = step.init(net())
    after, _ = step(before, batch())
    assert after.buffers == before.buffers
    kept = {n for n in before.params if torch.equal(after.params[n], before.params[n])}
    assert kept == {"stem.1.weight", "stem.1.bias", "middle.1.weight", "middle.1.bias"}


def test_a_module_with_something_to_train_stays_in_training_mode():
    step, weight, mean = step_of("stem.0"), "stem.0.weight", "stem.1.running_mean"
    before = step.init(net())
    after, _ = step(before, batch())
    assert torch.equal(after.params[weight], before.params[weight])
    assert not torch.equal(after.buffers[mean], before.buffers[mean])


def test_the_mode_is_that_of_each_call():
    seen = []

    def looking(model, batch):
        seen.append([model.stem.training, model.middle[2].training, model.head.training])
        return loss(model, batch)

    def step_with(frozen):
        return fl.pipe(looking, fl.grad(frozen=frozen), fl.update(fl.optim.sgd(0.1)))

    cold, warm = step_with("stem"), step_with(())
    state = warm.init(net())
    for step in (cold, warm, cold):
        step(state, batch())
    fl.evaluate(looking, state, [batch()])
    assert seen == [[False, True, True], [True, True, True], [False, True, True], [False] * 3]


PHASES = fl.schedules.by_epoch({0: ["stem", "middle"], 1: "stem", 2: None})
IN_STEPS = fl.schedules.by_step({0: ["stem", "middle"], 3: "stem", 6: None})
TRAINED = [{"head"}, {"head", "middle"}, {"head", "middle", "stem"}]


@pytest.mark.parametrize(
    ("phases", "compiled"), [(PHASES, False), (IN_STEPS, False), (PHASES, True)], ids=str
)
@pytest.mark.lightning("C13", "V6")
def test_phases_thaw_one_part_after_the_other(phases, compiled):
    step = step_of(phases)
    run = fl.compile(step, backend="aot_eager") if compiled else step
    state = step.init(net())
    assert set(state["update"]["adamw"]["mu"]) == set(state.params)
    for i in range(9):
        before = state
        state, _ = fl.fit(run, state, data(), steps=1)
        assert moved(before, state) == TRAINED[i // 3]
        mu, old = state["update"]["adamw"]["mu"], before["update"]["adamw"]["mu"]
        assert {n.split(".")[0] for n in mu if not torch.equal(mu[n], old[n])} == TRAINED[i // 3]
    if compiled:
        assert run.graphs == 3


@pytest.mark.parametrize("phases", [PHASES, IN_STEPS], ids=["by epoch", "by step"])
def test_a_run_goes_on_with_the_same_bits_within_and_at_the_border_of_phases(phases):
    step = step_of(phases, grad=[fl.accumulate(fl.schedules.by_epoch({1: 2}))])
    testing.check_resumes(step, step.init(net()), data(), steps=8, at=(1, 3, 4, 6, 7))


def test_one_run_with_phases_is_one_fit_after_the_other():
    def optimizer(*parts):
        return fl.optim.by_label({n: fl.optim.adamw(1e-2) for n in parts}, {n: n for n in parts})

    step = step_of(PHASES, optimizer("head", "middle", "stem"))
    one, _ = fl.fit(step, step.init(net()), data(), epochs=3)
    state = net()
    for frozen in (["stem", "middle"], ["stem"], []):
        own = [name for name in ("head", "middle", "stem") if name not in frozen]
        step = step_of(frozen, optimizer(*own))
        state, _ = fl.fit(step, step.init(state), data(), epochs=1)
    assert state == one


LOOPS = {
    "by hand": lambda step, state: step(state, batch())[0],
    "in fit": lambda step, state: fl.fit(step, state, [batch()], steps=1)[0],
    "compiled": lambda step, state: fl.fit(
        fl.compile(step, backend="aot_eager"), state, [batch()], steps=1
    )[0],
}


@pytest.mark.parametrize("way", LOOPS)
def test_what_a_later_step_freezes_keeps_its_memory_as_in_torch(way):
    optimizer = fl.optim.sgd(0.1, momentum=0.9, weight_decay=0.1)
    turns = [step_of(frozen, optimizer) for frozen in ([], ["0"], [])]
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    reference = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    state = turns[0].init(model)
    for step in (each for each in turns for _ in range(3)):
        state = LOOPS[way](step, step.init(state))
        model[0].requires_grad_(step is not turns[1])
        reference.zero_grad()
        loss(model, batch()).backward()
        reference.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-5, atol=1e-6)


SCHEMES = {
    "sgld": fl.schemes.sgld(0.3),
    "sghmc": fl.schemes.sghmc(0.3),
    "lookahead": fl.schemes.lookahead(k=2),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_stages_around_update_leave_alone_what_is_frozen_for_now(name):
    def step_with(frozen):
        return fl.pipe(loss, fl.grad(frozen=frozen), fl.update(fl.optim.sgd(0.1)), SCHEMES[name])

    phases = fl.schedules.by_step({0: None, 3: "stem"})
    by_phases = one_by_one = step_with(phases).init(net())
    for i in range(7):
        before = by_phases
        by_phases, _ = step_with(phases)(by_phases, batch())
        assert ("stem" in moved(before, by_phases)) == (i < 3)
        step = step_with("stem" if i >= 3 else [])
        one_by_one, _ = step(step.init(one_by_one), batch())
    assert by_phases == one_by_one


def test_what_is_trained_now_is_known_of_parts_too():
    phases = fl.schedules.by_step({0: None, 3: "stem"})
    parts = {name: fl.pipe(loss, fl.grad(frozen=phases)) for name in ("a", "b")}
    labels = {"head": "none", "*": "some"}
    by_label = fl.optim.by_label({"some": fl.optim.sgd(0.1), "none": fl.optim.freeze()}, labels)
    several = fl.pipe(fl.schemes.several(**parts), fl.update(by_label))
    turns = fl.sequence(one=several, two=fl.pipe(parts["a"], fl.update(by_label)))
    for step in (several, turns, fl.pipe(turns, fl.schemes.lookahead(k=2))):
        state = step.init(net())
        for i in range(5):
            now = {name.split(".")[0] for name in step.trained_now(state)}
            assert now == ({"stem", "middle"} if i < 3 else {"middle"})
            state, _ = step(state, batch())


def test_several_steps_in_one_call_change_phase_within():
    step = step_of(fl.schedules.by_step({0: ["stem", "middle"], 2: "stem"}))
    once = fl.compile(step, backend="aot_eager")
    many = fl.compile(step, steps=4, backend="aot_eager")
    state = start = step.init(net())
    batches = [batch(seed=i) for i in range(4)]
    for each in batches:
        state, _ = once(state, each)
    assert many(start, batches)[0] == state
    assert many.graphs == 2


def flops(step, state, given):
    with FlopCounterMode(display=False) as counter:
        step(state, given)
    return counter.get_total_flops()


def test_nothing_is_computed_backward_of_what_is_frozen():
    """In multiply-adds times two, for 12 examples: forward all, backward by what is trained."""
    stem, middle, head = (2 * 12 * a * b for a, b in ((6, 8), (8, 8), (8, 3)))
    forward = stem + middle + head
    for frozen, backward in {
        ("stem", "middle"): head,  # of its weight; nothing is asked of its input
        ("stem",): 2 * head + middle,
        (): 2 * head + 2 * middle + stem,
        ("middle", "head"): head + middle + stem,  # through what is above it
    }.items():
        step = step_of(frozen)
        assert flops(step, step.init(net()), batch()) == forward + backward


def test_a_compiled_step_has_no_operations_for_what_is_frozen(caplog):
    caplog.set_level(logging.INFO, "fnloop.compile")
    counts = []
    for frozen in ((), ["stem", "middle"]):
        step = fl.compile(step_of(frozen), backend="aot_eager")
        step(step.init(net()), batch())
        counts.append(int(re.findall(r"One graph of (\d+)", caplog.text)[-1]))
    assert counts[1] < 0.7 * counts[0]


def test_adam_counts_the_steps_of_each_label_as_torch_does_those_of_a_group_added_later():
    """Its first steps after the thaw would be several times too long otherwise."""
    parts = ("head", "stem")
    model = nn.Sequential()
    torch.manual_seed(0)
    model.stem, model.head = nn.Linear(6, 8), nn.Linear(8, 3)
    optimizer = fl.optim.by_label(
        {name: fl.optim.adam(rate) for name, rate in zip(parts, (1e-2, 1e-3), strict=True)},
        {name: name for name in parts},
    )
    step = step_of(fl.schedules.by_step({0: "stem", 5: None}), optimizer)
    state = step.init(model)
    theirs = copy.deepcopy(model)
    theirs.stem.requires_grad_(False)
    torchs = torch.optim.Adam(theirs.head.parameters(), lr=1e-2)
    for i in range(12):
        if i == 5:
            theirs.stem.requires_grad_(True)
            torchs.add_param_group({"params": theirs.stem.parameters(), "lr": 1e-3})
        torchs.zero_grad()
        loss(theirs, batch(seed=i)).backward()
        torchs.step()
        state, _ = step(state, batch(seed=i))
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(state.params[name], value.detach(), rtol=1e-4, atol=1e-6)
    assert [int(state["update"][f"{name}.adam"]["count"]) for name in parts] == [12, 7]


@pytest.mark.lightning("C13", "V6")
def test_rates_by_layer_are_those_of_torchs_groups_and_each_is_reported_under_its_label():
    layers = ["head", "middle", "stem"]
    rates = {layer: 0.1 * 0.5**depth for depth, layer in enumerate(layers)}
    optimizer = fl.optim.by_label(
        {layer: fl.optim.sgd(rate) for layer, rate in rates.items()}, {n: n for n in layers}
    )
    model = net()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    step = fl.pipe(loss, fl.grad, fl.update(optimizer))
    new, metrics = step(step.init(model), batch())
    expected = by_hand(model, rates).state_dict()
    for name, value in {**new.params, **new.buffers}.items():
        torch.testing.assert_close(value, expected[name])
    assert {n: float(metrics[n]) for n in metrics if n.endswith("lr")} == {
        f"{layer}.sgd.lr": rate for layer, rate in rates.items()
    }


def test_every_reported_hyperparameter_has_its_label_and_a_rate_rises_up_to_the_heads():
    """Lightning's `backbone_initial_ratio_lr`, its doubling in each epoch, and `should_align`."""
    head, ratio, per_epoch = 0.4, 0.1, 2
    backbone = fl.schedules.join(
        (fl.schedules.exponential(head * ratio, 2.0, steps=per_epoch), fl.schedules.constant(head)),
        (4 * per_epoch,),
    )
    labels = {"head": "head", "*": "backbone"}
    optimizer = fl.optim.by_label(
        {
            "head": fl.optim.adamw(head, weight_decay=0.2),
            "backbone": fl.optim.chain(
                fl.optim.clip_by_norm(fl.schedules.constant(3.0)), fl.optim.sgd(backbone)
            ),
        },
        labels,
    )
    step = step_of(fl.schedules.by_step({0: ["stem", "middle"], 2: None}), optimizer)
    state = fl.scale(step.init(net()), "head.adamw.weight_decay", 0.5)
    found = []
    for _ in range(10):
        state, metrics = step(state, batch())
        found.append({n: float(m) for n, m in metrics.items() if "." in n})
    names = {"head.adamw.lr", "head.adamw.weight_decay", "backbone.clip_by_norm.max_norm"}
    assert found[0].keys() == {*names, "backbone.sgd.lr", "backbone.sgd.weight_decay"}
    assert all(each["head.adamw.weight_decay"] == pytest.approx(0.1) for each in found)
    rates = [0.04 * 2 ** (i / 2) for i in range(8)] + [0.4, 0.4]
    assert [each["backbone.sgd.lr"] for each in found] == pytest.approx(rates)


def test_a_part_of_a_sequence_may_be_frozen_by_phases():
    part = step_of(fl.schedules.by_step({0: "stem", 2: None}))
    step = fl.sequence(body=part, every={"body": 2})
    fast = fl.compile(step, backend="aot_eager")
    state = step.init(net())
    for i in range(6):
        before = state
        state, _ = fast(state, batch())
        assert moved(before, state) == (set() if i % 2 == 0 else TRAINED[1 if i < 2 else 2])
    assert fast.graphs == 3  # no turn; a turn with the stem frozen; one with all


def test_members_in_different_phases_are_refused():
    step = step_of(fl.schedules.by_step({0: "stem", 2: None}))
    members = torch.func.vmap(step, in_dims=(0, None), randomness="same")
    state = stacked(step.init(net()))
    with pytest.raises(ValueError, match=r"What is frozen changes.*calls, \[0, 2\]"):
        members(state.replace(calls=torch.tensor([0, 2])), batch())


def test_a_tree_is_frozen_too():
    @fl.tree
    class Line:
        w: torch.Tensor
        b: torch.Tensor

        def __call__(self, x):
            return x @ self.w + self.b

    def size(model, x):
        return model(x).square().mean()

    step = fl.pipe(size, fl.grad(frozen="b"), fl.update(fl.optim.sgd(0.1)))
    before = step.init(Line(torch.ones(6), torch.ones(())))
    after, _ = step(before, batch()[0])
    assert torch.equal(after.params["b"], before.params["b"])
    assert not torch.equal(after.params["w"], before.params["w"])


def test_steps_with_equal_sets_of_names_are_equal():
    a, b = step_of({"stem", "middle"}), step_of(["middle", "stem"])
    assert a == b
    assert repr(a) == repr(b)
    assert step_of(set()) == step_of([])


def test_explain_tells_of_the_most_parts():
    step = step_of(PHASES, grad=[fl.accumulate(fl.schedules.by_epoch({2: 3}))])
    step = fl.shard(step, fl.mesh(), "zero2")
    assert "accumulate(by_epoch({2: 3}))" in repr(step)
    state = step.init(net())
    assert fl.summary(step, state).sharded.working.backward > 0
    assert moved(state, step(state, batch())[0]) == {"head"}


def test_frozen_takes_away_from_only():
    step = fl.pipe(
        loss, fl.grad(only=["stem", "head"], frozen="stem.1"), fl.update(fl.optim.sgd(0.1))
    )
    state = step.init(net())
    assert step.trained(state) == ("stem.0.weight", "head.weight", "head.bias")
    assert "grad(only=('stem', 'head'), frozen='stem.1')" in repr(step)


def test_what_is_frozen_and_how_batches_are_cut_are_hyperparameters():
    step = step_of(PHASES, grad=[fl.accumulate(fl.schedules.by_epoch({4: 2}))])
    found = hyperparameters(step)
    assert found["accumulate.k"] == "by_epoch({4: 2})"
    assert found["grad.frozen"] == repr(PHASES)
    assert hyperparameters(step_of(["stem", "middle"]))["grad.frozen"] == "stem, middle"
    assert not [name for name in hyperparameters(step_of([])) if "frozen" in name]


@pytest.mark.parametrize("optimizer", [fl.optim.adam(1e-2), fl.optim.sgd(1e-2)])
@pytest.mark.filterwarnings("ignore:.*leaves that `like` has no place for")
def test_a_run_that_is_resumed_with_other_parts_frozen_says_so(optimizer, tmp_path):
    def resumed(frozen, folder, **options):
        step = step_of(frozen, optimizer)
        saving = [fl.checkpoint(tmp_path / folder)]
        return fl.fit(step, step.init(net()), data(), callbacks=saving, **options)[1].resumed

    resumed("stem", "a", epochs=1)
    told = str(resumed([], "a", epochs=2, resume=tmp_path / "a"))
    assert "grad.frozen: stem -> gone" in told
    fresh = "update: fresh memory for stem.0.weight, stem.1.weight, stem.1.bias"
    assert (fresh in told) == isinstance(optimizer, type(fl.optim.adam()))
    resumed([], "b", epochs=1)
    told = str(resumed("stem", "b", epochs=2, resume=tmp_path / "b"))
    assert "grad.frozen: new, stem" in told and "fresh" not in told


@pytest.mark.parametrize(
    ("frozen", "error", "match"),
    [
        (3, TypeError, r"grad\(frozen=\.\.\.\) takes a pattern such as \"backbone\".*got 3"),
        ({0: "stem"}, TypeError, r"by_epoch\(\{0: \"backbone\", 3: None\}\); got \{0: 'stem'\}"),
        ("nope", ValueError, r"'nope' fits no parameter"),
        ("*", ValueError, r"freezes all that is trained.*stem\.0\.weight"),
        (fl.schedules.by_epoch({2: "*"}), ValueError, "freezes all that is trained"),
        (fl.schedules.by_epoch({2: "nope"}), ValueError, "'nope' fits no parameter"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_the_first_step(frozen, error, match):
    with pytest.raises(error, match=match):
        step_of(frozen).init(net())


def test_a_label_without_anything_to_train_says_that_what_is_frozen_is_not_there():
    optimizer = fl.optim.by_label(
        {"stem": fl.optim.sgd(0.1), "rest": fl.optim.sgd(0.1)}, {"stem": "stem", "*": "rest"}
    )
    with pytest.raises(ValueError, match=r"'stem' fits no.*of those that are trained: middle"):
        step_of("stem", optimizer).init(net())
