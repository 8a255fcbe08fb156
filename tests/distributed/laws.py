"""Law 5, and what goes with it, on every rank: run by ``test_laws.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import fnloop as fl
from fnloop.trees.paths import tree_items
from tests.distributed.scenario import main, scenario


class Net(nn.Module):
    """Two layers, with a norm and dropout where asked."""

    def __init__(self, norm=False, drop=0.0):
        super().__init__()
        self.a, self.b = nn.Linear(8, 33), nn.Linear(33, 5)
        self.norm = nn.BatchNorm1d(33) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)

    def forward(self, x):
        return self.b(self.drop(torch.relu(self.norm(self.a(x)))))


def loss(model, batch):
    """Cross-entropy, with a weighted metric and one that is no mean."""
    x, y = batch
    z = model(x)
    found = {"accuracy": fl.metrics.accuracy(z, y), "top": fl.Max(z.detach().max())}
    return F.cross_entropy(z, y), found


def data(n=45, rows=10):
    """Batches whose last one is short."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 8, generator=g), torch.randint(0, 5, (n,), generator=g)
    return fl.Batches((x, y), rows, seed=1)


def pipeline(k=1, amp=None, optimizer=None, clip=True):
    """A step with everything around the gradients."""
    chain = [fl.optim.clip_by_norm(1.0)] if clip else []
    stages = [fl.accumulate(k)] if k > 1 else []
    stages += [fl.amp(amp)] if amp else []
    optimizer = optimizer or fl.optim.sgd(0.1, momentum=0.9)
    return fl.pipe(
        loss, fl.grad, *stages, fl.update(fl.optim.chain(*chain, optimizer)), fl.ema(0.9)
    )


def trained(step, model=lambda: Net(), batches=None, steps=12):
    """The whole state, and the metrics of all steps."""
    state = step.init(model, seed=3)
    every = []
    for new, metrics in fl.run(step, state, batches or data(), steps=steps):
        state = new
        every.append(fl.metrics.numbers(metrics))
    return fl.gather(state), every


def assert_close(one, many, atol=1e-6):
    """Both runs ended with the same states and metrics, to rounding."""
    (a, numbers), (b, others) = one, many
    assert fl.tree_paths(a) == fl.tree_paths(b)
    for (path, x), (_, y) in zip(tree_items(a), tree_items(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=atol, msg=lambda m, p=path: f"{p}: {m}")
    assert_numbers(numbers, others)


def assert_numbers(one, many, rtol=1e-5):
    """The same metrics at each step; a skipped step has none, which are not a number."""
    for here, there in zip(one, many, strict=True):
        assert here.keys() == there.keys()
        a, b = (torch.tensor(list(each.values())) for each in (here, there))
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, equal_nan=True)


def assert_same_everywhere(mesh, value):
    """All ranks have the same bits."""
    text = repr([leaf.tolist() for _, leaf in tree_items(value)])
    assert len(set(mesh.exchange(text))) == 1


KINDS = {
    "plain": {},
    "dropout": {"model": lambda: Net(drop=0.3)},
    "fp16": {"amp": "fp16"},
    "bf16": {"amp": "bf16"},
    "short batches": {"batches": (45, 3)},
    "one example": {"batches": (4, 1)},
}

PLANS = ("replicate", "zero2", "zero3")


@scenario
def k_ranks_are_accumulate_k(mesh):
    for kind in KINDS.values():
        amp, model = kind.get("amp"), kind.get("model", lambda: Net())
        for m in (1, 2):
            one = trained(pipeline(m * mesh.data, amp), model, data(*kind.get("batches", ())))
            for plan in PLANS:
                step = fl.shard(pipeline(m, amp), mesh, plan)
                many = trained(step, model, data(*kind.get("batches", ())))
                assert_close(one, many)
                assert_same_everywhere(mesh, many[0])


@scenario
def a_sequence_of_steps(mesh):
    def step(k, clip=1.0):
        first = fl.optim.chain(fl.optim.clip_by_norm(clip), fl.optim.adamw(1e-2))
        part = [fl.accumulate(k)] if k > 1 else []
        return fl.sequence(
            first=fl.pipe(loss, fl.grad(only="a"), *part, fl.update(first)),
            last=fl.pipe(
                loss,
                fl.grad(only="b"),
                *part,
                fl.update(fl.optim.sgd(0.1, momentum=0.9)),
                fl.ema(0.9),
            ),
            every={"last": 2},
        )

    one = trained(step(mesh.data), lambda: Net(drop=0.3))
    for plan in PLANS:
        many = trained(fl.shard(step(1), mesh, plan), lambda: Net(drop=0.3))
        assert_close(one, many)
        assert_same_everywhere(mesh, many[0])
    assert int(one[0]["last/step"]) == 6


