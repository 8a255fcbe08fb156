"""Wrong arguments are refused at once, by every public function and class, in plain words.

Each is called as `VALID` says, with one argument after the other replaced by what it cannot be. A
public name without a case fails.
"""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fnloop as fl

FAMILIES = (
    "optim",
    "schedules",
    "metrics",
    "schemes",
    "data",
    "trackers",
    "tuning",
    "rules",
    "store",
    "lightning",
)
HERE = "a/fnloop/run"
"""A folder that is not there."""


def loss(model, batch):
    return model(batch).square().mean()


GRAD, MODEL, BATCH = fl.grad(loss), nn.Linear(2, 1), torch.ones(4, 2)
STEP = fl.update(fl.optim.sgd(0.1))(GRAD)
STATE = STEP.init(MODEL)
NORMED = STEP.init(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))
DATA, ADAM = fl.Batches(torch.ones(8, 2), 4), fl.optim.adam()
ON_STATE = {"stage": GRAD, "state": STATE, "batch": BATCH}
TRAINED = {"step": STEP, "state": STATE, "data": DATA}
LOGITS = {"logits": torch.randn(4, 6), "targets": torch.zeros(4, dtype=torch.int64)}
PAIR = {"predictions": torch.randn(4), "targets": torch.randn(4)}
LOSSES = {"first": loss, "second": loss}


def callback(state, metrics):
    return state, metrics


