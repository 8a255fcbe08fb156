"""Modules in public styles, against Lightning's own training of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import fnloop as fl
from fnloop.data.sources import as_source
from fnloop.lightning.brought import Brought
from tests.lightning.modules.parts import digits
from tests.lightning.modules.plain import Plain
from tests.lightning.recorded import EPOCHS, MODULES, SETTINGS, module, record, trained

BY_HAND = ("halves", "gan", "hooked")
COMPILED = [
    name if name in ("plain", "collection") else pytest.param(name, marks=pytest.mark.slow)
    for name in MODULES
    if name not in (*BY_HAND, "custom batches")
]


def brought(name: str) -> Brought:
    return fl.lightning.step(module(name), epochs=EPOCHS, **SETTINGS.get(name, {}))


def rows(run, step, state, epochs=None, steps=None):
    """The last state, and the metrics of all steps as numbers."""
    found, loop = (
        [],
        fl.run(step, state, run.data, epochs=epochs, steps=steps, callbacks=run.callbacks),
    )
    for state, metrics in loop:  # noqa: B007
        found.append({n: float(m) for n, m in metrics.items() if not n.startswith("kept/")})
    return state, found


def check(name, found, state, theirs):
    """Losses of all batches, metrics of all epochs, and the last weights are Lightning's."""
    assert len(found) == len(theirs.batches)
    for own, other in zip(found, theirs.batches, strict=True):
        losses = [n for n in other if n == "loss" or (n.endswith("_loss") and "val" not in n)]
        logged = [n for n in ("lr", "grad_norm") if n in other]
        for metric in [*losses, *logged]:
            if metric in own and "/" not in metric and metric != "last_loss":
                assert own[metric] == pytest.approx(other[metric], abs=1e-6), (name, metric)
    per_epoch = len(found) // EPOCHS
    for own, other in zip(found[per_epoch - 1 :: per_epoch], theirs.epochs, strict=True):
        for metric in own.keys() & other.keys():
            if "val" in metric or metric in ("train_acc_epoch", "last_loss"):
                assert own[metric] == pytest.approx(other[metric], abs=1e-6), (name, metric)
    have = {**state.params, **state.buffers}
    assert have.keys() == theirs.weights.keys()
    for tensor, value in theirs.weights.items():
        torch.testing.assert_close(have[tensor], value, rtol=0, atol=1e-6)


@pytest.mark.lightning("H1", "H2", "H4", "H7", "H8", "H10", "H15", "L10", "L11", "L12")
@pytest.mark.parametrize("name", MODULES)
def test_three_epochs_are_those_of_lightning(name, recorded):
    run = brought(name)
    state, found = rows(run, run.step, run.init(), epochs=EPOCHS)
    check(name, found, state, recorded(name))


@pytest.mark.parametrize("name", COMPILED)
def test_they_compile(name, recorded):
    run = brought(name)
    step = fl.compile(run.step, backend="aot_eager")
    state, found = rows(run, step, run.init(), epochs=EPOCHS)
    check(name, found, state, recorded(name))


@pytest.mark.parametrize("name", MODULES)
def test_a_run_that_is_cut_goes_on_to_the_bit(name, tmp_path):
    run = brought(name)
    whole, _ = fl.fit(run.step, run.init(), run.data, epochs=EPOCHS, callbacks=run.callbacks)
    first, _ = fl.fit(run.step, run.init(), run.data, steps=5, callbacks=run.callbacks)
    path = fl.save(first, tmp_path)
    again = brought(name)  # as in another process
    like = fl.fit(again.step, again.init(), again.data, steps=1, callbacks=again.callbacks)[0]
    state = fl.load(path, like=like)
    state, _ = rows(again, again.step, state, steps=whole.cursor[2].item() - 5)
    leaves = zip(fl.tree_leaves(state), fl.tree_leaves(whole), strict=True)
    assert all([torch.equal(a, b) for a, b in leaves]), fl.tree_diff(state, whole)


@pytest.mark.parametrize("name", MODULES)
def test_the_laws_hold(name):
    given = module(name)
    run = fl.lightning.step(given, epochs=EPOCHS, **SETTINGS.get(name, {}))
    state, batch = run.init(), first(run)
    fl.testing.check_pure(run.step, state, batch, given)
    fl.testing.check_repeatable(run.step, state, batch)
    fl.testing.check_init(run.step, run.model)
    fl.testing.check_stable(run.step, state, batch)
    fl.testing.check_skips(run.step, state, spoiled(batch))
    assert given._trainer is None


@pytest.mark.parametrize("name", ["by step", "frozen", "several loaders"])
def test_a_population_does_what_each_member_does_alone(name):
    run = brought(name)
    states = [run.init(seed) for seed in range(2)]
    fl.testing.check_vmaps(run.step, states, first(run))


def first(run):
    return next(iter(as_source(run.data.train).iterate()))[1]


def spoiled(batch):
    """The batch with nan in place of its fractions."""
    if hasattr(batch, "samples"):
        batch = copy.copy(batch)
        batch.samples = batch.samples * torch.nan
        return batch
    return fl.tree_map(lambda x: x * torch.nan if x.is_floating_point() else x, batch)


def test_a_step_prints_as_the_pipeline_that_it_is():
    run = fl.lightning.step(
        module("plain"), gradient_clip_val=1.0, accumulate_grad_batches=2, precision="bf16-mixed"
    )
    assert repr(run.step).split("\n") == [
        "pipe(",
        "    Plain.training_step,",
        "    grad,",
        "    accumulate(2),",
        "    amp('bf16'),",
        "    update(chain(clip_by_norm(max_norm=1.0), adam(lr=0.01))),",
        ")",
    ]


