"""``fl.ensemble`` and ``fl.sweep``: each member is what it is alone."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from fnloop.trees.paths import tree_paths
from fnloop.values.stacked import chosen
from tests.carrying import Carrying

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
BATCH = (X[:16], Y[:16])


def data():
    return fl.Batches((X[:64], Y[:64]), 16, seed=0)


def loss(model, batch):
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits, y), {"accuracy": fl.metrics.accuracy(logits, y)}


def dropping():
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def normed():
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(1, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.gru(x[..., None])[0][:, -1])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(1, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.head(self.layer(self.up(x[..., None])).mean(1))


class Fused(nn.Module):
    """Attention by PyTorch's own kernel, for which vmap has no rule on the CPU."""

    def __init__(self):
        super().__init__()
        self.up, self.head = nn.Linear(1, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.up(x[..., None]).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(attended.transpose(1, 2).flatten(-2).mean(1))


MODELS = {
    "dropout": dropping,
    "batchnorm": normed,
    "gru": Recurrent,
    "attention": Attending,
    "fused attention": Fused,
}


def of(*stages, optimizer=None):
    optimizer = optimizer or fl.optim.sgd(0.1, momentum=0.9)
    return fl.pipe(loss, fl.grad, fl.accumulate(2), fl.update(optimizer), fl.ema(0.9), *stages)


def assert_close(a, b):
    for (path, left), right in zip(
        zip(tree_paths(a), fl.tree_leaves(a), strict=True), fl.tree_leaves(b), strict=True
    ):
        assert left.dtype == right.dtype and left.shape == right.shape, path
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5, msg=path)


def fitted(step, state, epochs=2, **options):
    return fl.fit(step, state, data(), epochs=epochs, progress=False, **options)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("how", ["eager", "compiled", "loop"])
@pytest.mark.parametrize("model", MODELS)
def test_members_are_single_runs(model, how):
    many = fl.ensemble(of(), 3, mode="loop" if how == "loop" else "vmap")
    step = fl.compile(many, backend="aot_eager", donate=True) if how == "compiled" else many
    state, history = fitted(step, step.init(MODELS[model], seed=5))
    assert (history.status, state.cursor.tolist()) == ("completed", [2, 0, 8])
    for i in range(3):
        alone, own = fitted(of(), of().init(MODELS[model], seed=5 + i))
        assert_close(fl.member(state, i), alone)
        assert history[f"loss[{i}]"] == pytest.approx(own["loss"], rel=1e-4)
    if how == "compiled":
        assert step.graphs == 1


SWEPT = {
    "adamw.lr.peak": (fl.optim.adamw(fl.schedules.cosine(1e-3, steps=40, warmup=2)), [1e-4, 1e-2]),
    "sgd.momentum": (fl.optim.sgd(0.1), [0.0, 0.5, 0.9]),
    "clip_by_norm.max_norm": (
        fl.optim.chain(fl.optim.clip_by_norm(1.0), fl.optim.sgd(0.1)),
        [0.01, 0.1, 10.0],
    ),
    "b.sgd.lr": (
        fl.optim.by_label(
            {"a": fl.optim.adamw(1e-3), "b": fl.optim.sgd(0.1)},
            lambda name, p: "a" if name.startswith("0") else "b",
        ),
        [0.001, 0.1],
    ),
}


@pytest.mark.parametrize("name", SWEPT)  # uncompiled, over everything: tests/laws
def test_members_of_a_compiled_sweep_are_runs_with_other_hyperparameters(name):
    optimizer, values = SWEPT[name]
    many = fl.sweep(of(optimizer=optimizer), {name: values})
    step = fl.compile(many, backend="aot_eager")
    state = step.init(dropping, seed=1)
    singles = [many.member(i) for i in range(len(values))]
    alone = [single.init(dropping, seed=1) for single in singles]
    for _ in range(4):
        state, _ = step(state, BATCH)
        alone = [single(own, BATCH)[0] for single, own in zip(singles, alone, strict=True)]
    for i, own in enumerate(alone):  # sgd(momentum=0) has no memory, alone
        assert_close(fl.member(state, i).params, own.params)
    moved = [fl.tree_equal(alone[0], own) for own in alone[1:]]
    assert not any(moved)  # the values do make a difference