VALID: dict[str, dict[str, Any]] = {
    "tree_at": {"where": lambda t: t[0], "tree": (1, 2), "value": 3},
    "tree_show": {"tree": BATCH},
    "randomness": {"state": STATE, "name": "mine"},
    "to_module": {"state": STATE},
    "accumulate": {"k": 2},
    "amp": {"precision": "bf16"},
    "grad": {"loss": loss},
    "guard": {"rule": fl.rules.spike()},
    "scale": {"state": STATE, "hyperparameter": "sgd.lr", "factor": 0.5},
    "stage": {"function": callback, "kind": "callback"},
    "update": {"optimizer": ADAM},
    "compile": {"step": STEP},
    "ensemble": {"step": STEP, "n": 2},
    "sweep": {"step": STEP, "values": {"sgd.lr": [0.1, 0.2]}},
    "unroll": {"step": STEP, "state": STATE, "batches": [BATCH]},
    "summary": {"step": STEP, "state": STATE},
    "member": {"population": fl.ensemble(STEP, 2).init(MODEL), "i": 0},
    "shard": {"step": STEP, "mesh": fl.mesh()},
    "place": {"state": STATE, "mesh": fl.mesh()},
    "gather": {"state": STATE},
    "stop": {"when": True, "reason": "mine"},
    "Batches": {"data": BATCH, "batch_size": 2},
    "Data": {"train": DATA},
    "effect": {"function": lambda state, metrics: None},
    "early_stopping": {"monitor": "loss"},
    "evaluate": {"fn": loss, "state": STATE, "data": DATA},
    "every": {"n": 2, "callback": callback},
    "fit": {**TRAINED, "steps": 1},
    "predict": {"fn": loss, "state": STATE, "data": DATA},
    "refresh_batchnorm": {"fn": loss, "state": NORMED, "data": DATA},
    "population": {"monitor": "loss"},
    "reduce_on_plateau": {"monitor": "loss"},
    "replay": {"step": STEP, "state": STATE, "batch": BATCH},
    "run": {**TRAINED, "steps": 1},
    "validate": {"fn": loss, "data": DATA},
    "profile": TRAINED,
    "best": {"folder": HERE},
    "latest": {"folder": HERE},
    "checkpoint": {"folder": HERE},
    "load": {"path": HERE, "like": STATE},
    "save": {"state": STATE, "folder": HERE},
    "track": {"tracker": fl.trackers.CSV(f"{HERE}.csv")},
    "Recipe": {"step": STEP, "model": MODEL, "data": DATA, "steps": 1},
    "optim.schedule_free": {"optimizer": ADAM},
    "optim.by_label": {"optimizers": {"all": ADAM}, "labels": {"*": "all"}},
    "optim.masked": {"optimizer": ADAM, "where": ["weight"]},
    "optim.from_torch": {"optimizer": torch.optim.SGD},
    "optim.add_decayed_weights": {"weight_decay": 0.1},
    "optim.clip_by_norm": {"max_norm": 1.0},
    "optim.clip_by_value": {"limit": 1.0},
    "optim.scale_by": {"factor": 1.0},
    "schedules.by_epoch": {"values": {0: 1.0}},
    "schedules.by_step": {"values": {0: 1.0}},
    "schedules.constant": {"value": 1.0},
    "schedules.cosine": {"peak": 1.0, "steps": 9},
    "schedules.exponential": {"start": 1.0, "rate": 0.5},
    "schedules.inverse_sqrt": {"peak": 1.0, "warmup": 3},
    "schedules.linear": {"start": 1.0, "end": 0.0, "steps": 9},
    "schedules.polynomial": {"start": 1.0, "end": 0.0, "steps": 9},
    "schedules.step_decay": {"start": 1.0, "rate": 0.5, "steps": 3},
    "schedules.join": {"schedules": (fl.schedules.constant(1.0),) * 2, "boundaries": (3,)},
    "schedules.one_cycle": {"peak": 1.0, "steps": 9},
    "schedules.warmup_stable_decay": {"peak": 1.0, "steps": 9, "warmup": 2, "decay": 2},
    **{f"metrics.{name}": LOGITS for name in ("accuracy", "top_k_accuracy", "confusion", "f1")},
    "metrics.perplexity": LOGITS,
    **{f"metrics.{name}": PAIR for name in ("mae", "mse", "r2", "rmse")},
    "metrics.merge": {"parts": [{"a": fl.Sum(1.0)}]},
    "metrics.numbers": {"metrics": {"a": fl.Sum(1.0)}},
    "metrics.find": {"metrics": {"a": fl.Sum(1.0)}, "name": "a"},
    "metrics.from_torchmetrics": {"metric": None},
    "schemes.gradnorm": LOSSES,
    "schemes.several": LOSSES,
    "schemes.pcgrad": LOSSES,
    "schemes.hessian_product": {**ON_STATE, "vector": STATE.params},
    "schemes.sharpness": ON_STATE,
    "schemes.implicit": ON_STATE,
    "schemes.lanczos": {**ON_STATE, "steps": 2},
    "schemes.extragradient": {"lr": 0.1},
    "schemes.forward_gradient": {"inner": GRAD},
    "schemes.sghmc": {"temperature": 1.0},
    "schemes.sgld": {"temperature": 1.0},
    "schemes.hypergradient": {"optimizer": ADAM, "rate": 0.1},
    "schemes.dp_sgd": {"clip": 1.0, "noise": 1.0},
    "schemes.epsilon": {"noise": 1.0, "share": 0.1, "steps": 3, "delta": 1e-5},
    "schemes.swag_sample": {"state": STATE},
    "data.BucketSampler": {"buckets": [0, 0, 1, 1], "batch_size": 2},
    "data.folds": {"n": 9, "k": 2},
    "data.group": {"data": DATA, "k": 2},
    "data.limit": {"data": DATA, "n": 2},
    "data.mix": {},
    "data.pack": {"examples": [torch.ones(3)], "length": 5, "values": 0.0},
    "data.pad": {"lengths": [3], "values": 0.0},
    "data.permute": {"positions": torch.arange(3), "n": 5, "seed": 0},
    "data.prefetch": {"data": DATA},
    "trackers.Histogram": {"values": BATCH},
    "trackers.JSONL": {"path": HERE},
    "trackers.CSV": {"path": HERE},
    "trackers.TensorBoard": {"folder": HERE},
    "trackers.Image": {"picture": torch.rand(3, 4, 4)},
    "trackers.Audio": {"samples": torch.rand(99), "rate": 99},
    "trackers.Text": {"text": "mine"},
    "trackers.File": {"path": __file__},
    "trackers.show": {"function": lambda state, metrics: {}},
    "trackers.gradients": {"loss": loss, "batch": BATCH},
    "trackers.matrix": {"metric": "confusion"},
    "tuning.find_batch_size": TRAINED,
    "tuning.find_lr": TRAINED,
    "tuning.keep_best": {"monitor": "loss"},
    "tuning.best_states": {"state": STATE},
    "tuning.lineage": {"history": fl.History()},
    "tuning.halving": {
        "step": fl.ensemble(STEP, 2),
        "states": fl.ensemble(STEP, 2).init(MODEL),
        "data": DATA,
        "validation": fl.validate(loss, DATA),
    },
    "store.read_manifest": {"path": HERE},
    "store.load_state_dict": {"source": {}, "like": STATE},
    "lightning.step": {"module": MODEL},
    "lightning.data": {"given": DATA},
    "lightning.read": {"path": HERE},
}

