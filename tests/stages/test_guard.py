"""A guarded run against the run of the batches that it accepts."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import testing
from fnloop.rules.finiteness import nonfinite
from fnloop.rules.spikes import spike
from fnloop.stages.guard import guard


class Net(nn.Module):
    """BatchNorm, dropout, a buffer of integers and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5, bias=False)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(5, 3)
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.first(x)).tanh()) * self.frozen)


def loss(model, batch):
    x, y, _ = batch
    scores = model(x)
    return F.cross_entropy(scores, y), {"marked": fl.Max(batch[2].max())}


def batch(seed, bad=False):
    """The metric `marked` of a bad one is 1."""
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(seed))
    return x, x[:, :3].argmax(1), torch.full((7,), float(bad))


def marked(state, metrics):
    return state, {**metrics, "bad": metrics["marked"].value() > 0}


def never(state, metrics):
    return state, {**metrics, "bad": False}


def pipe(*after, grad=()):
    adamw = fl.optim.adamw(fl.schedules.cosine(1e-2, steps=20, warmup=3))
    chain = fl.optim.chain(fl.optim.clip_by_norm(1.0), adamw)
    return fl.pipe(loss, fl.grad, *grad, fl.update(chain), fl.ema(0.9), *after)


def states_of(step, batches):
    torch.manual_seed(0)
    state, states, reports = step.init(Net()), [], []
    states.append(state)
    for x in batches:
        state, metrics = step(state, x)
        states.append(state)
        reports.append(metrics)
    return states, reports


def trained(state, slots=("update", "ema")):
    """All that a step changes, but for the guard's own memory."""
    return state.replace(slots={name: state.slots[name] for name in slots})


