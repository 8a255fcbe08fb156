"""Steps that a module takes itself: the laws, and what is in the state."""

from __future__ import annotations

import pytest
import torch
import torchmetrics
from torch.nn import functional as F

import fnloop as fl
from tests.lightning.modules.halves import Halves
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import module


def begun(name="halves"):
    run = fl.lightning.step(module(name))
    return run, run.init(), next(iter(run.data.train))


def test_gradients_that_are_left_are_in_the_state():
    run, state, batch = begun()
    first, _ = run.step(state, batch)
    left = first["lightning"]["left"]
    assert {n: bool(b) for n, b in left.items() if n.startswith("decoder")} == {
        "decoder.weight": True,
        "decoder.bias": True,
    }
    own = module("halves")
    F.mse_loss(own.decoder(own.encoder(batch[0])), batch[0]).backward()
    torch.testing.assert_close(
        first["lightning"]["grads"]["decoder.weight"], own.decoder.weight.grad
    )
    second, _ = run.step(first.replace(cursor=torch.tensor([0, 1, 1])), batch)
    assert not second["lightning"]["left"]["decoder.weight"]
    assert not second["lightning"]["grads"]["decoder.weight"].any()


@pytest.mark.parametrize("name", ["halves", "gan", "hooked"])
def test_a_gradient_that_is_not_finite_skips_all_of_it(name):
    run, state, batch = begun(name)
    state, metrics = run.step(state, batch)
    bad = (batch[0].clone().fill_(torch.nan), batch[1])
    after, metrics = run.step(state, bad)
    assert float(metrics["skipped"]) == 1
    assert int(after.calls) == int(state.calls) + 1
    assert fl.tree_equal(after.replace(calls=state.calls), state)
    assert fl.tree_equal(run.step.init(state), state)


class Gathers(Halves):
    """Steps at every second batch; the gradient of the third is not finite."""

    def training_step(self, batch, batch_idx):
        both = self.optimizers()
        bad = torch.nan if batch_idx == 2 and self.current_epoch == self.spoiled else 1.0
        self.manual_backward(bad * self.decoder(self.encoder(batch[0])).square().mean())
        for each in both if batch_idx % 2 else ():
            each.step()
            each.zero_grad()


@pytest.mark.parametrize(("spoiled", "told"), [(None, []), (1, ["1 of 12 steps were skipped"])])
def test_batches_that_are_gathered_are_not_told_as_skipped(spoiled, told, caplog):
    given = Gathers()
    given.spoiled = spoiled
    run = fl.lightning.step(given)
    state, history = fl.fit(run.step, run.init(), run.data, epochs=3)
    assert int(state.step) == 6
    assert [text.partition(" (")[0] for text in caplog.messages] == told
    assert sum(history["skipped"]) == len(told)


class Reports(Halves):
    """Two optimizers, stepped at each batch, of which one has a scheduler; it returns its loss."""

    def training_step(self, batch, batch_idx):
        both = self.optimizers()
        loss = F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
        self.manual_backward(loss)
        for each in both:
            each.step()
            each.zero_grad()
        return loss


class Watches(Plain):
    def on_after_backward(self):
        pass


def by_torch(own, loss, rates, batches):
    """The losses of a loop in which the learning rate of the first group is set at each step."""
    optimizers, losses = own.configure_optimizers(), []
    both = optimizers[0] if isinstance(optimizers, tuple) else [optimizers]
    for lr, batch in zip(rates, batches, strict=True):
        both[0].param_groups[0]["lr"] = lr
        found = loss(own, batch)
        found.backward()
        losses.append(found.item())
        for each in both:
            each.step()
            each.zero_grad()
    return losses


@pytest.mark.parametrize(
    ("kind", "name", "loss"),
    [
        (Reports, "optimizer0.sgd.lr", lambda m, b: F.mse_loss(m.decoder(m.encoder(b[0])), b[0])),
        (Watches, None, lambda m, b: F.cross_entropy(m.net(b[0]), b[1])),
    ],
)
def test_a_learning_rate_is_found(kind, name, loss):
    torch.manual_seed(0)
    given = kind()
    run = fl.lightning.step(given)
    found = fl.tuning.find_lr(
        run.step, run.init(), run.data, name=name, steps=8, min_lr=1e-3, max_lr=0.5, stop_at=None
    )
    batches = [*run.data.train, *run.data.train]
    assert found.losses == pytest.approx(by_torch(given, loss, found.lrs, batches), rel=1e-5)


