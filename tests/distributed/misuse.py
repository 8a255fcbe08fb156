"""Each misuse is refused on every rank, with what to do: run by ``test_misuse.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import fnloop as fl
from tests.distributed.scenario import main, scenario


def loss(model, batch):
    return model(batch).square().mean()


def pipeline(lr=0.1, *stages):
    return fl.pipe(loss, fl.grad, *stages, fl.update(fl.optim.sgd(lr)))


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def data(n=16):
    return fl.Batches(torch.ones(n, 3), 4)


def refused(mesh, match, call):
    """Every rank refuses it, with the same words; and the ranks still understand one another."""
    with pytest.raises((RuntimeError, ValueError, TypeError), match=match):
        call()
    assert mesh.exchange("here") == ["here"] * mesh.data


def fit(step, seed=0, batches=None, **options):
    return fl.fit(step, step.init(net, seed=seed), batches or data(), steps=4, **options)


@scenario
def a_module_in_ddp_anywhere_in_the_model(mesh):
    step = fl.shard(pipeline(), mesh)
    refused(mesh, "wrapped in DistributedData", lambda: step.init(DistributedDataParallel(net())))
    inside = nn.Sequential(nn.Linear(3, 3), DistributedDataParallel(net()))
    refused(mesh, "'1' of the model is wrapped in Dist", lambda: step.init(inside))
    listed = nn.ModuleDict({"a": nn.ModuleList([DistributedDataParallel(net())])})
    refused(mesh, "'a.0' of the model is wrapped", lambda: step.init(listed))


@scenario
def a_module_in_fsdp2_anywhere_in_the_model(mesh):
    step = fl.shard(pipeline(), mesh)
    refused(mesh, "wrapped in FSDPModule", lambda: step.init(fully_shard(net())))
    inside = nn.Sequential(nn.Linear(3, 3), fully_shard(net()))
    refused(mesh, "'1' of the model is wrapped in FSDP", lambda: step.init(inside))


@scenario
def different_pipelines(mesh):
    step = fl.shard(pipeline(0.1 + 0.1 * mesh.rank), mesh)
    refused(
        mesh, r"rank 0 has update\(sgd\(lr=0.1\)\), and rank 1 has .*0.2.*same", lambda: fit(step)
    )
    clipped = [fl.accumulate(2)] if mesh.rank else []
    step = fl.shard(pipeline(0.1, *clipped), mesh)
    refused(mesh, "about to do different things", lambda: fit(step))


@scenario
def different_seeds(mesh):
    step = fl.shard(pipeline(), mesh)
    refused(mesh, "different states.*step.init", lambda: step.init(net, seed=mesh.rank))
    torch.manual_seed(mesh.rank)
    refused(mesh, "params.*torch.manual_seed", lambda: step.init(net()))


@scenario
def data_of_different_lengths(mesh):
    step, own = fl.shard(pipeline(), mesh), data(16 + 4 * mesh.rank)
    refused(mesh, "the data.*all of the data", lambda: fit(step, batches=own))
    parts = [torch.ones(2, 3)] * (2 + mesh.rank)  # nobody knows how many there are
    refused(mesh, "different places.*lengths", lambda: fit(step, batches=iter(parts)))


@scenario
def batches_that_differ_from_rank_to_rank(mesh):
    step, g = fl.shard(pipeline(), mesh), torch.Generator().manual_seed(mesh.rank)

    def own(epoch):  # as of numpy.random.default_rng()
        for _ in range(4):
            yield torch.randn(4, 3, generator=g)

    match = "different batches, at .*index=0.*divided among the ranks.*default_rng.*sort it"
    refused(mesh, match, lambda: fit(step, batches=own))
    parts = [[torch.ones(4, 3), torch.full((4, 3), float(mesh.rank))], list(torch.ones(2, 4, 3))]
    refused(mesh, "different batches, at .*index=1", lambda: fit(step, batches=iter(parts[0])))
    state = step.init(net)
    fl.evaluate(loss, state, parts[1], mesh=mesh)
    match = "different batches to evaluate.*all of it"
    refused(mesh, match, lambda: fl.evaluate(loss, state, parts[0], mesh=mesh))
    refused(
        mesh, match, lambda: fl.evaluate(loss, state, parts[1][: 1 + (mesh.rank > 0)], mesh=mesh)
    )


@scenario
def different_checkpoints(mesh):
    step = fl.shard(pipeline(), mesh)
    [folder, *_] = mesh.exchange(tempfile.mkdtemp())
    fit(step, callbacks=[fl.checkpoint(folder, every=1, unit="step")])
    paths = [Path(folder) / f"step-0000000{n}" for n in (2, 4)]
    own = paths[mesh.rank > 0]
    refused(mesh, "different things|different states", lambda: fit(step, resume=own))
    gone = folder if mesh.rank == 0 else f"{folder}-of-another-machine"
    refused(mesh, "different things|different states", lambda: fit(step, resume=gone))


@scenario
def a_mesh_of_the_wrong_size(mesh):
    refused(mesh, r"of 5 processes.*runs in \d.*torchrun", lambda: fl.mesh(data=5))


@scenario
def amp_inside_of_the_mean_over_ranks(mesh):
    inside = pipeline(0.1, fl.amp("fp16"), fl.accumulate(2))
    refused(mesh, "keeps memory.*Put it after fl.accumulate", lambda: fl.shard(inside, mesh))
    outside = fl.shard(pipeline(0.1, fl.accumulate(2), fl.amp("fp16")), mesh)
    assert "amp" in repr(outside).partition("shard")[2]


@scenario
def accumulate_around_a_sharded_stage(mesh):
    sharded, twice = fl.shard(fl.pipe(loss, fl.grad), mesh), fl.accumulate(2)
    refused(mesh, r"is around.*Shard the whole step", lambda: fl.pipe(sharded, twice))
    refused(mesh, "sharded already", lambda: fl.shard(fl.shard(pipeline(), mesh), mesh))


@pytest.mark.lightning("T30")
@scenario
def a_sampler_that_divides_the_data(mesh):
    step, examples = fl.shard(pipeline(), mesh), list(torch.ones(9, 3))
    loader = DataLoader(examples, 2, sampler=DistributedSampler(examples))
    match = "DistributedSampler.*repeats some.*all of the data"
    refused(mesh, match, lambda: fit(step, batches=loader))
    refused(mesh, match, lambda: fit(step, batches=fl.data.prefetch(loader)))
    state = step.init(net)
    refused(mesh, match, lambda: fl.evaluate(loss, state, loader, mesh=mesh))


@scenario
def metrics_that_depend_on_the_rank(mesh):
    def odd(model, batch):
        return loss(model, batch), {f"loss{mesh.rank}": fl.Mean(torch.ones(()), 1)}

    step = fl.shard(fl.pipe(odd, fl.grad, fl.update(fl.optim.sgd(0.1))), mesh)
    refused(mesh, "different things in one step.*loss0.*loss1", lambda: fit(step))


if __name__ == "__main__":
    main()