def test_a_field_of_a_loss_is_swept():
    @fl.tree
    class Smoothed:
        smoothing: float = 0.1

        def __call__(self, model, batch):
            logs = model(batch[0]).log_softmax(-1)
            nll = -logs.gather(1, batch[1][:, None])[:, 0]
            return ((1 - self.smoothing) * nll - self.smoothing * logs.mean(-1)).mean()

    step = fl.pipe(Smoothed(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.sweep(step, {"loss.smoothing": [0.0, 0.1, 0.3]})
    state, _ = many(many.init(dropping), BATCH)
    for i, smoothing in enumerate([0.0, 0.1, 0.3]):
        single = fl.pipe(Smoothed(smoothing), fl.grad, fl.update(fl.optim.sgd(0.1)))
        assert_close(fl.member(state, i), single(single.init(dropping), BATCH)[0])


def test_sweeps_and_ensembles_combine():
    step = of(optimizer=fl.optim.adamw(1e-3))
    grid = fl.sweep(fl.sweep(step, {"adamw.lr": [1e-3, 1e-2]}), {"ema.decay": [0.5, 0.9, 0.99]})
    assert grid.values["adamw.lr"].tolist() == [1e-3] * 3 + [1e-2] * 3
    assert grid.values["ema.decay"].tolist() == [0.5, 0.9, 0.99] * 2
    seeded = fl.ensemble(fl.sweep(step, {"adamw.lr": [1e-3, 1e-2]}), 2)
    assert (seeded.seeds, seeded.values["adamw.lr"].tolist()) == ((0, 0, 1, 1), [1e-3, 1e-2] * 2)
    state = seeded.init(dropping, seed=3)
    assert state.key.tolist() == [3, 3, 4, 4]
    assert torch.equal(state.params["0.weight"][0], state.params["0.weight"][1])
    assert not torch.equal(state.params["0.weight"][0], state.params["0.weight"][2])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lrr": [1.0]}, "there is no number 'lrr'"),
        ({"adamw.lr.steps": [1, 2]}, "'adamw.lr.steps' is an int, which is part of the structure"),
        ({"weight_decay": [0.1, 0.2], "b1": [0.9]}, "as many values of each hyperparameter"),
        ({}, "as many values of each"),
        ({"b1": 0.9}, "takes a list of numbers"),
    ],
)
def test_what_cannot_be_swept_is_said(values, said):
    step = of(optimizer=fl.optim.adamw(fl.schedules.cosine(1e-3, steps=9)))
    with pytest.raises(ValueError, match=said):
        fl.sweep(step, values)


def test_names_that_fit_several_numbers_are_refused():
    optimizer = fl.optim.by_label(
        {"a": fl.optim.sgd(0.1), "b": fl.optim.sgd(0.2)},
        lambda name, p: (name[0] == "0" and "a") or "b",
    )
    with pytest.raises(ValueError, match=r"'sgd\.lr' may be 'a\.sgd\.lr' or 'b\.sgd\.lr'"):
        fl.sweep(of(optimizer=optimizer), {"sgd.lr": [0.1]})


def test_init_fills_what_is_missing_of_each_member():
    step = fl.ensemble(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1))), 2)
    state, _ = step(step.init(dropping), BATCH)
    assert fl.tree_equal(step.init(state), state)
    more = fl.ensemble(fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ema(0.9)), 2)
    upgraded = more.init(state)
    assert torch.equal(upgraded["ema"]["0.weight"], state.params["0.weight"])
    assert fl.tree_equal(upgraded.params, state.params)
    with pytest.raises(ValueError, match="has 2 members, and ensemble\\(3\\) has 3"):
        fl.ensemble(of(), 3).init(state)


def test_all_go_on_from_the_state_of_a_single_run_with_numbers_of_their_own():
    single = of()
    state, _ = single(single.init(dropping, seed=7), BATCH)
    many = fl.ensemble(single, 3).init(state)
    assert many.key.tolist() == [7, 8, 9] and many.step.tolist() == [1, 1, 1]
    assert fl.tree_equal(fl.member(many, 0), state)


def test_states_that_are_no_population_are_refused():
    many = fl.ensemble(of(), 2)
    with pytest.raises(ValueError, match="takes a state of 2 members"):
        many(of().init(dropping), BATCH)
    with pytest.raises(ValueError, match="not of a population"):
        fl.member(of().init(dropping), 0)
    with pytest.raises(IndexError, match="no member 2: there are 2"):
        fl.member(many.init(dropping), 2)
    with pytest.raises(ValueError, match="cannot be stacked"):
        many.init([of().init(dropping), of().init(normed)])
    with pytest.raises(ValueError, match=r"fl\.member"):
        fl.to_module(many.init(dropping))