@pytest.mark.parametrize("monitor", [None, "train_loss"])
def test_rates_are_lowered_by_a_callback_in_place_of_a_plateau(monitor):
    class Plateaus(Reports):
        def configure_optimizers(self):
            own = torch.optim.SGD(self.parameters(), lr=0.5)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(own, threshold=0.5, patience=0)
            return {"optimizer": own, "lr_scheduler": plateau, "monitor": monitor}

    with pytest.raises(ValueError, match=r"itself, and has ReduceLROn.*reduce_on_plateau"):
        fl.lightning.step(Plateaus())

    class Remedied(Reports):
        def training_step(self, batch, batch_idx):
            loss = F.mse_loss(self.decoder(self.encoder(batch[0])), batch[0])
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    torch.manual_seed(0)
    own = Remedied()
    run = fl.lightning.step(own)
    lowers = fl.reduce_on_plateau("loss", threshold=0.5, patience=0)
    callbacks = [fl.every(1, lowers, unit="epoch")]
    state, history = fl.fit(run.step, run.init(), run.data, epochs=4, callbacks=callbacks)

    optimizer, rates = own.configure_optimizers(), []
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, threshold=0.5, patience=0)
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        total = 0.0
        for x, _ in run.data.train:
            loss = F.mse_loss(own.decoder(own.encoder(x)), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += len(x) * loss.item()
        plateau.step(total)
    assert history["sgd.lr"] == pytest.approx(rates)
    assert rates[-1] < rates[0]
    torch.testing.assert_close(state.params["decoder.weight"], own.decoder.weight.detach())


def test_a_learning_rate_is_not_written_to():
    class Writes(Halves):
        def training_step(self, batch, batch_idx):
            self.optimizers()[0].param_groups[0]["lr"] = 0.1

    run = fl.lightning.step(Writes())
    with pytest.raises(RuntimeError, match=r"writes to param_groups of an optimizer\. .* LambdaLR"):
        run.step(run.init(), next(iter(run.data.train)))


def test_what_is_kept_on_self_is_told():
    class Keeps(Halves):
        def __init__(self):
            super().__init__()
            self.count = 0

        def training_step(self, batch, batch_idx):
            self.count += 1
            super().training_step(batch, batch_idx)

    run = fl.lightning.step(Keeps())
    state, batch = run.init(), next(iter(run.data.train))
    with pytest.warns(UserWarning, match=r"Keeps changed something .*: count\."):
        run.step(state, batch)


def test_autocast_is_that_of_lightning():
    run = fl.lightning.step(module("hooked"), precision="bf16-mixed")
    state, batch = run.init(), next(iter(run.data.train))
    _, metrics = run.step(state, batch)
    own = module("hooked")
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        x, y = batch
        loss = F.cross_entropy(own.net(x), y) + 0.1 * F.mse_loss(own.net(x), own.slow(x))
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-6)


def test_what_has_no_meaning_by_hand_is_refused():
    with pytest.raises(ValueError, match=r"Halves steps its optimizers itself, so accumulate_"):
        fl.lightning.step(Halves(), accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"gradient_clip_val= would clip nothing, .*=0\.5\)"):
        fl.lightning.step(Halves(), gradient_clip_val=0.5)
    with pytest.raises(ValueError, match=r"then precision is '32-true' or 'bf16-mixed', got '16"):
        fl.lightning.step(Halves(), precision="16-mixed")


def test_the_end_of_an_epoch_is_in_the_step():
    ends = []

    class Ends(Halves):
        def training_step(self, batch, batch_idx):
            self.optimizers()[0].step()

        def on_train_epoch_end(self):
            ends.append(self.current_epoch)
            self.lr_schedulers().step()

    run = fl.lightning.step(Ends())
    state, _ = fl.fit(run.step, run.init(), run.data, epochs=2)
    assert ends == [0, 1]
    assert int(state["lightning"]["schedulers"]["0"]) == 2

    with pytest.raises(ValueError, match=r"when an epoch ends is unknown\. Give the data"):
        fl.lightning.step(Ends(), iter([]))

    class Measures(Ends):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

    with pytest.raises(
        ValueError, match=r"metric objects \(error\), which would have seen the last"
    ):
        fl.lightning.step(Measures())


class Toggles(Halves):
    """Each half has its own loss, which reaches the other too."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            with optimizer.toggle_model():
                self.manual_backward(self.decoder(self.encoder(batch[0])).square().mean())
            optimizer.step()
        assert all(p.requires_grad for p in self.parameters())


def test_a_toggled_optimizer_has_the_gradients_alone():
    torch.manual_seed(0)
    own = Toggles()
    run = fl.lightning.step(own)
    batch = next(iter(run.data.train))
    state, _ = run.step(run.init(), batch)
    theirs = dict(own.named_parameters())
    for optimizer in own.configure_optimizers()[0]:
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p in theirs.values():
            p.requires_grad_(id(p) in mine)
        own.decoder(own.encoder(batch[0])).square().mean().backward()
        optimizer.step()
    for name, p in theirs.items():
        torch.testing.assert_close(state.params[name], p.detach())
