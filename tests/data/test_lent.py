"""Functions that write to a batch which lies in the memory of the user's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl
from fnloop.data.batches import Batches

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def net() -> nn.Module:
    return nn.Linear(3, 1)


def pairs(batch: Any) -> list[tuple[Tensor, Tensor]]:
    """The parts of a batch of any of the data below."""
    if isinstance(batch, fl.data.Micro):
        return list(batch.parts)
    return list(batch.values()) if isinstance(batch, dict) else [batch]


def loss(model: Any, batch: Any) -> Any:
    x, y = pairs(batch)[0]
    return F.mse_loss(model(x), y)


def writing(model: Any, batch: Any) -> Any:
    pairs(batch)[-1][0].mul_(2)
    return loss(model, batch)


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mul_(2))


def parts(x: Tensor, y: Tensor) -> Batches:
    return fl.Batches((x, y), 4, shuffle=False)


LENT: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "not shuffled": parts,
    "arrays": lambda x, y: fl.Batches((x.numpy(), y.numpy()), 4, shuffle=False),
    "one batch": lambda x, y: (x, y),
    "a list": lambda x, y: [(x, y)],
    "limit": lambda x, y: fl.data.limit(parts(x, y), 2),
    "group": lambda x, y: fl.data.group(parts(x, y), 2),
    "prefetch": lambda x, y: fl.data.prefetch(parts(x, y)),
    "concat": lambda x, y: fl.data.concat(parts(x, y), parts(x, y)),
    "together": lambda x, y: fl.data.together(a=parts(x, y), b=parts(x, y)),
}
COPIED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "shuffled": lambda x, y: fl.Batches((x, y), 4),
    "buckets": lambda x, y: fl.Batches((x, y), 4, shuffle=False, buckets=[0, 1] * 6),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), 4),
    "a dataset": lambda x, y: fl.Batches([*zip(x, y, strict=True)], 4, shuffle=False),
}


def evaluated(data: Any, state: fl.State) -> Any:
    return fl.evaluate(writing, state, data)


def predicted(data: Any, state: fl.State) -> Any:
    return list(fl.predict(writing, state, data))


def trained(data: Any, state: fl.State) -> Any:
    step = fl.pipe(writing, fl.grad, fl.update(fl.optim.sgd(0.1)))
    return fl.fit(step, step.init(net, seed=0), data, epochs=2)


def refreshed(data: Any, state: fl.State) -> Any:
    return fl.refresh_batchnorm(writing, state, data)


@pytest.fixture
def state() -> fl.State:
    return fl.grad(loss).init(nn.Sequential(net(), nn.BatchNorm1d(1)), seed=0)


@pytest.mark.parametrize("use", [evaluated, predicted, trained, refreshed])
@pytest.mark.parametrize("kind", LENT)
def test_a_write_is_told_at_the_first_batch(kind: str, use: Any, state: fl.State) -> None:
    x = X.clone()
    with pytest.raises(RuntimeError, match=r"has written to its batch, at '.*0', in place"):
        use(LENT[kind](x, Y.clone()), state)
    assert kind in ("one batch", "a list") or torch.equal(x[8:], X[8:])


@pytest.mark.parametrize("kind", COPIED)
def test_copies_may_be_written_to(kind: str, state: fl.State) -> None:
    x = X.clone()
    data = COPIED[kind](x, Y)
    expected = fl.evaluate(loss, state, fl.Batches((2 * X, Y), 12))
    for _ in range(2):
        assert evaluated(data, state) == pytest.approx(expected, rel=1e-5)
    trained(data, state)
    assert torch.equal(x, X)


def test_copies_on_another_device_are_not_the_users() -> None:
    assert not fl.data.prefetch(parts(X, Y), device="meta").lent
    assert fl.data.prefetch(parts(X, Y), device="cpu").lent


def test_so_is_a_write_by_the_model_or_by_one_of_many_members() -> None:
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    with pytest.raises(RuntimeError, match="The step has written"):
        fl.fit(step, step.init(Doubling(3, 1)), parts(X.clone(), Y), epochs=1)
    writer = fl.pipe(writing, fl.grad, fl.update(fl.optim.sgd(0.1)))
    many = fl.ensemble(writer, 2, mode="loop")
    with pytest.raises(RuntimeError, match="The step has written"):
        fl.fit(many, many.init(net), parts(X.clone(), Y), epochs=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_compiled_step_refuses_to_write(steps: int) -> None:
    step = fl.compile(fl.pipe(writing, fl.grad, fl.update(fl.optim.sgd(0.1))), steps=steps)
    x = X.clone()
    with pytest.raises(fl.errors.CompileError, match="writes to the batch"):
        fl.fit(step, step.init(net), parts(x, Y), epochs=1)
    assert torch.equal(x, X)


def test_a_module_of_lightning() -> None:
    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Any, index: int) -> Any:
            return loss(self.net, batch)

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("loss", writing(self.net, batch))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    run = fl.lightning.step(Module(), fl.Batches((X, Y), 4))
    with pytest.raises(RuntimeError, match=r"Module.validation_step has written to its batch"):
        run.validate(run.init(), parts(X.clone(), Y))


def test_the_user_may_write_between_two_batches() -> None:
    """The losses are those of a loop of torch over the same numbers."""
    x, y = X.clone(), Y.clone()
    step = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.1)))
    torch.manual_seed(0)
    start = net()

    def refill(state: fl.State, metrics: Any) -> Any:
        x.add_(1)
        return state, metrics

    losses = []
    begun = step.init(start)
    for _, metrics in fl.run(step, begun, parts(x, y), steps=7, callbacks=[refill]):
        losses.append(float(metrics["loss"]))
        y.mul_(1.5)
    optimizer, expected, a, b = torch.optim.SGD(start.parameters(), 0.1), [], X.clone(), Y.clone()
    for i in range(7):
        rows = slice(i % 3 * 4, i % 3 * 4 + 4)
        optimizer.zero_grad()
        value = F.mse_loss(start(a[rows]), b[rows])
        value.backward()
        optimizer.step()
        expected.append(value.item())
        a.add_(1)
        b.mul_(1.5)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_what_a_function_adds_to_its_batch_is_no_write(state: fl.State) -> None:
    def adding(model: Any, batch: Any) -> Any:
        batch["x"], batch["more"] = batch["x"] * 2, 0
        return F.mse_loss(model(batch["x"]), batch["y"])

    data = fl.Batches({"x": X, "y": Y}, 4, shuffle=False)
    assert fl.evaluate(adding, state, data) == fl.evaluate(adding, state, data)


def unsqueezing(model: Any, batch: Any) -> Any:
    x, y = batch
    return F.mse_loss(model(x), y.unsqueeze_(1))


@pytest.mark.parametrize("together", [False, True])
def test_another_shape_of_a_part_is_no_write(together: bool, state: fl.State) -> None:
    table = torch.cat([X, Y], 1)
    columns = (table[:, :3], table[:, 3]) if together else (X, Y[:, 0])
    expected = fl.evaluate(loss, state, parts(X, Y))
    for data in (fl.Batches(columns, 4, shuffle=False), columns):
        for _ in range(2):
            assert fl.evaluate(unsqueezing, state, data) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RuntimeError, match="at '1', in place"):  # the tensor of the list changes
        fl.evaluate(unsqueezing, state, [(X.clone(), Y[:, 0].clone())])


def test_a_write_to_another_column_than_the_one_with_another_shape(state: fl.State) -> None:
    def both(model: Any, batch: Any) -> Any:
        batch[0].mul_(2)
        return unsqueezing(model, batch)

    with pytest.raises(RuntimeError, match="at '0', in place"):
        fl.evaluate(both, state, fl.Batches((X.clone(), Y[:, 0].clone()), 4, shuffle=False))


def test_what_torch_does_not_count_is_let_be(state: fl.State) -> None:
    with torch.inference_mode():
        data = parts(X.clone(), Y.clone())
    assert fl.evaluate(loss, state, data) == fl.evaluate(loss, state, parts(X, Y))