def test_members_are_dropped_and_added():
    many, single = fl.ensemble(of(), 3), of()
    state, _ = many(many.init(dropping), BATCH)
    chosen = [fl.member(state, 2), fl.member(state, 0), single.init(dropping, seed=9)]
    two = fl.ensemble(single, 3)
    after, _ = two(two.init(chosen), BATCH)
    assert after.step.tolist() == [2, 2, 1]
    for i, own in enumerate(chosen):
        assert_close(fl.member(after, i), single(own, BATCH)[0])


def test_a_member_that_overflows_skips_alone():
    many = fl.sweep(of(optimizer=fl.optim.sgd(0.1)), {"sgd.lr": [0.1, 1e30, 0.2]})
    state = many.init(dropping)
    for _ in range(6):
        state, metrics = many(state, BATCH)
    assert state.step.tolist()[0::2] == [6, 6] and state.step[1] < 6
    assert metrics["skipped"].value().tolist() == [0, 1, 0]
    single = many.member(2)
    alone = single.init(dropping)
    for _ in range(6):
        alone, _ = single(alone, BATCH)
    assert_close(fl.member(state, 2), alone)


def test_members_stop_early_by_themselves_and_keep_their_bits(tmp_path):
    def callbacks(folder=None):
        stopping = fl.early_stopping("val/loss", patience=2, min_delta=0.02)
        found = [fl.validate(loss, (X[64:], Y[64:])), stopping]
        return [*found, fl.checkpoint(folder, every=1, unit="step", keep=99)] if folder else found

    many, single = fl.ensemble(of(), 3), of()
    state, history = fitted(many, many.init(dropping), 40, callbacks=callbacks(tmp_path / "run"))
    assert history.status == "stopped"
    assert history.reason == "val/loss has stopped improving in all 3 members"
    ends = []
    for i in range(3):
        alone, own = fitted(single, single.init(dropping, seed=i), 40, callbacks=callbacks())
        kept = fl.member(state, i)
        assert_close(kept.replace(cursor=alone.cursor), alone)
        assert own.status == "stopped"
        ends.append(int(alone.cursor[2]))
    assert len(set(ends)) > 1
    first = ends.index(min(ends))
    saved = fl.load(tmp_path / "run" / f"step-{min(ends):08d}", like=state)
    assert saved["population"]["active"].tolist() == [i != first for i in range(3)]
    frozen, last = fl.member(saved, first), fl.member(state, first)
    assert fl.tree_equal(frozen.replace(cursor=last.cursor), last)
    again, resumed = fitted(many, saved, 40, callbacks=callbacks())
    assert fl.tree_equal(again, state)
    assert resumed.reason == history.reason


def test_a_population_is_resumed_to_the_bit(tmp_path):
    many = fl.ensemble(of(), 3)
    whole, _ = fitted(many, many.init(dropping), 4)
    folder = tmp_path / "run"
    fitted(many, many.init(dropping), 2, callbacks=[fl.checkpoint(folder)])
    state, history = fl.fit(
        many, many.init(dropping), data(), epochs=4, resume=folder, progress=False
    )
    assert history.status == "completed" and fl.tree_equal(state, whole)


def test_members_are_evaluated_as_alone():
    many = fl.ensemble(of(), 3)
    state, _ = fitted(many, many.init(normed), 1)
    held_out = (X[64:], Y[64:])
    state = fl.refresh_batchnorm(loss, state, data(), params="ema")
    found = fl.evaluate(loss, state, held_out, params="ema")
    outputs = next(iter(fl.predict(lambda model, batch: model(batch[0]), state, held_out)))
    for i in range(3):
        alone = fl.evaluate(loss, fl.member(state, i), held_out, params="ema")
        assert {name: found[f"{name}[{i}]"] for name in alone} == alone
        own = fl.predict(lambda model, batch: model(batch[0]), fl.member(state, i), held_out)
        assert torch.equal(outputs[i], next(iter(own)))


