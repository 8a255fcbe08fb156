"""Checkpoints of states on many ranks: run by ``test_store.py``."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import torch
from torch import nn

import fnloop as fl
from tests.dist.scenario import main, scenario

PLANS = ("replicate", "zero2")


class Net(nn.Module):
    """Tensors of many sizes and dtypes: fewer values than ranks, none, complex, half."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape, **kind: torch.randn(*shape, generator=generator, **kind)  # noqa: E731
        self.a = nn.Parameter(draw(3, 7))
        self.one = nn.Parameter(draw(()))
        self.three = nn.Parameter(draw(3))
        self.none = nn.Parameter(draw(0, 4))
        self.spin = nn.Parameter(draw(5, dtype=torch.complex64))
        self.small = nn.Parameter(draw(9).to(torch.bfloat16))
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        scale = self.one + self.three.sum() + self.none.sum() + self.spin.abs().sum()
        return self.norm(x @ self.a) * scale * self.small.float().mean()


def loss(model, x):
    """A loss that all parameters have a part in."""
    return model(x).square().mean()


def pipeline():
    """A step with moments and an average."""
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))


def step_for(mesh, plan):
    """The step as `plan` has it; on one process as it is without a mesh."""
    return fl.shard(pipeline(), mesh, plan)


def data():
    """Twelve examples, four a batch."""
    return fl.Batches(torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), 4, seed=1)


def trained(mesh, plan, steps=3, seed=0, **settings):
    """A state after some steps."""
    step = step_for(mesh, plan)
    state = step.init(lambda: Net(seed), seed=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state, history = fl.fit(step, state, data(), steps=steps, **settings)
    return state, [str(each.message) for each in caught], history


def bits(state):
    """The whole state by path, as text."""
    return {
        path: repr(leaf.tolist())
        for path, leaf in zip(fl.tree_paths(state), fl.tree_leaves(state), strict=True)
    }


def folder_for(mesh, name):
    """A folder that all ranks know."""
    return mesh.exchange(str(Path(os.environ["PLACE"], f"{name}-{mesh.data}")))[0]


@scenario
def what_is_saved_is_loaded_by_any_plan(mesh):
    """And left there for other numbers of ranks; what they have left is loaded."""
    for plan in PLANS:
        state, _, _ = trained(mesh, plan)
        folder = folder_for(mesh, plan)
        path = fl.save(state, folder, mesh=mesh)
        whole = bits(fl.gather(state))
        if mesh.rank == 0:
            Path(folder, "bits.json").write_text(json.dumps(whole))
        for other in PLANS:
            like = step_for(mesh, other).init(lambda: Net(7), seed=9)
            assert bits(fl.gather(fl.load(path, like=like))) == whole
        alone = pipeline().init(lambda: Net(7), seed=9)
        assert bits(fl.load(path, like=alone)) == whole
    mesh.exchange(0)


@scenario
def what_others_have_left_is_loaded(mesh):
    """Every checkpoint beside, of whatever number of ranks and plan."""
    left = sorted(Path(os.environ["PLACE"]).glob("*/bits.json"))
    for file in left:
        whole = json.loads(file.read_text())
        for plan in PLANS:
            like = step_for(mesh, plan).init(lambda: Net(7), seed=9)
            assert bits(fl.gather(fl.load(file.parent, like=like))) == whole, (file, plan)
    assert len(left) >= len(PLANS)
    mesh.exchange(0)


if __name__ == "__main__":
    main()