LEFT_OUT = {
    # They take anything, or nothing.
    *("static", "tree", "partition", "combine", "tree_map", "tree_leaves", "tree_equal"),
    *("tree_diff", "training"),
    # Made in every step, where checks would cost.
    *("Grads", "State", "Tensors", "Last", "Max", "Mean", "Min", "Sum"),
    # fnloop itself makes them.
    *("data.Micro", "data.Cursor", "data.PackedRows", "data.Padded", "tuning.Attempt"),
    *("tuning.BatchSizeSearch", "tuning.Halving", "tuning.Rung", "tuning.Lineage"),
    "tuning.LrSearch",
    # Base classes.
    *("optim.Optimizer", "schedules.Schedule", "metrics.Metric", "trackers.Tracker"),
    "trackers.Shown",
    # They take parts alone, and have tests of what these are.
    *("pipe", "sequence", "optim.chain", "data.together", "data.concat"),
}

WRONG = {
    "a text": "a",
    "nothing": None,
    "a negative number": -1,
    "nan": float("nan"),
    "a fraction": 1.5,
    "a class": nn.Linear,
    "a module": MODEL,
    "a stage": STEP,
}
ANYTHING, NUMBERS = set(WRONG), {"a negative number", "a fraction", "nan"}
FITS = {
    "tree_at(where)": {"a module", "a stage"},
    "stage(function)": {"a stage"},
    "tree_at(tree)": ANYTHING,
    "tree_at(value)": ANYTHING,
    "tree_show(tree)": ANYTHING,
    "Batches(data)": {"a text"},  # a dataset of characters
    "compile(backend)": {"a text"},
    "member(i)": {"a negative number"},
    "save(step)": ANYTHING,
    "Recipe(model)": {"a class", "a module", "a stage"},
    "data.pack(values)": NUMBERS,
    "data.pad(values)": NUMBERS,
    **{name: {"a text"} for name in ("grad(only)", "grad(frozen)")},
    **{name: NUMBERS | {"a text"} for name in ("evaluate(statistics)", "validate(statistics)")},
}
"""What fits all the same, beyond what `fitting` says."""


def public() -> dict[str, Any]:
    found = {name: getattr(fl, name) for name in fl.__all__}
    for family in FAMILIES:
        module = getattr(fl, family)
        names = [name for name in vars(module) if not name.startswith("_")]
        found |= {f"{family}.{name}": getattr(module, name) for name in names}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


PUBLIC = public()


def parameters(function: Any) -> list[inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return [each for each in found if each.kind not in variadic]


def fitting(name: str, parameter: inspect.Parameter) -> set[str]:
    """The kinds of `WRONG` that are right for a parameter."""
    kind = str(parameter.annotation)
    if parameter.name == "batch":
        return ANYTHING  # it is for the loss to say
    found = set(FITS.get(f"{name}({parameter.name})", ()))
    if "None" in kind or parameter.default is None:
        found.add("nothing")
    if parameter.name == "step":
        found.add("a stage")
    if re.search(r"\bstr\b", kind):
        found.add("a text")
    if re.search("float|Hyper|NonNegative|NormBound|Positive|Share|Value|_Scale", kind):
        found.add("a fraction")
    if re.search("Hyper|Value|bounded", kind) or parameter.name in ("seed", "ignore_index"):
        found.add("a negative number")
    return found


def test_every_public_name_has_a_case() -> None:
    missing = []
    for name, value in PUBLIC.items():
        needs = [each for each in parameters(value) if each.default is each.empty]
        if needs and name not in VALID and name not in LEFT_OUT:
            missing.append(name)
    assert not missing, "Say in VALID how these are called."
    assert VALID.keys() | LEFT_OUT <= PUBLIC.keys()
    assert not VALID.keys() & LEFT_OUT


@pytest.mark.parametrize("name", sorted(PUBLIC.keys() - LEFT_OUT))
def test_wrong_arguments_are_refused(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    function, unclear = PUBLIC[name], list[str]()
    for parameter in parameters(function):
        for kind in WRONG.keys() - fitting(name, parameter):
            given = {**VALID.get(name, {}), parameter.name: WRONG[kind]}
            if (found := told(function, given, name, parameter.name)) is not None:
                unclear.append(f"{parameter.name} = {kind}: {found}")
    assert not unclear, "\n".join(["", *unclear])


def told(function: Any, given: dict[str, Any], name: str, argument: str) -> str | None:
    """What is wrong with how a call is refused; None if it is, in plain words."""
    try:
        with warnings.catch_warnings(action="ignore"):
            function(**given)
    except (TypeError, ValueError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        own = name.rpartition(".")[2]
        if "/fnloop/" not in place or not re.search(rf"\b({argument}|{own})\b", str(error), re.I):
            return f"{error!r}, from {place}"
        return None
    except Exception as error:
        return repr(error)
    return "accepted"