@pytest.mark.lightning("T24")
def test_accumulated_batches_are_those_of_lightning():
    class Even(Plain):
        def train_dataloader(self):
            x, y = digits()
            return DataLoader(TensorDataset(x[:128], y[:128]), batch_size=16)

    MODULES["even"] = Even
    try:
        theirs = record("even", accumulate_grad_batches=4)
        run = fl.lightning.step(module("even"), accumulate_grad_batches=4)
    finally:
        del MODULES["even"]
    state, _ = rows(run, run.step, run.init(), epochs=EPOCHS)
    assert int(state.step) == EPOCHS * 2
    for name, value in theirs.weights.items():
        torch.testing.assert_close(state.params[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"gradient_clip_algorithm": "nrm"}, ValueError, r'takes "norm" or "value", got \'nrm\''),
        ({"gradient_clip_val": -1.0}, ValueError, r"takes a number of at least 0 or None, got -1"),
        ({"accumulate_grad_batches": 0}, ValueError, r"takes a whole number of at least 1, got 0"),
        (
            {"accumulate_grad_batches": {0: 2}},
            TypeError,
            r"got a dict\. .* fl\.accumulate\(fl\.sch",
        ),
        ({"epochs": 2.5}, TypeError, r"takes a whole number of at least 1 or None, got 2\.5"),
    ],
)
def test_arguments_are_checked(given, error, message):
    with pytest.raises(error, match=message):
        fl.lightning.step(module("plain"), **given)


def test_an_algorithm_of_clipping_is_read_as_by_lightning():
    given = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "Value"}
    run = fl.lightning.step(module("plain"), **given)
    state, _ = fl.fit(run.step, run.init(), run.data, epochs=EPOCHS)
    for name, value in record("plain", **given).weights.items():
        torch.testing.assert_close(state.params[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("frequency", "accumulate"), [(3, 1), (2, 2), (4, 3)])
def test_a_scheduler_with_a_frequency_is_stepped_as_by_lightning(frequency, accumulate):
    class Decays(Plain):
        def configure_optimizers(self):
            own = torch.optim.SGD(self.parameters(), lr=0.5)
            decay = torch.optim.lr_scheduler.StepLR(own, 1, gamma=0.6)
            settings = {"scheduler": decay, "interval": "step", "frequency": frequency}
            return {"optimizer": own, "lr_scheduler": settings}

        def train_dataloader(self):
            x, y = digits()
            return DataLoader(TensorDataset(x[:128], y[:128]), batch_size=32 // accumulate)

    class Tells(Decays):
        def training_step(self, batch, batch_idx):
            if batch_idx % accumulate == 0:
                rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, batch_idx)

    rates = []
    trained(Tells(), accumulate_grad_batches=accumulate)
    run = fl.lightning.step(Decays(), accumulate_grad_batches=accumulate, epochs=EPOCHS)
    _, found = rows(run, run.step, run.init(), epochs=EPOCHS)
    assert [row["sgd.lr"] for row in found] == pytest.approx(rates)


def test_it_validates_tests_and_predicts():
    run = brought("plain")
    state, history = fl.fit(run.step, run.init(), run.data, epochs=2, callbacks=run.callbacks)
    found = run.validate(state)
    assert found["val_loss"] == pytest.approx(history["val_loss"][-1])
    assert run.test(state).keys() == {"test_loss"}
    model = fl.to_module(state)
    x, _ = digits()
    expected = model.net(x[120:170]).argmax(-1)
    assert torch.equal(torch.cat(list(run.predict(state))), expected)


def test_a_sweep_is_runs():
    run = brought("plain")
    rates = torch.tensor([1e-3, 1e-2])
    sweep = fl.sweep(run.step, {"adam.lr": rates})
    state, _ = fl.fit(sweep, sweep.init(run.model), run.data, epochs=1, callbacks=run.callbacks)
    for i, lr in enumerate(rates.tolist()):
        own = fl.lightning.step(with_rate(lr), epochs=1, **SETTINGS["plain"])
        single, _ = fl.fit(own.step, own.init(), own.data, epochs=1)
        for name, value in fl.member(state, i).params.items():
            torch.testing.assert_close(value, single.params[name], rtol=1e-5, atol=1e-6)


def with_rate(lr):
    own = module("plain")
    own.hparams.lr = lr
    return own


@pytest.mark.parametrize("name", BY_HAND)
def test_what_runs_by_hand_says_that_it_does_not_compile(name):
    run = brought(name)
    batch = first(run)
    with pytest.raises(Exception, match="It cannot be compiled, vmapped"):
        fl.compile(run.step, backend="aot_eager")(run.init(), batch)


def test_several_optimizers_are_stepped_by_hand():
    class Two(Plain):
        def configure_optimizers(self):
            return [torch.optim.SGD([p]) for p in self.parameters()]

    with pytest.raises(ValueError, match=r"Two.configure_optimizers returns 4 optimizers\. With"):
        fl.lightning.step(Two())


def test_a_batch_that_is_skipped_counts_for_nothing():
    class Skips(Plain):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    run = fl.lightning.step(Skips())
    state, found = rows(run, run.step, run.init(), epochs=1)
    assert int(state.step) == 3
    assert [row["skipped"] for row in found] == [0, 1, 0, 0]