KINDS = {
    "skip": guard(never),
    "rewind": guard(never, then="rewind", every=2),
    "spike": guard(spike("loss", sigmas=1e6, warmup=2)),
    "nonfinite": guard(nonfinite("loss", patience=2), then="rewind", every=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_long_as_the_rule_is_silent_nothing_changes(kind):
    batches = [batch(i) for i in range(6)]
    expected, reports = states_of(pipe(), batches)
    got, reported = states_of(pipe(KINDS[kind]), batches)
    for a, b in zip(expected, got, strict=True):
        assert fl.tree_diff(a, trained(b)) == ""
    for a, b in zip(reports, reported, strict=True):
        assert float(b.pop("guard")) == 0
        assert list(a) == list(b) and a == b


@pytest.mark.lightning("C18")
def test_a_step_that_is_skipped_might_as_well_not_have_been():
    batches = [batch(i, bad=i in (0, 3, 4)) for i in range(7)]
    got, _ = states_of(pipe(guard(marked)), batches)
    assert [int(s.step) for s in got] == [0, 0, 1, 2, 2, 2, 3, 4]
    step, expected = pipe(), [trained(got[0])]
    for x in batches:  # but for the count of calls, and with it the masks of dropout
        state = expected[-1]
        expected.append(called(state, state) if x[2].any() else step(state, x)[0])
    for a, b in zip(expected, got, strict=True):
        assert fl.tree_diff(a, trained(b)) == ""


def test_the_metrics_of_a_bad_step_are_blank():
    _, (good, bad) = states_of(pipe(guard(marked)), [batch(0), batch(1, bad=True)])
    assert list(good) == list(bad) and "bad" not in bad
    assert (float(good["guard"]), float(good["skipped"])) == (0, 0)
    assert (float(bad["guard"]), float(bad["skipped"])) == (1, 1)
    assert bad["loss"].weight == 0 and float(bad["marked"]) == -torch.inf
    merged = fl.metrics.merge([good, bad])
    assert float(merged["loss"]) == float(good["loss"])
    assert float(merged["guard"]) == 1
    assert float(bad["adamw.lr"]) > 0


def called(state, before):
    """`state`, where the training step has been called once more since `before`."""
    return state.replace(calls=before.calls + 1)


def rewound(batches, every, step):
    """What a rewinding guard does, from its description: snapshots of the accepted states."""
    torch.manual_seed(0)
    state = step.init(Net())
    states, older, newer, since = [state], state, state, 0
    for x in batches:
        if x[2].any():
            state, newer, since = called(older, state), older, 0
        else:
            state, since = step(state, x)[0], since + 1
            if since == every:
                older, newer, since = newer, state, 0
        states.append(state)
    return states


BAD_AT = (5, 6, 7, 12, 13, 22)


@pytest.mark.parametrize("every", [1, 2, 3, 100])
def test_rewinding_goes_back_to_a_snapshot_and_on_with_other_batches(every):
    batches = [batch(i, bad=i in BAD_AT) for i in range(25)]
    expected = rewound(batches, every, pipe())
    got, reports = states_of(pipe(guard(marked, then="rewind", every=every)), batches)
    for a, b in zip(expected, got, strict=True):
        assert fl.tree_diff(a, trained(b)) == ""
    for i, at in enumerate(BAD_AT):
        assert float(reports[at]["guard"]) == 1, i
        back = int(got[at].step) - int(got[at + 1].step)
        assert 0 <= back < 2 * every
    assert sum(float(m["guard"]) for m in reports) == len(BAD_AT)
    if every == 2:
        assert [int(s.step) for s in got[5:9]] == [5, 2, 2, 2]


def test_a_step_that_was_skipped_is_no_good_step():
    nothing = (batch(1)[0] * torch.nan, *batch(1)[1:])
    batches = [batch(0), nothing, nothing, batch(1, bad=True), batch(2), batch(3)]
    states, _ = states_of(pipe(guard(marked, then="rewind", every=2)), batches)
    assert [int(s["guard"]["since"]) for s in states] == [0, 1, 1, 1, 0, 1, 0]
    assert [int(s["guard"]["newer"]["step"]) for s in states] == [0] * 6 + [2]


def test_a_snapshot_costs_no_memory_in_an_eager_step():
    states, _ = states_of(pipe(guard(marked, then="rewind", every=2)), map(batch, range(4)))
    own = states[4]["guard"]
    assert own["newer"]["params"]["first.weight"] is states[4].params["first.weight"]
    assert own["older"]["params"]["first.weight"] is states[2].params["first.weight"]
    first, _ = states_of(pipe(guard(marked, then="rewind")), [])
    pointers = [p.data_ptr() for p in fl.tree_leaves(first[0]) if p.numel()]
    assert len(pointers) == len(set(pointers)), "memory before the first step is nobody else's"


def test_compiled_it_does_the_same_to_the_bit():
    batches = [batch(i, bad=i in (2, 3, 6, 11)) for i in range(14)]
    plain = fl.compile(pipe(), backend="aot_eager")
    step = fl.compile(pipe(guard(marked, then="rewind", every=2)), backend="aot_eager")
    expected = rewound(batches, 2, plain)
    got, reports = states_of(step, batches)
    for a, b in zip(expected, got, strict=True):
        assert fl.tree_diff(a, trained(b)) == ""
    for x, metrics in zip(batches, reports, strict=True):
        assert float(metrics["guard"]) == float(metrics["skipped"]) == x[2].max()
    assert step.graphs == 1


@pytest.mark.parametrize(
    "made",
    [
        guard(marked),
        guard(marked, then="rewind", every=2),
        guard(spike("loss", sigmas=0.2, warmup=2, patience=2), then="rewind", every=2),
    ],
)
def test_compiling_and_donating_it_keeps_the_laws(made):
    def mean_square(model, x):
        return model(x).square().mean(), {"marked": fl.Max(x.max() - 50)}

    # A power of two, so that the compiled learning rate is not rounded.
    step = fl.pipe(mean_square, fl.grad, fl.update(fl.optim.sgd(0.125)), fl.ema(0.5), made)
    batches = [torch.arange(12.0).reshape(4, 3).sin() * (i + 1) for i in range(6)]
    batches += [batches[0] * 99, batches[1], batches[2] * torch.nan, batches[3]]
    testing.check_compiles(step, step.init(nn.Linear(3, 2)), batches, rtol=0, atol=0)


@pytest.mark.parametrize("then", ["skip", "rewind"])
def test_under_vmap_each_member_has_its_own_verdict(then):
    def plain(model, x):
        return model(x).square().mean(), {"marked": fl.Max(x.max())}

    def high(state, metrics):
        return state, {**metrics, "bad": fl.Sum(metrics["marked"].value() > 50)}

    made = guard(high, then=then, every=2)
    step = fl.pipe(plain, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.5), made)
    state = step.init(nn.Linear(3, 2))
    many = fl.tree_map(lambda t: torch.stack([t, t]), state)
    alone = [state, state]
    xs = torch.randn(9, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    xs[3, 0] = xs[6, 1] = xs[8, 1] = 99.0
    for x in xs:
        many, metrics = torch.func.vmap(step)(many, x)
        for i in (0, 1):
            alone[i], report = step(alone[i], x[i])
            mine = fl.tree_map(lambda t, i=i: t[i], many)
            torch.testing.assert_close(
                dict(enumerate(fl.tree_leaves(mine))), dict(enumerate(fl.tree_leaves(alone[i])))
            )
            assert float(metrics["guard"].total[i]) == float(report["guard"])
    assert len({int(s.step) for s in alone}) == 2


@pytest.mark.lightning("D7")
@pytest.mark.parametrize("kind", ["skip", "rewind"])
def test_a_resumed_run_goes_back_to_the_same_snapshot(kind):
    rule = spike("marked", sigmas=0.1, warmup=2)
    step = pipe(guard(rule) if kind == "skip" else guard(rule, then="rewind", every=2))
    torch.manual_seed(0)
    state = step.init(Net())
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    data = fl.Batches((x, x[:, :3].argmax(1), x.exp().sum(1)), batch_size=8, seed=3)
    found = [float(m["guard"]) for _, m in fl.run(step, state, data, steps=9)]
    assert 1 < sum(found) < 8, "there is something to take back, and something to keep"
    testing.check_resumes(step, state, data, steps=9)


def test_the_loss_scale_moves_on():
    def overflow(state, metrics):
        return state, {**metrics, "bad": metrics["skipped"].value() > 0}

    infinite = (batch(0)[0] * torch.inf, *batch(0)[1:])
    for then in ("skip", "rewind"):
        made = guard(overflow, then=then, every=1)
        step = pipe(made, grad=[fl.amp("fp16", init_scale=1024.0, interval=2)])
        (first, *_, before, after), reports = states_of(step, [batch(1), batch(2), infinite])
        assert float(reports[-1]["guard"]) == 1
        assert [float(s["amp"]["scale"]) for s in (first, before, after)] == [1024, 2048, 1024]
        assert int(after.step) == (2 if then == "skip" else 1)


def test_multipliers_from_outside_stay():
    step = pipe(guard(marked, then="rewind", every=1))
    (*_, state), _ = states_of(step, [batch(0), batch(1), batch(2)])
    state = fl.scale(state, "adamw.lr", 0.5)
    after, _ = step(state, batch(3, bad=True))
    assert int(after.step) == 2
    assert float(after["update"]["scale"]["adamw.lr"]) == 0.5
    assert after["update"]["adamw"] == state["guard"]["older"]["slots"]["update"]["adamw"]


def test_a_rule_sees_the_state_after_the_step_and_only_its_memory_is_kept():
    @fl.tree
    class meddler(fl.base.Callback):
        label: ClassVar[str] = "meddler"
        monitor: Any = "loss"
        name: str = "meddler"

        def init_state(self, state, metrics):
            return torch.zeros((), dtype=torch.int64)

        def __call__(self, state, metrics):
            changed = state.replace(params=fl.tree_map(torch.zeros_like, state.params))
            changed = fl.scale(changed, "adamw.lr", 0.1)
            bad = fl.Sum(float(int(state.step) == 2))
            told = {"loss": fl.Last(0.0), "bad": bad, "seen": fl.Last(state.step)}
            return changed.put(self.name, state.step + 10), {**metrics, **told}

    batches = [batch(i) for i in range(3)]
    expected, reports = states_of(pipe(), batches)
    got, reported = states_of(pipe(guard(meddler())), batches)
    assert [int(s.step) for s in got] == [0, 1, 1, 1]
    assert [int(s["meddler"]) for s in got] == [0, 11, 12, 12]
    assert [float(m["seen"]) for m in reported] == [1, 2, 2]
    assert int(got[3].calls) == 3
    assert fl.tree_diff(expected[1], trained(got[3].replace(calls=expected[1].calls))) == ""
    assert reported[0]["loss"] == reports[0]["loss"]


@pytest.mark.parametrize(
    "form",
    [bool, float, torch.tensor, lambda b: fl.Sum(float(b)), lambda b: fl.Last(torch.tensor(b))],
)
def test_a_verdict_has_many_forms(form):
    def rule(state, metrics):
        return state, {**metrics, "bad": form(bool(metrics["marked"].value() > 0))}

    (*_, state), reports = states_of(pipe(guard(rule)), [batch(0), batch(1, bad=True)])
    assert int(state.step) == 1
    assert [float(m["guard"]) for m in reports] == [0, 1]


def test_one_guard_in_another():
    rule = spike("loss", sigmas=1e-6, warmup=2, patience=3)
    # The outer one calls bad what the inner one has skipped; its rule must get on nevertheless.
    step = fl.pipe(
        lambda m, b: m(b[0]).square().mean() * 0 + b[2].mean(),
        fl.grad,
        fl.update(fl.optim.sgd(0.1)),
        guard(rule, name="inner"),
        guard(nonfinite("loss"), name="outer"),
    )
    state, found = step.init(Net()), []
    for level in (1.0, 1.1, 5.0, 5.0, 5.0, 5.0, 5.1):
        state, metrics = step(state, (*batch(0)[:2], torch.full((7,), level)))
        found.append((float(metrics["inner"]), float(metrics["outer"])))
    assert found == [(0, 0)] * 2 + [(1, 1)] * 3 + [(0, 0)] * 2
    both = pipe(guard(marked, then="rewind", every=1, name="a"), guard(never, name="b"))
    (*_, state), reports = states_of(both, [batch(0), batch(1), batch(2, bad=True)])
    assert int(state.step) == 1 and [float(m["a"]) for m in reports] == [0, 0, 1]


@pytest.mark.lightning("H7")
def test_a_lifted_step_is_taken_back_too():
    inner = pipe()

    def twice(state, x):
        state, _ = inner(state, x)
        return inner(state, x)

    step = guard(marked)(fl.stage(twice, "step"))
    torch.manual_seed(0)
    state = step.init(inner.init(Net()))
    after, metrics = step(state, batch(0, bad=True))
    assert int(after.calls) == 2
    assert fl.tree_diff(state, after.replace(calls=state.calls)) == ""
    assert float(metrics["guard"]) == 1
    after, _ = step(state, batch(0))
    assert int(after.step) == 2


def test_going_back_refuses_what_it_has_no_copy_of():
    def target(state, x):
        return state.replace(params={**state.params, "frozen": state.params["frozen"] + 1}), {}

    rewind = guard(never, then="rewind")
    step = rewind(fl.stage(target, "step"))
    with pytest.raises(ValueError, match=r"cannot go back: the step changes params/frozen,"):
        step(step.init(Net()), batch(0))
    step = rewind(fl.stage(lambda s, x: (s.put("mine", s["mine"] + 1), {}), "step"))
    state = step.init(Net()).put("mine", torch.zeros(()))
    with pytest.raises(ValueError, match=r"slots/mine, which it has no copy of"):
        step(state, batch(0))


def test_a_guard_can_be_added_to_an_old_state():
    (*_, old), _ = states_of(pipe(), [batch(0), batch(1)])
    step = pipe(guard(spike("loss"), then="rewind"))
    state = step.init(old)
    assert fl.tree_diff(old, trained(state)) == ""
    assert int(state["guard"]["older"]["step"]) == 2
    assert set(state.slots) == {"update", "ema", "guard", "spike"}
    testing.check_init(step, Net())


def test_it_never_goes_back_to_before_a_state_that_was_loaded(tmp_path):
    (*_, old), _ = states_of(pipe(), [batch(i) for i in range(5)])
    path = fl.save(old, tmp_path)
    step = pipe(guard(marked, then="rewind", every=3))
    state = fl.load(path, like=step.init(Net()))
    assert int(state["guard"]["older"]["step"]) == 0, "that of another model"
    after, _ = step(state, batch(6, bad=True))
    assert fl.tree_diff(called(old, state), trained(after)) == ""
    for i in range(3):
        state, _ = step(state, batch(i))
    after, _ = step(state, batch(6, bad=True))
    assert fl.tree_diff(called(old, state), trained(after)) == ""


def test_what_a_removed_stage_left_stays_as_it_is():
    made = guard(marked, then="rewind", every=1)
    state = pipe(made).init(Net())
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), made)
    for x in (batch(0), batch(1), batch(2, bad=True)):
        testing.check_stable(step, state, x)
        state, _ = step(state, x)
    assert int(state.step) == 1