def test_the_checkpoint_with_the_best_member_is_the_best(tmp_path):
    many = fl.sweep(of(), {"sgd.lr": [1e-4, 0.1, 1e30]})
    monitored = fl.checkpoint(tmp_path / "run", keep=2, monitor="val/loss")
    validation = fl.validate(loss, (X[64:], Y[64:]))
    _, history = fitted(many, many.init(dropping), 5, callbacks=[validation, monitored])
    steps = history.steps("val/loss[0]")
    best = [min(pair) for pair in zip(history["val/loss[0]"], history["val/loss[1]"], strict=True)]
    step = steps[best.index(min(best))]
    assert fl.best(tmp_path / "run").name == f"step-{step:08d}"


def test_reduce_on_plateau_lowers_the_rates_of_members_by_themselves():
    plateau = fl.reduce_on_plateau("val/loss", patience=1, threshold=0.1)
    callbacks = [fl.validate(loss, (X[64:], Y[64:])), plateau]
    many = fl.ensemble(of(), 3)
    state, _ = fitted(many, many.init(dropping), 8, callbacks=callbacks)
    for i in range(3):
        alone, _ = fitted(of(), of().init(dropping, seed=i), 8, callbacks=callbacks)
        assert_close(fl.member(state, i), alone)


def test_members_that_draw_are_compiled_in_a_loop():
    many = fl.ensemble(of(), 3, mode="loop")
    state, _ = fitted(fl.compile(many, backend="aot_eager"), many.init(dropping), 1)
    assert_close(state, fitted(many, many.init(dropping), 1)[0])


def test_torch_optimizers_train_in_a_loop():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.from_torch(torch.optim.SGD, lr=0.1)))
    many = fl.ensemble(step, 2, mode="loop")
    state, _ = fitted(many, many.init(dropping), 1)
    alone, _ = fitted(step, step.init(dropping, seed=1), 1)
    assert fl.tree_equal(fl.member(state, 1), alone)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        fl.ensemble(step, 2)(fl.ensemble(step, 2).init(dropping), BATCH)


def test_pipes_and_reprs():
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)), fl.ensemble(n=4))
    assert repr(step).splitlines()[-2].strip() == "ensemble(4),"
    assert "sweep({'sgd.lr': [0.1, 0.2]})" in repr(fl.sweep(of(), {"sgd.lr": [0.1, 0.2]}))
    many = fl.sweep(of(), {"sgd.lr": [1e-4, 3e-4, 1e-3, 1e-2, 0.1]})
    assert many.describe() == "sweep({'sgd.lr': [0.0001, 0.0003, ..., 0.1 (5)]})"

    def told(rates: torch.Tensor) -> torch.Tensor:  # in a transform, where no value can be read
        assert dataclasses.replace(many, values={"sgd.lr": rates}).describe().endswith("f64[5]})")
        return rates.sum()

    torch.func.grad(told)(many.values["sgd.lr"])


