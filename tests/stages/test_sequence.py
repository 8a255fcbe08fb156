"""Steps that take turns on one batch."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl
from fnloop import testing
from fnloop.loop.hyperparameters import hyperparameters


class Pair(nn.Module):
    """A generator with BatchNorm, and a discriminator with dropout.

    No bias before the BatchNorm: its gradient is zero but for rounding, and Adam divides by it.
    """

    def __init__(self, dropout=0.3):
        super().__init__()
        self.G = nn.Sequential(
            nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
        )
        self.D = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))


def fake(model, x):
    return model.D(model.G(torch.randn(x.shape[0], 3)))


def d_loss(model, x):
    return (F.softplus(-model.D(x)) + F.softplus(fake(model, x))).mean()


def g_loss(model, x):
    return F.softplus(-fake(model, x)).mean()


def model(**options):
    torch.manual_seed(0)
    return Pair(**options)


@functools.cache
def batches(n=6):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 4, generator=generator) for _ in range(n)]


def data():
    return fl.Batches(torch.cat(batches()), 8, shuffle=False)


def linear(steps):
    return fl.schedules.linear(0.1, 0.0, steps=steps)


def gan(d=fl.optim.adam(2e-3), g=fl.optim.adam(1e-3), after=(), **options):  # noqa: B008 - constants
    return fl.sequence(
        discriminator=fl.pipe(d_loss, fl.grad(only="D.*"), fl.update(d)),
        generator=fl.pipe(g_loss, fl.grad(only="G"), fl.update(g), *after),
        **options,
    )


def run(step, state, steps):
    """All states and metrics of a run, the first state included."""
    found = [(state, {})]
    for i in range(steps):
        found.append(step(found[-1][0], batches()[i % 6]))
    return found


def part_of(params, prefix):
    return {name: p for name, p in params.items() if name.startswith(prefix)}


# What it computes


@pytest.mark.lightning("H10")
def test_two_players_are_a_loop_written_by_hand():
    noise = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))

    def d_loss(model, x):
        return (F.softplus(-model.D(x)) + F.softplus(model.D(model.G(noise)))).mean()

    def g_loss(model, x):
        return F.softplus(-model.D(model.G(noise))).mean()

    step = fl.sequence(
        discriminator=fl.pipe(d_loss, fl.grad(only="D.*"), fl.update(fl.optim.adam(2e-2))),
        generator=fl.pipe(g_loss, fl.grad(only="G.*"), fl.update(fl.optim.sgd(0.1, momentum=0.9))),
    )
    state = step.init(model(dropout=0.0))
    net = model(dropout=0.0)
    adam = torch.optim.Adam(net.D.parameters(), 2e-2)
    sgd = torch.optim.SGD(net.G.parameters(), 0.1, momentum=0.9)
    for x in batches():
        state, metrics = step(state, x)
        for optimizer, loss, name in ((adam, d_loss, "discriminator"), (sgd, g_loss, "generator")):
            value = loss(net, x)
            assert float(metrics[f"{name}/loss"]) == pytest.approx(value.item(), rel=1e-4)
            net.zero_grad()
            value.backward()
            optimizer.step()
    for name, p in net.named_parameters():
        torch.testing.assert_close(state.params[name], p.detach(), rtol=1e-4, atol=1e-5)
    for name, b in net.named_buffers():
        torch.testing.assert_close(state.buffers[name], b, rtol=1e-4, atol=1e-5)


def test_a_part_has_memory_for_its_own_parameters_and_leaves_the_others_alone():
    step = gan(after=[fl.ema(0.5)])
    state = step.init(model())
    assert set(state.slots) == {
        "discriminator/update",
        "discriminator/step",
        "generator/update",
        "generator/ema",
        "generator/step",
    }
    d, g = (set(part_of(state.params, prefix)) for prefix in "DG")
    assert set(state["discriminator/update"]["adam"]["mu"]) == d
    assert set(state["generator/update"]["adam"]["mu"]) == g == set(state["generator/ema"])
    alone = fl.pipe(d_loss, fl.grad(only="D.*"), fl.update(fl.optim.adamw(0.1)))
    before = alone.init(model())
    after, _ = alone(before, batches()[0])
    assert all(torch.equal(before.params[name], after.params[name]) for name in g)
    assert not any(torch.equal(before.params[name], after.params[name]) for name in d)


def test_names_begin_with_that_of_the_part():
    step = fl.sequence(
        discriminator=fl.pipe(
            d_loss,
            fl.grad(only="D"),
            fl.accumulate(2),
            fl.amp("fp16"),
            fl.update(fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.adamw(linear(9)))),
            fl.guard(fl.rules.nonfinite("loss")),
        ),
        generator=fl.pipe(g_loss, fl.grad(only="G"), fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)),
    )
    state, metrics = step(step.init(model()), batches()[0])
    own = ("loss", "skipped", "adamw.lr", "adamw.weight_decay")
    assert set(metrics) == {
        "skipped",
        *(f"{part}/{name}" for part in ("discriminator", "generator") for name in own),
        "discriminator/amp.scale",
        "discriminator/guard",
    }
    assert {"discriminator/amp", "discriminator/guard", "generator/ema"} <= set(state.slots)
    settings = hyperparameters(step)
    assert settings["discriminator/accumulate.k"] == 2
    assert settings["discriminator/adamw.lr.start"] == 0.1
    assert settings["generator/adamw.lr"] == 0.1 and settings["generator/ema.decay"] == 0.9
    assert not any(name.startswith(("adamw", "ema")) for name in settings)


def test_parts_draw_different_numbers():
    def noise(model, x):
        return model.D(x).mean(), {"noise": fl.Last(torch.randn(()))}

    part = fl.pipe(noise, fl.grad, fl.update(fl.optim.sgd(0.0)))
    step = fl.sequence(a=part, b=part)
    state, first = step(step.init(model()), batches()[0])
    _, second = step(state, batches()[0])
    drawn = [float(metrics[f"{name}/noise"]) for metrics in (first, second) for name in "ab"]
    assert len(set(drawn)) == 4
    # A stream has the part's name, whatever comes before it.
    alone = fl.sequence(b=part)
    assert float(alone(alone.init(model()), batches()[0])[1]["b/noise"]) == drawn[1]


# Each part has its own clock


def test_schedules_of_both_end_with_the_last_round_and_not_half_way():
    step = gan(fl.optim.sgd(linear(6)), fl.optim.sgd(linear(6)))
    rates = [
        [float(metrics[f"{part}/sgd.lr"]) for _, metrics in run(step, step.init(model()), 6)[1:]]
        for part in ("discriminator", "generator")
    ]
    expected = [linear(6)(i) for i in range(6)]
    assert rates[0] == rates[1] == pytest.approx(expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_skip_of_one_leaves_the_clock_of_the_other_alone(compiled):
    step = gan(fl.optim.sgd(linear(6)), fl.optim.sgd(linear(6)), after=[fl.ema(0.5)])
    state = step.init(model())
    step = fl.compile(step, backend="aot_eager") if compiled else step
    bad = batches()[0] * torch.nan  # which the generator does not look at
    after, metrics = step(state, bad)
    assert [int(after[f"{part}/step"]) for part in ("discriminator", "generator")] == [0, 1]
    assert [float(metrics[f"{part}/skipped"]) for part in ("discriminator", "generator")] == [1, 0]
    assert int(after.step) == int(after.calls) == 1 and float(metrics["skipped"]) == 0
    assert dict(after["discriminator/update"]) == dict(state["discriminator/update"])
    for name, p in part_of(state.params, "D").items():
        assert torch.equal(p, after.params[name])
    _, metrics = step(after, batches()[0])
    assert float(metrics["discriminator/sgd.lr"]) == pytest.approx(0.1)
    assert float(metrics["generator/sgd.lr"]) == pytest.approx(linear(6)(1))


def test_a_turn_that_all_skip_is_none():
    part = fl.pipe(d_loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.pipe(fl.sequence(a=part, b=part), fl.ema(0.5))
    state = step.init(model())
    after, metrics = step(state, batches()[0] * torch.nan)
    assert after == state.replace(calls=torch.tensor(1)) and float(metrics["skipped"]) == 1
    # A stage around it knows a turn by the step.
    after, _ = step(state, batches()[0])
    assert int(after.step) == 1 and after["ema"] != state["ema"]


@pytest.mark.parametrize("then", ["skip", "rewind"])
def test_a_guard_around_it_takes_back_all_clocks(then):
    def too_low(state, metrics):
        return state, {**metrics, "bad": metrics["generator/loss"].value() < 100}

    step = fl.pipe(gan(after=[fl.ema(0.5)]), fl.guard(too_low, then=then, every=1))
    state = step.init(model())
    after, metrics = step(state, batches()[0])
    assert float(metrics["guard"]) == 1 and int(after.calls) == 1 and int(after.step) == 0
    for name in ("discriminator/step", "generator/step", "generator/update", "generator/ema"):
        assert fl.tree_equal(after[name], state[name])
    assert after.params == state.params and after.buffers == state.buffers


@pytest.mark.lightning("H10")
def test_loss_scales_and_multipliers_are_their_own():
    amp = fl.amp("fp16", init_scale=2.0**8)
    step = fl.sequence(
        discriminator=fl.pipe(d_loss, fl.grad(only="D"), amp, fl.update(fl.optim.adamw(0.1))),
        generator=fl.pipe(g_loss, fl.grad(only="G"), amp, fl.update(fl.optim.adamw(0.1))),
    )
    state = fl.scale(step.init(model()), "generator/adamw.lr", 0.1)
    after, metrics = step(state, batches()[0] * torch.nan)
    scales = [float(after[f"{part}/amp"]["scale"]) for part in ("discriminator", "generator")]
    assert scales == [2.0**7, 2.0**8]
    assert float(metrics["generator/adamw.lr"]) == pytest.approx(0.01)
    assert float(metrics["discriminator/adamw.lr"]) == pytest.approx(0.1)
    with pytest.raises(KeyError, match=r"adamw.lrs.*adamw.lr, adamw.weight_decay"):
        fl.scale(state, "generator/adamw.lrs", 0.1)


def test_a_part_that_is_frozen_keeps_its_bits():
    net = model()
    net.G[0].weight.requires_grad_(False)
    step = gan()
    state = fl.scale(step.init(net), "discriminator/adam.lr", to=0.0)
    after = run(step, state, 3)[-1][0]
    assert "G.0.weight" not in state["generator/update"]["adam"]["mu"]
    assert torch.equal(after.params["G.0.weight"], net.G[0].weight)
    for name, p in part_of(state.params, "D").items():
        assert torch.equal(p, after.params[name])
    assert not torch.equal(after.params["G.3.weight"], net.G[3].weight)


def test_a_loss_sees_the_memory_of_all_parts():
    def distilled(model, x, state):
        target = state["critic/ema"]["D.3.weight"]
        return (model.D(x) + target.sum() * state.step).mean()

    step = fl.sequence(
        critic=fl.pipe(d_loss, fl.grad(only="D"), fl.update(fl.optim.sgd(0.1)), fl.ema(0.9)),
        actor=fl.pipe(distilled, fl.grad(only="D.3"), fl.update(fl.optim.sgd(0.1))),
        every={"actor": 2},
    )
    found = run(step, step.init(model()), 4)
    targets = [float(found[i][0]["critic/ema"]["D.3.weight"].sum()) for i in (2, 4)]
    assert int(found[-1][0]["actor/step"]) == 2 and targets[0] != targets[1]


# Every n-th call


@pytest.mark.lightning("H10")
def test_a_part_is_called_every_nth_time_and_else_left_alone():
    step = gan(g=fl.optim.sgd(linear(2)), every={"generator": 3})
    found = run(step, step.init(model()), 6)
    for i, ((before, _), (after, metrics)) in enumerate(itertools.pairwise(found), 1):
        due = i % 3 == 0
        assert ("generator/loss" in metrics) == due == ("generator/sgd.lr" in metrics)
        assert "discriminator/loss" in metrics and int(after.step) == i
        assert int(after["generator/step"]) == i // 3 and int(after["discriminator/step"]) == i
        for name, p in part_of(before.params, "G").items():
            assert torch.equal(p, after.params[name]) != due
    rates = [float(m["generator/sgd.lr"]) for _, m in found if "generator/sgd.lr" in m]
    assert rates == pytest.approx([0.1, linear(2)(1)])


@pytest.mark.parametrize("donate", [False, True])
def test_every_nth_compiled_is_one_graph_for_each_kind_of_turn(donate):
    step = gan(after=[fl.ema(0.5)], every={"generator": 3})
    fast = fl.compile(step, backend="aot_eager", donate=donate)
    plain, compiled = step.init(model()), fast.init(model())
    for i in range(1, 10):
        before = {n: p.clone() for n, p in part_of(compiled.params, "G").items()}
        plain, metrics = step(plain, batches()[i % 6])
        compiled, reported = fast(compiled, batches()[i % 6])
        assert set(metrics) == set(reported)
        assert float(metrics["discriminator/loss"]) == pytest.approx(
            float(reported["discriminator/loss"]), rel=1e-4
        )
        for name, p in before.items():
            assert torch.equal(p, compiled.params[name]) == (i % 3 != 0)
    assert fast.graphs == 2
    torch.testing.assert_close(compiled.params["G.0.weight"], plain.params["G.0.weight"])


def test_several_steps_in_one_call_have_the_bits_of_single_ones():
    step = gan(every={"generator": 3})
    one, many = (fl.compile(step, backend="aot_eager", steps=k) for k in (1, 4))
    a, _ = fl.fit(one, one.init(model()), data(), steps=10)
    b, _ = fl.fit(many, many.init(model()), data(), steps=10)
    assert a == b and int(a["generator/step"]) == 3


def test_a_graph_for_all_sizes_is_one_for_each_kind_of_turn():
    step = gan(every={"generator": 2})
    fast = fl.compile(step, backend="aot_eager", dynamic=True)
    plain, compiled = step.init(model()), fast.init(model())
    for rows in (8, 8, 7, 7, 6, 6, 5, 5, 4, 4):
        plain, _ = step(plain, batches()[0][:rows])
        compiled, _ = fast(compiled, batches()[0][:rows])
    torch.testing.assert_close(compiled.params["G.0.weight"], plain.params["G.0.weight"])
    torch.testing.assert_close(compiled.params["D.0.weight"], plain.params["D.0.weight"])
    assert fast.graphs == 4


def test_inside_of_another_sequence_every_counts_its_own_turns():
    inner = gan(every={"generator": 2})
    step = fl.sequence(
        first=fl.pipe(d_loss, fl.grad(only="D.0"), fl.update(fl.optim.sgd(0.1))),
        game=inner,
        every={"game": 3},
    )
    (state, metrics) = run(step, step.init(model()), 12)[-1]
    counts = {name: int(state[f"{name}/step"]) for name in ("first", "game")}
    counts.update({n: int(state[f"game/{n}/step"]) for n in ("discriminator", "generator")})
    assert counts == {"first": 12, "game": 4, "discriminator": 4, "generator": 2}
    assert {"game/skipped", "game/generator/loss", "game/discriminator/adam.lr"} <= set(metrics)
    state = fl.scale(state, "game/generator/adam.lr", 0.5)
    assert float(state["game/generator/update"]["scale"]["adam.lr"]) == 0.5


def test_members_of_a_population_take_their_turns_together():
    step = gan(every={"generator": 2})
    states = [step.init(Pair, seed=seed) for seed in range(2)]
    testing.check_vmaps(step, [step(s, batches()[0])[0] for s in states], batches()[1])
    apart = [states[0], step(states[1], batches()[0])[0]]
    with pytest.raises(ValueError, match=r"'generator' is called at every 2\. call.*\[0, 1\]"):
        testing.check_vmaps(step, apart, batches()[1])


# In the loop


@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_goes_on_from_any_step_with_the_same_bits(compiled):
    step = gan(fl.optim.adam(linear(9)), after=[fl.ema(0.5)], every={"generator": 3})
    state = step.init(model())
    step = fl.compile(step, backend="aot_eager", donate=True) if compiled else step
    fresh = lambda: fl.tree_map(torch.clone, state)  # noqa: E731
    whole = [
        fresh(),
        *(fl.tree_map(torch.clone, s) for s, _ in fl.run(step, fresh(), data(), steps=7)),
    ]
    for k in range(8):
        *_, (last, _) = [
            (whole[k], None),
            *fl.run(step, fl.tree_map(torch.clone, whole[k]), data(), steps=7 - k),
        ]
        assert last == whole[7], k


def test_it_is_saved_and_fit_goes_on(tmp_path):
    step = gan(after=[fl.ema(0.5)], every={"generator": 3})
    whole, _ = fl.fit(step, step.init(model()), data(), steps=8)
    fl.fit(step, step.init(model()), data(), steps=4, callbacks=[fl.checkpoint(tmp_path)])
    last, _ = fl.fit(
        step,
        step.init(model()),
        data(),
        steps=8,
        callbacks=[fl.checkpoint(tmp_path)],
        resume=tmp_path,
    )
    assert last == whole
    fresh = step.init(model())
    assert fl.load(fl.latest(tmp_path), like=fresh) == whole
    some = fl.load(fl.latest(tmp_path), like=fresh, only="slots/generator")
    assert some["generator/ema"] == whole["generator/ema"]
    assert some["discriminator/step"] == fresh["discriminator/step"] == 0
    only = fl.load(fl.latest(tmp_path), like=fresh, only="slots/generator/ema")
    assert only["generator/ema"] == whole["generator/ema"] and only["generator/step"] == 0
    fresh = fl.refresh_batchnorm(g_loss, last, data(), params="generator/ema")
    averaged = fl.to_module(fresh, params="generator/ema")
    assert torch.equal(averaged.G[0].weight, last["generator/ema"]["G.0.weight"])
    assert torch.equal(averaged.D[0].weight, last.params["D.0.weight"])


@pytest.mark.parametrize("steps", [1, 4])
def test_a_callback_may_wait_for_a_part_that_is_not_called_at_first(steps):
    step = gan(every={"generator": 3})
    stopping = fl.early_stopping("generator/loss", stopping_threshold=100.0)
    fast = fl.compile(step, backend="aot_eager", steps=steps)
    state, history = fl.fit(fast, fast.init(model()), data(), steps=9, callbacks=[stopping])
    assert history.status == "stopped" and int(state.step) == 3
    with pytest.raises(ValueError, match=r"generator/los.*generator/loss"):
        wrong = fl.early_stopping("generator/los")
        fl.fit(step, step.init(model()), data(), steps=9, callbacks=[wrong])


@pytest.mark.parametrize("begun", [0, 1])
def test_every_merges_what_a_part_reports_now_and_then(begun):
    step, seen = gan(every={"generator": 3}), []

    def note(state, metrics):
        seen.append(float(metrics["generator/loss"].weight))
        return state, metrics

    *_, (state, _) = [
        (step.init(model()), {}),
        *fl.run(step, step.init(model()), data(), steps=begun),
    ]
    fl.fit(step, state, data(), steps=12 - begun, callbacks=[fl.every(4, note, name="note")])
    assert seen == [8.0, 8.0, 16.0]  # of the rounds 3; 6; 9 and 12


def test_history_has_a_column_for_each_part():
    step = gan(every={"generator": 3})
    _, history = fl.fit(step, step.init(model()), data(), steps=6)
    assert "generator/loss" in str(history.rows[-1] if hasattr(history, "rows") else history)


# Sharded


@pytest.mark.lightning("S1")
def test_one_process_is_a_mesh_of_one_for_the_whole_and_for_each_part():
    mesh = fl.mesh()
    whole = fl.shard(gan(), mesh, "zero2")
    parts = {
        name: fl.shard(p, mesh, "zero2") for name, p in zip(gan().names, gan().parts, strict=True)
    }
    for step in (whole, fl.sequence(**parts)):
        assert run(step, step.init(model()), 3)[-1][0] == run(gan(), gan().init(model()), 3)[-1][0]
    parts["generator"] = gan().parts[1]
    with pytest.raises(
        ValueError, match=r"'discriminator' of fl.sequence is shard\(.*'generator' is not"
    ):
        fl.sequence(**parts)


def test_what_a_sharded_sequence_moves_is_told_for_each_part():
    step = fl.shard(gan(), fl.mesh(), "zero2")
    found = fl.summary(step, step.init(model()), mesh=2).sharded
    reduced = {row.what: row.bytes for row in found.exchanges if "reduced" in row.what}
    alone = fl.shard(gan().parts[0], fl.mesh(), "zero2")
    (expected,) = [
        row.bytes
        for row in fl.summary(alone, alone.init(model()), mesh=2).sharded.exchanges
        if "reduced" in row.what
    ]
    assert reduced["discriminator/gradients reduced"] == expected
    assert set(reduced) == {f"{p}/gradients reduced" for p in ("discriminator", "generator")}
    trained = [p for name, p in model().named_parameters() if name.startswith("D")]
    assert expected == sum(4 * -(-p.numel() // 2) for p in trained)


# How it reads, and what it refuses


def test_it_prints_as_it_is_written():
    step = fl.pipe(gan(after=[fl.ema(0.5)], every={"generator": 5}), fl.ema(0.9))
    assert (
        repr(step)
        == """\