@scenario
def canonical_has_the_bits_of_one_process(mesh):
    for drop in (0.0, 0.3):
        for amp in (None, "fp16"):
            one, numbers = trained(pipeline(4, amp), lambda drop=drop: Net(drop=drop))
            step = fl.shard(pipeline(4, amp), mesh, reduce="canonical")
            many, others = trained(step, lambda drop=drop: Net(drop=drop))
            assert one == many, fl.tree_diff(one, many)
            assert_numbers(numbers, others, rtol=0.0)


@scenario
def canonical_merges_batch_statistics_alike_on_any_number_of_ranks(mesh):
    step = fl.shard(pipeline(4), mesh, reduce="canonical")
    many, _ = trained(step, lambda: Net(norm=True), data(48, 16))
    alone = fl.shard(pipeline(4), type(mesh)(1), reduce="canonical")
    one, _ = trained(alone, lambda: Net(norm=True), data(48, 16))
    assert one == many, fl.tree_diff(one, many)


@scenario
def every_stage(mesh):
    @fl.tree
    class Noise(fl.GradStage):
        wraps = "grad"
        inner: object

        def __call__(self, state, x):
            state, grads = self.inner(state, x)
            with fl.randomness(state, "noise"):
                scale = 1 + 0.1 * torch.rand(())
            return state, grads.replace(mean=grads.mean.scale(scale))

    def step(k):
        return fl.pipe(
            loss,
            fl.grad,
            *([fl.accumulate(k)] if k > 1 else []),
            fl.amp("fp16", init_scale=2.0**10),
            Noise,
            fl.update(fl.optim.adamw(fl.schedules.linear(1e-2, 1e-3, steps=10))),
            fl.ema(fl.schedules.linear(0.5, 0.9, steps=5)),
            fl.guard(fl.spike("loss", sigmas=0.5, warmup=3)),
            fl.guard(fl.nonfinite(), name="second"),
        )

    one = trained(step(mesh.data), lambda: Net(drop=0.2))
    for plan in PLANS:
        many = trained(fl.shard(step(1), mesh, plan), lambda: Net(drop=0.2))
        assert_close(one, many)
        assert_same_everywhere(mesh, many[0])


@scenario
def the_loop_with_all_its_callbacks(mesh):
    def run(step, **also):
        state = step.init(lambda: Net(), seed=3)
        callbacks = [
            fl.every(1, fl.validate(loss, data(23, 4)), unit="epoch"),
            fl.every(1, fl.validate(loss, data(23, 4), name="ema", params="ema"), unit="epoch"),
            fl.every(1, fl.early_stopping("val/loss", patience=1, min_delta=0.02), unit="epoch"),
            fl.effect(lambda state, metrics: seen.append(int(state.step))),
        ]
        state, history = fl.fit(step, state, data(), epochs=30, callbacks=callbacks, **also)
        return fl.gather(state), history

    seen = []
    _, before = run(pipeline(mesh.data))
    assert before.status == "stopped"
    for plan in PLANS:
        seen = []
        many, history = run(fl.shard(pipeline(), mesh, plan))
        assert (history.status, history.reason) == (before.status, before.reason)
        assert len(history) == len(before)
        for name in ("loss", "val/loss", "ema/loss", "val/accuracy", "val/top"):
            torch.testing.assert_close(
                torch.tensor(history[name]), torch.tensor(before[name]), rtol=1e-5, atol=1e-6
            )
        assert len(seen) == (int(many.step) if mesh.rank == 0 else 0)
        final = fl.evaluate(loss, many, data(23, 4), mesh=mesh)
        again = fl.evaluate(loss, many, data(23, 4))
        assert final.keys() == again.keys()
        assert all(abs(final[name] - again[name]) < 1e-6 for name in final)
        assert len(set(mesh.exchange(repr(final)))) == 1


@scenario
def compiled_in_one_graph(mesh):
    one = trained(pipeline(mesh.data, "fp16"), lambda: Net(drop=0.2), data(40, 10))
    for plan in PLANS:
        step = fl.compile(
            fl.shard(pipeline(1, "fp16"), mesh, plan), donate=True, backend="aot_eager"
        )
        many = trained(step, lambda: Net(drop=0.2), data(40, 10))
        assert_close(one, many, atol=1e-5)  # a difference of 1e-8 may round to another float16
        assert step.graphs == 1
        assert_same_everywhere(mesh, many[0])


if __name__ == "__main__":
    main()
