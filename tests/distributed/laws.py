"""Law 5, and what goes with it, on every rank: run by ``test_laws.py``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import fnloop as fl
from fnloop.trees.paths import tree_items, tree_paths
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


def trained(step, model=lambda: Net(), batches=None, steps=12, epochs=None):
    """The whole state, and the metrics of all steps."""
    state = step.init(model, seed=3)
    every = []
    batches = data() if batches is None else batches
    for new, metrics in fl.run(step, state, batches, steps=steps, epochs=epochs):
        state = new
        every.append(fl.metrics.numbers(metrics))
    return fl.gather(state), every


def assert_close(one, many, atol=1e-6):
    """Both runs ended with the same states and metrics, to rounding."""
    (a, numbers), (b, others) = one, many
    assert tree_paths(a) == tree_paths(b)
    for (path, x), (_, y) in zip(tree_items(a), tree_items(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=atol, msg=lambda m, p=path: f"{p}: {m}")
    assert_numbers(numbers, others)


def assert_numbers(one, many, rtol=1e-6):
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


@pytest.mark.lightning("T2", "S2", "H12", "X4")
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


@pytest.mark.lightning("P6")
@scenario
def everything_at_once_with_a_stage_of_ones_own(mesh):
    @fl.tree
    class Noise(fl.base.GradStage):
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
            fl.guard(fl.rules.spike("loss", sigmas=0.5, warmup=3)),
            fl.guard(fl.rules.nonfinite(), name="second"),
        )

    one = trained(step(mesh.data), lambda: Net(drop=0.2))
    for plan in PLANS:
        many = trained(fl.shard(step(1), mesh, plan), lambda: Net(drop=0.2))
        assert_close(one, many)
        assert_same_everywhere(mesh, many[0])


def balanced(model, batch):
    """Cross-entropy with weights of the classes."""
    x, y = batch
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 0.0])
    total = F.cross_entropy(model(x), y, weight=weight, reduction="sum")
    return fl.Mean(total, weight[y].sum())


@scenario
def class_weights_over_mixed_data_are_those_of_torch(mesh):
    def mixed():
        return fl.data.mix(data(), data(31, 7), weights=(2, 1), seed=4)

    step = fl.pipe(balanced, fl.grad, fl.update(fl.optim.sgd(0.1)))
    start = step.init(lambda: Net(), seed=3)
    mine, losses = fl.to_module(start), []
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0, 0.5, 0.0]))
    for _, (x, y) in zip(range(9), (batch for _, batch in mixed().iterate()), strict=False):
        optimizer.zero_grad()
        losses.append(criterion(mine(x), y))
        losses[-1].backward()
        optimizer.step()
    expected = torch.stack(losses).detach()
    for plan in PLANS:
        many, metrics = trained(fl.shard(step, mesh, plan), batches=mixed(), steps=9)
        found = torch.tensor([each["loss"] for each in metrics])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        for name, p in mine.named_parameters():
            torch.testing.assert_close(many.params[name], p.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.lightning("S2")
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
                torch.tensor(history[name]), torch.tensor(before[name]), rtol=1e-6, atol=1e-6
            )
        assert len(seen) == (int(many.step) if mesh.rank == 0 else 0)
        final = fl.evaluate(loss, many, data(23, 4), mesh=mesh)
        again = fl.evaluate(loss, many, data(23, 4))
        assert final.keys() == again.keys()
        assert all(abs(final[name] - again[name]) < 1e-6 for name in final)
        assert len(set(mesh.exchange(repr(final)))) == 1


@pytest.mark.lightning("X2")
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


class Examples(Dataset):
    """Examples that are drawn anew each time."""

    def __init__(self):
        self.x, self.y = data().at(fl.data.Cursor(0, 0, 0).tensor())[1]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i] + torch.rand(8), self.y[i]


class Stream(IterableDataset):
    """The same, one after the other; each worker has its part."""

    def __iter__(self):
        worker, own = get_worker_info(), Examples()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from [own[i] for i in range(first, len(own), step)]


class Stateful:
    """Batches in an order of their own, as of a loader that keeps its position."""

    def __init__(self):
        self.epoch = self.at = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def __iter__(self):
        order = torch.randperm(10, generator=torch.Generator().manual_seed(self.epoch))
        x, y = data().at(fl.data.Cursor(0, 0, 0).tensor())[1]
        start, self.at = self.at, 0
        for part in order.split(4)[start:]:
            self.at += 1
            yield x[part], y[part]
        self.at = 0


def drawn(epoch):
    """Batches of a function, the last one short."""
    for rows in (4, 4, 1):
        yield torch.rand(rows, 8), torch.randint(0, 5, (rows,))


SOURCES = {
    "a loader": lambda: DataLoader(Examples(), 4, shuffle=True),
    "a loader with workers": lambda: DataLoader(Examples(), 4, shuffle=True, num_workers=2),
    "a loader of a stream": lambda: DataLoader(Stream(), 4, num_workers=2),
    "a dataset": lambda: fl.Batches(Examples(), 4),
    "a loader with a state": Stateful,
    "a function": lambda: drawn,
    "a generator": lambda: (batch for epoch in range(2) for batch in drawn(epoch)),
    "a list": lambda: list(data(9, 4)),
    "drawn ahead": lambda: fl.data.prefetch(DataLoader(Examples(), 4, shuffle=True)),
}


@pytest.mark.lightning("T30")
@scenario
def any_source_of_batches_needs_no_sampler(mesh):
    for make in SOURCES.values():
        one = trained(pipeline(mesh.data), batches=make(), steps=6)
        assert_close(one, trained(fl.shard(pipeline(), mesh), batches=make(), steps=6))


if __name__ == "__main__":
    main()
