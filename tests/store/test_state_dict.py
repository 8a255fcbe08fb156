from __future__ import annotations

import logging
import warnings
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import fnloop as fl
from fnloop.rules.finiteness import nonfinite
from fnloop.stages.guard import guard
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.state_dict import load_state_dict


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 6, bias=False)
        self.last.weight = self.embed.weight
        self.register_buffer("mask", torch.zeros(2), persistent=False)

    def forward(self, tokens):
        return self.last(self.norm(self.embed(tokens)))


def loss(model, tokens):
    return nn.functional.cross_entropy(model(tokens), tokens)


STEP = fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))


@pytest.fixture
def trained():
    """A module whose every tensor has its own values."""
    model = Tied()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 7
    model.last.weight = model.embed.weight
    model.mask.zero_()
    return model


@pytest.fixture
def like():
    return STEP.init(Tied(), seed=5)


def check(state, model):
    for name, tensor in model.named_parameters():
        assert torch.equal(state.params[name], tensor), name
        assert torch.equal(state["ema"][name], tensor), name
    for name, tensor in model.named_buffers():
        assert torch.equal(state.buffers[name], tensor), name


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "old.pt"])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "module"])
def test_a_file_of_torch_save_is_loaded(name, key, trained, like, tmp_path):
    weights = trained.state_dict()
    held = weights if key is None else {"epoch": 3, key: weights, "optimizer": {"state": {}}}
    torch.save(held, tmp_path / name, _use_new_zipfile_serialization=name != "old.pt")
    state = load_state_dict(tmp_path / name, like=like)
    check(state, trained)
    reference = Tied()
    reference.load_state_dict(weights)
    tokens = torch.arange(6)
    assert torch.equal(fl.to_module(state).eval()(tokens), reference.eval()(tokens))


def test_a_file_of_a_real_optimizer_and_scheduler_is_loaded(trained, like, tmp_path):
    optimizer = torch.optim.AdamW(trained.parameters())
    loss(trained, torch.arange(6)).backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    parts = {"model": trained, "optimizer": optimizer, "scheduler": schedule}
    torch.save({k: p.state_dict() for k, p in parts.items()}, tmp_path / "all.pt")
    check(load_state_dict(tmp_path / "all.pt", like=like), trained)


def lightning(model):
    """As Lightning's Trainer.save_checkpoint writes it."""
    names = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return {
        "epoch": 2,
        "global_step": 300,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(names),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "sizes": [1, 2]},
    }


@pytest.mark.lightning("K6")
def test_a_lightning_checkpoint_is_loaded_and_its_prefix_said(trained, like, tmp_path, caplog):
    torch.save(lightning(trained), tmp_path / "last.ckpt")
    with caplog.at_level(logging.INFO, "fnloop"):
        state = load_state_dict(tmp_path / "last.ckpt", like=like)
    check(state, trained)
    assert "the prefix model. was taken off" in caplog.text


@pytest.mark.parametrize("by", [save_file, save_model])
def test_a_safetensors_file_is_loaded(by, trained, like, tmp_path):
    if by is save_file:
        by({n: t.clone() for n, t in trained.state_dict().items()}, tmp_path / "w.safetensors")
    else:
        by(trained, tmp_path / "w.safetensors")  # tied ones once, under either name
    check(load_state_dict(tmp_path / "w.safetensors", like=like), trained)


def test_what_fnloop_exports_is_loaded(trained, like, tmp_path):
    from fnloop.cli.export_command import write_tensors

    weights = {name: t.detach() for name, t in trained.state_dict().items()}
    write_tensors(tmp_path / "w.safetensors", weights, {"source": "here"}, force=False)
    check(load_state_dict(str(tmp_path / "w.safetensors"), like=like), trained)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "model._orig_mod.", "module._orig_mod.model."]
)
def test_common_prefixes_are_taken_off(prefix, trained, like):
    weights = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    check(load_state_dict(weights, like=like), trained)


def test_a_part_that_was_compiled_has_its_name_too(trained, like):
    weights = {n.replace("embed.", "embed._orig_mod."): t for n, t in trained.state_dict().items()}
    check(load_state_dict(weights, like=like), trained)


def test_a_model_that_has_such_a_name_itself_keeps_it(trained):
    outer = nn.Module()
    outer.model = trained
    like = STEP.init(nn.ModuleDict({"model": Tied()}))
    state = load_state_dict(outer.state_dict(), like=like)
    assert torch.equal(state.params["model.embed.weight"], trained.embed.weight)


def test_a_prefix_chooses_a_part(trained, like):
    weights = {f"encoder.{name}": tensor for name, tensor in trained.state_dict().items()}
    weights["head.weight"] = torch.ones(3)
    check(load_state_dict(weights, like=like, prefix="encoder."), trained)
    with pytest.raises(CheckpointError, match=r"(?s)head.weight +f32\[3\] +-.*prefix="):
        load_state_dict(weights, like=like)
    with pytest.raises(CheckpointError, match=r"begins with 'decoder\.'"):
        load_state_dict(weights, like=like, prefix="decoder.")