KINDS = {"vmap": {}, "loop": {"mode": "loop"}, "chunks": {"chunk": 1}, "own": {"batches": "own"}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_population_keeps_the_laws(kind):
    many = fl.ensemble(of(), 2, **KINDS[kind])
    state, batch = many.init(dropping), (BATCH, BATCH) if kind == "own" else BATCH
    fl.testing.check_pure(many, state, batch)
    fl.testing.check_repeatable(many, state, batch)
    fl.testing.check_stable(many, state, batch)


@pytest.mark.parametrize(
    ("how", "model", "chunk"),
    [
        ("eager", dropping, 1),
        ("eager", dropping, 2),
        ("eager", normed, 3),
        ("eager", normed, 99),
        ("compiled", normed, 2),
        ("compiled", dropping, 1),
        ("compiled", dropping, 2),
        ("compiled", Attending, 2),
    ],
)
def test_chunks_give_the_numbers_of_all_at_once(how, model, chunk):
    def trained(**options):
        many = fl.ensemble(of(), 3, **options)
        step = fl.compile(many, backend="aot_eager") if how == "compiled" else many
        return fitted(step, many.init(model, seed=5), 1)[0]

    assert_close(trained(chunk=chunk), trained())


OWN = [(X[:64], Y[:64]), (X[32:], Y[32:]), (X[16:80], Y[16:80])]


@pytest.mark.parametrize("how", ["eager", "compiled", "chunked", "loop"])
def test_members_with_batches_of_their_own_are_runs_on_those_data(how, tmp_path):
    own = [fl.Batches(part, 24, seed=i) for i, part in enumerate(OWN)]
    options = {"chunked": {"chunk": 2}, "loop": {"mode": "loop"}}.get(how, {})
    many = fl.ensemble(of(), 3, batches="own", **options)
    step = fl.compile(many, backend="aot_eager") if how == "compiled" else many
    both = fl.data.together(*own)
    state, _ = fl.fit(step, many.init(dropping, seed=5), both, epochs=2, progress=False)
    for i, part in enumerate(own):
        begin = of().init(dropping, seed=5 + i)
        alone, _ = fl.fit(of(), begin, part, epochs=2, progress=False)
        kept = fl.member(state, i)
        assert_close(kept.replace(cursor=alone.cursor), alone)
    if how == "eager":
        saving = [fl.checkpoint(tmp_path / "run")]
        fl.fit(many, many.init(dropping, seed=5), both, steps=4, callbacks=saving, progress=False)
        begin = many.init(dropping, seed=5)
        again, _ = fl.fit(many, begin, both, epochs=2, resume=tmp_path / "run", progress=False)
        assert fl.tree_equal(again, state)


def test_batches_of_members_that_do_not_fit_are_refused():
    many = fl.ensemble(of(), 3, batches="own")
    state = many.init(dropping)
    for wrong in (BATCH, (BATCH,) * 2, (BATCH, BATCH, None), X):
        with pytest.raises(ValueError, match="with one for each of 3 members; got"):
            many(state, wrong)
    ragged = (BATCH, BATCH, (X[:8], Y[:8]))
    with pytest.raises(ValueError, match="differ in structure or shapes"):
        many(state, ragged)
    looped = fl.ensemble(of(), 3, mode="loop", batches="own")
    _, metrics = looped(state, ragged)
    _, named = looped(state, dict(zip("abc", ragged, strict=True)))
    assert fl.tree_equal(metrics, named)
    assert metrics["loss"].value().shape == (3,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batches": "each"}, 'batches="same" or batches="own"'),
        ({"chunk": 0}, "chunk="),
        ({"chunk": 2, "mode": "loop"}, 'chunk= is for mode="vmap"'),
    ],
)
def test_options_of_a_population_are_checked(options, said):
    with pytest.raises(ValueError, match=said):
        fl.ensemble(of(), 3, **options)


def test_a_sweep_of_an_ensemble_keeps_its_options():
    many = fl.sweep(fl.ensemble(of(), 2, chunk=3, batches="own"), {"sgd.lr": [0.1, 0.2]})
    assert (many.n, many.chunk, many.batches) == (4, 3, "own")
    assert "chunk=3, batches='own'" in repr(many)


def test_a_stop_that_is_held_back_freezes_no_member():
    def run(step, least):
        given = [
            fl.every(1, fl.validate(loss, (X[64:], Y[64:])), unit="epoch"),
            fl.early_stopping("val/loss", patience=1, min_delta=1e-3),
        ]
        options = {"epochs": 12, "min_epochs": least, "callbacks": given, "progress": False}
        return fl.fit(step, step.init(dropping), data(), **options)

    many = fl.sweep(of(), {"sgd.lr": [1e-6, 0.1]})
    early, _ = run(many, 0)
    assert early.step.tolist()[0] == 8  # of 48: the second check
    states, _ = run(many, 6)
    assert states.step.tolist()[0] == 24
    alone, history = run(many.member(0), 6)
    assert history.status == "stopped" and int(alone.step) == 24
    kept = fl.member(states, 0)
    assert_close(kept.replace(cursor=alone.cursor), alone)


def test_a_member_is_replayed():
    many = fl.sweep(of(), {"sgd.lr": [0.1, 0.2, 0.3]})
    states, _ = many(many.init(dropping), BATCH)
    after, _ = many(states, BATCH)
    found = fl.replay(fl.compile(many), states, BATCH, member=1)
    assert_close(found.after, fl.member(after, 1))
    assert "member 1 of 3, run alone" in str(found) and found.gradients.keys()
    bad = (torch.full_like(BATCH[0], torch.nan), BATCH[1])
    own = fl.ensemble(of(), 3, batches="own")
    found = fl.replay(own, own.init(dropping), (BATCH, BATCH, bad), member=-1)
    assert found.skipped and found.first_nonfinite is not None
    assert not fl.replay(own, own.init(dropping), (BATCH, BATCH, bad), member=0).skipped
    shared = states.put("calls", {"all": torch.tensor(4), "pair": torch.arange(2)})  # a callback's
    kept = fl.replay(many, shared, BATCH, member=2).after["calls"]
    assert int(kept["all"]) == 4 and kept["pair"].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"state of 3 members.*member=i\), with i from 0 to 2"):
        fl.replay(many, states, BATCH)
    with pytest.raises(ValueError, match="state of one run"):
        fl.replay(of(), fl.member(states, 0), BATCH, member=0)
    with pytest.raises(IndexError, match="no member 3"):
        fl.replay(many, states, BATCH, member=3)


