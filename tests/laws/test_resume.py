"""Law 8, in full: stop anywhere, save, load, go on, and nothing tells that there was a stop."""

import itertools

import pytest
import torch

import fnloop as fl

BATCHES, SIZE, N = 5, 8, 7  # the end of an epoch lies in the middle of the run


def network(dropout):
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.4 if dropout else 0.0),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 3),
    )


def loss(model, batch):
    x, y = batch
    return torch.nn.functional.cross_entropy(model(x), y)


def pipeline(precision, accumulate, ema):
    optimizer = fl.optim.chain(
        fl.optim.clip_by_norm(1.0), fl.optim.adamw(fl.schedules.cosine(0.05, steps=2 * N, warmup=2))
    )
    stages = [loss, fl.grad]
    stages += [] if precision == "fp32" else [fl.amp(precision)]
    stages += [fl.accumulate(4)] if accumulate == 4 else []
    stages += [fl.update(optimizer)]
    stages += [fl.ema(0.9)] if ema else []
    return fl.pipe(*stages)


def data(bad=None):
    """Batches in the order of the data; the one that is drawn as number `bad` is not finite."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(BATCHES * SIZE, 6, generator=generator)
    y = torch.randint(3, (BATCHES * SIZE,), generator=generator)
    if bad is not None:
        x[(bad % BATCHES) * SIZE + 2, 1] = torch.inf
    return fl.Batches((x, y), SIZE, shuffle=False)


def initial(step, dropout, seed):
    torch.manual_seed(seed)
    return step.init(network(dropout), seed=seed)


def states(step, state, batches, steps):
    """All states of a run, the first included."""
    return [state, *(after for after, _ in fl.run(step, state, batches, steps=steps))]


def last(step, state, batches, steps):
    return states(step, state, batches, steps)[-1]


CASES = list(itertools.product(("fp32", "bf16", "fp16"), (1, 4), (False, True), (False, True)))


@pytest.mark.lightning("K1", "O2")
@pytest.mark.parametrize(("precision", "accumulate", "ema", "dropout"), CASES)
def test_a_run_cut_at_any_step_ends_in_the_same_bits(tmp_path, precision, accumulate, ema, dropout):
    step = pipeline(precision, accumulate, ema)
    first = initial(step, dropout, seed=1)
    like = initial(step, dropout, seed=2)
    skips = set()
    for bad in (None, *range(N)):
        batches = data(bad)
        whole = states(step, first, batches, N)
        skips.add(int(whole[-1].step))
        # Around a step that is skipped: stop right before and right after it.
        for k in range(N + 1) if bad is None else (bad, bad + 1):
            loaded = fl.load(fl.save(whole[k], tmp_path), like=like)
            assert loaded == whole[k], (bad, k)
            assert last(step, loaded, batches, N - k) == whole[-1], (bad, k)
    if precision == "fp16":  # it skips more, until its scale fits
        assert len(skips) > 1
    else:
        assert skips == {N, N - 1, N - 2}  # none, one, and one that comes in both epochs


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16-true"])
def test_three_resumes_in_a_row(tmp_path, precision):
    step = pipeline(precision, 4, ema=True)
    first, batches = initial(step, True, seed=1), data(bad=1)
    like = initial(step, True, seed=2)
    whole = last(step, first, batches, 12)
    for cuts in ((1, 1, 1), (2, 3, 4), (4, 1, 5), (0, 5, 5)):
        state = first
        for steps in cuts:
            state = fl.load(fl.save(last(step, state, batches, steps), tmp_path), like=like)
        assert last(step, state, batches, 12 - sum(cuts)) == whole


@pytest.mark.parametrize(
    ("backend", "precision", "accumulate", "donate"),
    [
        ("aot_eager", "fp32", 1, True),
        ("aot_eager", "fp16", 4, False),
        ("inductor", "fp32", 1, True),
    ],
)
def test_a_compiled_step_resumes_like_any_other(tmp_path, backend, precision, accumulate, donate):
    plain = pipeline(precision, accumulate, ema=True)
    step = fl.compile(plain, backend=backend, donate=donate)
    first, batches = initial(plain, True, seed=1), data(bad=2)
    whole = last(step, copied(first), batches, N)
    for k in range(N + 1):
        cut = last(step, copied(first), batches, k)
        loaded = fl.load(fl.save(cut, tmp_path), like=initial(plain, True, seed=2))
        assert last(step, loaded, batches, N - k) == whole, k


def copied(state):
    return fl.tree_map(torch.clone, state)


@pytest.mark.parametrize(("background", "compiled"), [(False, False), (True, False), (True, True)])
def test_saving_at_every_step_changes_no_bit(tmp_path, background, compiled):
    plain = pipeline("fp16", 4, ema=True)
    step = fl.compile(plain, backend="aot_eager") if compiled else plain
    saving = fl.checkpoint(tmp_path, keep=None, every=1, unit="step", background=background)
    plainly, _ = fl.fit(step, initial(plain, True, seed=1), data(bad=3), steps=N)
    saved, _ = fl.fit(step, initial(plain, True, seed=1), data(bad=3), steps=N, callbacks=[saving])
    assert saved == plainly
    # And what was saved is each of the states.
    every = states(plain, initial(plain, True, seed=1), data(bad=3), N)
    like = initial(plain, True, seed=2)
    for k in range(1, N + 1):
        loaded = fl.load(tmp_path / f"step-{k:08d}", like=like)
        if compiled:  # another graph rounds differently
            assert loaded.cursor.tolist() == every[k].cursor.tolist()
            torch.testing.assert_close(loaded.params, every[k].params, rtol=1e-3, atol=1e-4)
        else:
            assert loaded == every[k]