def test_it_prints_as_it_is_written():
    assert repr(pipe(guard(spike("loss", sigmas=4.0), then="rewind", every=50))).endswith(
        "    ema(0.9),\n    guard(spike('loss', sigmas=4.0), then='rewind', every=50),\n)"
    )
    assert guard(marked)(pipe()).describe() == "guard(marked)"


STEP = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: guard(never)(fl.grad(loss)), TypeError, "guard wraps a training step.*after the"),
        (lambda: guard(never)(loss), TypeError, "guard wraps a training step.*the function"),
        (lambda: guard(spike)(STEP), TypeError, r"guard takes a rule.*Write spike\("),
        (lambda: guard(never, then="back")(STEP), ValueError, r'"skip" or "rewind", got \'back\''),
        (lambda: guard(never, every=0)(STEP), ValueError, "every.* at least 1, got 0"),
        (lambda: guard(never)(guard(never)(STEP)), ValueError, "under the name 'guard'"),
        (lambda: guard(spike("a", name="update"))(STEP), ValueError, "under the name 'update'"),
        (
            lambda: guard(never, "rewind", name="b")(guard(never, "rewind")(STEP)),
            ValueError,
            "snapshots of the inner one are stale",
        ),
        (lambda: guard(never)(fl.compile(STEP)), TypeError, "goes last"),
    ],
)
def test_what_cannot_be_is_refused_when_the_pipeline_is_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_rule_that_tells_nothing_is_an_error():
    def silent(state, metrics):
        return state, metrics

    def many(state, metrics):
        return state, {**metrics, "bad": torch.zeros(3)}

    def only_metrics(state, metrics):
        return metrics

    model, x = nn.Linear(2, 1), torch.ones(3, 2)
    for rule, message in (
        (silent, r'rule of guard\(silent\) must report its verdict as the metric "bad"'),
        (many, r'reports f32\[3\] as "bad"; it must be one value'),
        (spike("lss"), r"guard\(spike\('lss'\)\) waits for the metric 'lss', .* reports: loss,"),
    ):
        step = guard(rule)(STEP)
        with pytest.raises(ValueError, match=message):
            step(step.init(model), x)
    step = guard(only_metrics)(STEP)
    with pytest.raises(TypeError, match=r"only_metrics must return \(state, metrics\)"):
        step(step.init(model), x)


def test_a_run_knows_the_memory_that_is_missing():
    step = guard(spike("loss"))(STEP)
    with pytest.raises(ValueError, match=r"no memory for spike\('loss'\) \(no slot 'spike'\)"):
        fl.run(step, STEP.init(nn.Linear(2, 1)), [torch.ones(3, 2)])