def test_some_members_are_a_population():
    many = fl.sweep(fl.ensemble(of(), 2), {"sgd.lr": [0.1, 0.2, 0.3]})
    states = many.init(dropping)
    some = many.some([4, 1])
    assert some.n == 2 and some.values["sgd.lr"].tolist() == [0.2, 0.2]
    part = chosen(states, [4, 1])
    assert fl.tree_equal(some.init(part), part)
    one = many.some([4])
    assert fl.tree_equal(one.init(chosen(states, [4])), chosen(states, [4]))  # law 3
    after, _ = some(part, BATCH)
    whole, _ = many(states, BATCH)
    assert_close(fl.member(after, 0), fl.member(whole, 4))
    assert_close(fl.member(one(chosen(states, [4]), BATCH)[0], 0), fl.member(whole, 4))


@pytest.mark.parametrize("how", ["vmap", "loop", "compiled"])
def test_memory_of_callbacks_passes_by(how):
    """That of a callback of one's own, which is one number; and batches are of two sizes."""

    @fl.tree
    class counting(fl.base.Callback):
        name: str = "counted"

        def init_state(self, state, metrics):
            return torch.zeros((), dtype=torch.int64)

        def __call__(self, state, x):
            return state.put(self.name, state[self.name] + 1), x

    step = fl.ensemble(of(), 3, mode="loop" if how == "loop" else "vmap")
    part = fl.compile(step, backend="aot_eager") if how == "compiled" else step
    uneven = fl.Batches((X[:40], Y[:40]), 16, seed=0)
    options = {"epochs": 2, "progress": False}
    states, _ = fl.fit(part, step.init(dropping), uneven, callbacks=[counting()], **options)
    assert int(states["counted"]) == 6
    without, _ = fl.fit(step, step.init(dropping), uneven, **options)
    assert_close(states.replace(slots=without.slots), without)


@pytest.mark.parametrize("how", ["eager", "loop", "compiled"])
def test_a_state_of_another_number_of_runs_is_refused(how):
    single = of()
    many = fl.ensemble(single, 3, mode="loop" if how == "loop" else "vmap")
    alone, states = single.init(dropping), many.init(dropping)
    if how == "compiled":
        single, many = (fl.compile(step, backend="aot_eager") for step in (single, many))
    with pytest.raises(ValueError, match=r"population of 3 members.*fl\.member\(state, i\)"):
        single(states, BATCH)
    with pytest.raises(ValueError, match=r"of a single run; step\.init\(state\) makes"):
        many(alone, BATCH)
    with pytest.raises(ValueError, match="population of 3 members"):
        of().init(states)


@pytest.mark.parametrize(("which", "error"), [(3, IndexError), (1.5, TypeError), ("1", TypeError)])
def test_a_member_that_there_is_not_is_refused(which, error):
    many = fl.ensemble(of(), 3)
    states = many.init(dropping)
    for take in (many.member, lambda i: fl.member(states, i), lambda i: many.some([i])):
        with pytest.raises(error, match="from 0 to 2"):
            take(which)
    assert many.some([-1]).seeds == (2,)


def test_halving_takes_a_validation_not_its_name():
    many = fl.sweep(of(), {"sgd.lr": [0.1, 0.2]})
    with pytest.raises(TypeError, match=r"fl\.validate\(loss, val_data\)"):
        fl.tuning.halving(many, many.init(dropping), data(), "val/loss", rungs=(1, 2))


@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_a_buffer_of_a_smaller_batch_is_not_broadcast(mode):
    single = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    step = fl.ensemble(single, 2, mode=mode)
    state, _ = step(step.init(Carrying), BATCH)
    mark = {**state.slots["population"], "active": torch.tensor([True, False])}
    state = state.put("population", mark)
    with pytest.raises(ValueError, match=r"of (buffers/)?hidden, which was f32"):
        step(state, (X[:1], Y[:1]))