def test_what_does_not_fit_is_a_table_with_both_sides(trained, like):
    weights = dict(trained.state_dict())
    del weights["norm.bias"]
    weights["extra"] = torch.ones(2)
    weights["norm.weight"] = torch.ones(5)
    weights["norm.running_mean"] = weights["norm.running_mean"].double()
    with pytest.raises(CheckpointError) as caught:
        load_state_dict(weights, like=like)
    rows = [line.split() for line in str(caught.value).splitlines()]
    assert ["norm.bias", "-", "f32[4]"] in rows
    assert ["extra", "f32[2]", "-"] in rows
    assert ["norm.weight", "f32[5]", "f32[4]"] in rows
    assert ["norm.running_mean", "f64[4]", "f32[4]"] in rows


def test_not_strict_loads_what_fits_and_warns_of_the_rest(trained, like):
    weights = dict(trained.state_dict())
    del weights["norm.bias"]
    weights["norm.weight"] = torch.ones(5)
    with pytest.warns(UserWarning, match=r"not loaded.*norm.weight, norm.bias"):
        state = load_state_dict(weights, like=like, strict=False)
    assert torch.equal(state.params["embed.weight"], trained.embed.weight)
    assert torch.equal(state.params["norm.bias"], like.params["norm.bias"])
    assert torch.equal(state["ema"]["embed.weight"], trained.embed.weight)
    with pytest.raises(CheckpointError, match="Nothing of the mapping fits"):
        load_state_dict({"other": torch.ones(1)}, like=like, strict=False)


def test_other_dtypes_are_converted_when_asked(trained, like):
    half = trained.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match="cast=True"):
        load_state_dict(half.state_dict(), like=like)
    state = load_state_dict(half.state_dict(), like=like, cast=True)
    assert state.params["embed.weight"].dtype == torch.float32
    assert torch.equal(state.params["embed.weight"], half.embed.weight.float())


def test_names_of_one_tied_tensor_must_agree(trained, like):
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    check(load_state_dict(weights, like=like), trained)
    weights["last.weight"] += 1
    with pytest.raises(CheckpointError, match=r"different values for 'embed\.weight' and 'last"):
        load_state_dict(weights, like=like)


@pytest.mark.parametrize("name", ["embed.weight", "last.weight"])
def test_one_name_of_a_tied_tensor_is_enough(name, trained, like):
    weights = dict(trained.state_dict())
    del weights[name]
    check(load_state_dict(weights, like=like), trained)


def test_the_rest_of_the_state_is_kept(trained, like):
    state = load_state_dict(trained.state_dict(), like=like)
    assert state.slots["update"] == like.slots["update"]
    assert (int(state.key), int(state.step)) == (5, 0)
    assert torch.equal(state.cursor, like.cursor)
    assert STEP.init(state) == state


def test_nothing_is_shared_with_the_source_or_between_leaves(trained, like):
    weights = trained.state_dict()
    state = load_state_dict(weights, like=like)
    pointers = [leaf.data_ptr() for leaf in fl.tree_leaves(state) if leaf.numel()]
    assert len(set(pointers)) == len(pointers)
    assert not set(pointers) & {tensor.data_ptr() for tensor in weights.values()}


def test_training_from_weights_is_training_the_module_that_has_them(trained, like):
    ours = load_state_dict(trained.state_dict(), like=like)
    theirs = STEP.init(trained, seed=5)
    for _ in range(3):
        ours, theirs = STEP(ours, torch.arange(6))[0], STEP(theirs, torch.arange(6))[0]
    assert fl.tree_equal(ours.params, theirs.params) and fl.tree_equal(ours.slots, theirs.slots)


def test_optimizer_memory_is_no_average_even_where_parameters_are_zero():
    model = nn.Linear(2, 1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9))
    like = step.init(model)
    state = load_state_dict(nn.Linear(2, 1).state_dict(), like=like)
    assert state.slots["update"] == like.slots["update"]
    assert torch.equal(state["ema"]["weight"], state.params["weight"])


def test_a_snapshot_to_go_back_to_is_of_the_loaded_weights(trained):
    step = fl.pipe(
        loss,
        fl.grad,
        fl.update(fl.optim.adamw(0.1)),
        fl.ema(0.9),
        guard(nonfinite(), then="rewind"),
    )
    state = load_state_dict(trained.state_dict(), like=step.init(Tied()))
    fresh = step.init(trained)
    assert fl.tree_equal(state.slots, fresh.slots)


def test_a_state_that_was_trained_is_warned_of(trained, like):
    state, _ = STEP(like, torch.arange(6))
    with pytest.warns(UserWarning, match="1 steps behind it"):
        load_state_dict(trained.state_dict(), like=state)


def test_a_model_that_is_a_tree_goes_by_its_own_names():
    @fl.tree
    class Line:
        w: torch.Tensor
        layers: dict

        def __call__(self, x):
            return x * self.w + self.layers["b"]

    step = fl.pipe(lambda m, x: m(x).mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    like = step.init(Line(torch.zeros(2), {"b": torch.zeros(2)}))
    weights = {"w": torch.ones(2), "layers.b": torch.full((2,), 3.0)}
    assert fl.tree_equal(dict(load_state_dict(weights, like=like).params), weights)


def test_a_wrong_like_is_told():
    with pytest.raises(TypeError, match=r"\(like=\.\.\.\) takes a state, got a Linear"):
        load_state_dict({}, like=nn.Linear(1, 1))


def test_loading_is_silent_where_all_is_well(trained, like, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_state_dict(tmp_path / "w.pt", like=like)