pipe(
    sequence(
        discriminator=pipe(
            d_loss,
            grad(only='D.*'),
            update(adam(lr=0.002)),
        ),
        generator=pipe(
            g_loss,
            grad(only='G'),
            update(adam()),
            ema(0.5),
        ),
        every={"generator": 5},
    ),
    ema(0.9),
)"""
    )
    assert repr(fl.compile(step)) == repr(step)[:-1] + "    compile,\n)"


STEP = fl.pipe(d_loss, fl.grad, fl.update(fl.optim.sgd(0.1)))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: fl.sequence(), TypeError, "has no parts"),
        (lambda: fl.sequence(STEP), TypeError, r"by name, and update\(sgd\(.*\) has none"),
        (
            lambda: fl.sequence(a=fl.grad(d_loss)),
            TypeError,
            "'a' .* grad, a gradient stage: add fl.upd",
        ),
        (
            lambda: fl.sequence(a=fl.update(fl.optim.sgd())),
            TypeError,
            "update.* waits for the stage",
        ),
        (lambda: fl.sequence(a=d_loss), TypeError, "is d_loss: fl.stage"),
        (lambda: fl.sequence(a=fl.compile(STEP)), TypeError, "compiled, .* goes last"),
        (
            lambda: fl.sequence(a=STEP, every={"b": 2}),
            ValueError,
            "'b', which is none of its parts",
        ),
        (lambda: fl.sequence(a=STEP, every={"a": 0}), ValueError, "every={'a'"),
        (lambda: fl.sequence(a=STEP, every=3), TypeError, r'\{"a": 5\}; got 3'),
        (lambda: fl.sequence(**{"a/b": STEP}), ValueError, "slash"),
    ],
)
def test_what_is_refused_says_why(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_state_without_its_memory_is_an_error_that_says_so():
    with pytest.raises(KeyError, match="discriminator/step"):
        gan()(STEP.init(model()), batches()[0])
    state = gan().init(STEP.init(model()))  # which loses nothing
    assert {"update", "generator/update"} <= set(state.slots)
