"""Checkpoints of states on many ranks: run by ``test_store.py``."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

import fnloop as fl
from fnloop.distributed.gates import RankError, leave
from fnloop.distributed.jointly import jointly
from fnloop.distributed.mesh import Mesh
from fnloop.store import patience
from fnloop.store.commit import sweep
from fnloop.store.files import Disk
from fnloop.store.manifest import read_manifest
from fnloop.store.remote import Remote
from fnloop.trees.paths import tree_paths
from tests.distributed.scenario import main, meet, scenario
from tests.store.faulty import Faulty

PLANS = ("replicate", "zero2", "zero3", "tensor")
KEPT = ("replicate", "zero2", "tensor")
"""Plans by what ranks keep: with "zero3" it is the same as with "zero2"."""
DIVIDED = ("zero2", "tensor")
CUTS = {"left": 0, "cube": 1}
STRIDE = int(os.environ.get("STRIDE", "5"))  # of the calls that fail, every so many


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
        self.left, self.cube = nn.Parameter(draw(12, 2)), nn.Parameter(draw(2, 12, 2))
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        scale = self.one + self.three.sum() + self.none.sum() + self.spin.abs().sum()
        scale = scale + self.left.square().mean() * self.cube.sum(0).mean()
        return self.norm(x @ self.a) * scale * self.small.float().mean()


def loss(model, x):
    """A loss that all parameters have a part in."""
    return model(x).square().mean()


def pipeline():
    """A step with moments and an average."""
    return fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2)), fl.ema(0.9))


def axes(mesh, tensor):
    """The ranks of a mesh, of which so many share a model."""
    return fl.mesh(tensor=tensor) if type(mesh) is Mesh else Some(mesh.data, tensor)


def step_for(mesh, plan, step=None):
    """The step as `plan` has it; on one process as it is without a mesh."""
    if plan == "tensor":
        mesh, plan = axes(mesh, mesh.data), CUTS
    elif plan == "zero2 and tensor":
        mesh, plan = axes(mesh, 2), ("zero2", CUTS)
    return fl.shard(step or pipeline(), mesh, plan)


def plans_for(ranks):
    """The plans that so many ranks have."""
    return [*PLANS, *(["zero2 and tensor"] if ranks == 4 else [])]


def data():
    """Three batches, of which each of four ranks gets two examples."""
    return fl.Batches(torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), 8, seed=1)


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
        for path, leaf in zip(tree_paths(state), fl.tree_leaves(state), strict=True)
    }


def folder_for(mesh, name):
    """A folder that all ranks know."""
    return Path(sys.argv[1], f"{name}-{mesh.data}")


class Some(Mesh):
    """The first few ranks, as a mesh of their own. All ranks make it."""

    def __init__(self, count, tensor=1):
        super().__init__(count // tensor, tensor)
        if (count, tensor) not in _GRIDS:
            ranks, names = torch.arange(count).reshape(-1, tensor), ("data", "tensor")
            _GRIDS[count, tensor] = DeviceMesh("cpu", ranks, mesh_dim_names=names)

    @property
    def grid(self):
        return _GRIDS[self.data * self.tensor, self.tensor]

    @property
    def group(self):
        return self.grid.get_group("data")

    @property
    def everyone(self):
        return Some(self.data * self.tensor)


_GRIDS = {}


@pytest.mark.lightning("K9")
@scenario
def every_pair_of_ranks_and_plans_saves_and_loads(mesh):
    """What the first n ranks have saved under a plan, the first m load under another."""
    ways = [
        (some, plan, step_for(some, plan))
        for count in range(1, mesh.data + 1)
        for some in [Some(count)]
        for plan in plans_for(count)
    ]
    saved = {}
    for some, plan, _ in ways:
        where = folder_for(some, f"pair-{plan}")
        whole = None
        if mesh.rank < some.data:
            state, _, _ = trained(some, plan)
            fl.save(state, where, mesh=some)
            whole = bits(fl.gather(state))
        saved[where] = mesh.exchange(whole)[0]
    assert len({json.dumps(whole["params/a"]) for whole in saved.values()}) > 1, "all are equal"
    for some, plan, step in ways:
        if mesh.rank < some.data:
            like = step.init(lambda: Net(7), seed=9)
            for where, whole in saved.items():
                loaded = fl.load(where, like=like, mesh=some)
                assert loaded.params.layout is like.params.layout
                assert bits(fl.gather(loaded)) == whole, (where, some, plan)
        meet(mesh)
    for where, whole in saved.items():  # without a mesh, and as another would write it
        alone = pipeline().init(lambda: Net(7), seed=9)
        assert bits(fl.load(where, like=alone)) == whole
    meet(mesh)


@scenario
def parts_of_a_checkpoint_are_loaded_into_pieces(mesh):
    for plan in DIVIDED:
        state, _, _ = trained(mesh, plan)
        path = fl.save(state, folder_for(mesh, f"some-{plan}"))
        like = step_for(mesh, plan).init(lambda: Net(7), seed=9)
        whole, fresh = bits(fl.gather(state)), bits(fl.gather(like))
        loaded = bits(fl.gather(fl.load(path, like=like, only="params")))
        assert loaded["params/a"] == whole["params/a"] != fresh["params/a"]
        assert loaded["slots/update/adamw/mu/a"] == fresh["slots/update/adamw/mu/a"]
        # An average that the checkpoint lacks begins from the loaded parameters.
        bare = step_for(mesh, plan, fl.pipe(loss, fl.grad, fl.update(fl.optim.adamw(1e-2))))
        path = fl.save(bare.init(Net, seed=5), folder_for(mesh, f"bare-{plan}"))
        loaded = fl.gather(fl.load(path, like=like))
        assert loaded["ema"]["a"].equal(loaded.params["a"])
        assert loaded["ema"]["a"].equal(Net().a)
        wrong = step_for(mesh, plan).init(lambda: Other(), seed=9)
        error = error_of(lambda: fl.load(path, like=wrong))  # noqa: B023
        assert isinstance(error, fl.errors.CheckpointError), error
        assert "params/a" in str(error) and "f32[3,7]" in str(error) and "f32[3,8]" in str(error)


class Other(Net):
    """With one tensor of another shape."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3, 8))


# Runs


def saving(mesh, name, **settings):
    """A checkpoint effect that saves after every step."""
    settings = {"every": 1, "unit": "step", "keep": 2, **settings}
    return fl.checkpoint(folder_for(mesh, name), **settings)


def names_in(folder):
    """What is in a folder of checkpoints."""
    return sorted(path.name for path in Path(folder).iterdir())


@scenario
def a_run_is_resumed_to_the_bit(mesh):
    for plan in PLANS:
        through, _, _ = trained(mesh, plan, steps=6)
        for background in (False, True):
            effect = saving(mesh, f"run-{plan}-{background}", background=background)
            trained(mesh, plan, steps=4, callbacks=[effect])
            assert effect.latest() == effect.folder / "step-00000004"
            meet(mesh)
            assert names_in(effect.folder) == ["step-00000003", "step-00000004"]
            status = read_manifest(effect.latest())["status"]
            assert status == "completed"
            again = saving(mesh, f"run-{plan}-{background}", background=background)
            state, caught, history = trained(
                mesh, plan, steps=6, callbacks=[again], resume=effect.folder
            )
            assert not caught and history.resumed.cursor.count == 4
            assert bits(fl.gather(state)) == bits(fl.gather(through))
            loaded = fl.load(again.folder, like=step_for(mesh, plan).init(Net, seed=9))
            assert bits(fl.gather(loaded)) == bits(fl.gather(through))
        for other in PLANS:  # nothing is left to be trained
            state, _, _ = trained(mesh, other, steps=6, resume=again.folder)
            assert bits(fl.gather(state)) == bits(fl.gather(through)), (plan, other)


@scenario
def the_best_is_kept_by_all(mesh):
    """In the background too, where each rank's thread is at another save."""
    for plan in KEPT:
        for background in (False, True):
            name, kept = f"best-{plan}-{background}", {"keep": 1, "background": background}
            effect = saving(mesh, name, monitor="loss", **kept)
            _, _, history = trained(mesh, plan, steps=6, callbacks=[effect, fl.History(every=1)])
            meet(mesh)
            best = read_manifest(effect.best())["monitor"]["value"]
            assert best == min(history["loss"])
            assert len(names_in(effect.folder)) <= 2, names_in(effect.folder)


@scenario
def a_signal_to_one_rank_saves_on_all(mesh):
    @fl.effect
    def ask(state, metrics):
        if int(state.cursor[2]) == 2 and mesh.rank == mesh.data - 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    ask.ranks = "all"
    for plan in KEPT:
        effect = saving(mesh, f"asked-{plan}", every=100, last=False, keep=3)
        trained(mesh, plan, steps=5, callbacks=[ask, effect])
        meet(mesh)
        assert "step-00000003" in names_in(effect.folder), names_in(effect.folder)
        effect = saving(mesh, f"asked-before-{plan}", every=100, last=False, keep=3)
        trained(mesh, plan, steps=5, callbacks=[effect, ask])
        meet(mesh)
        assert "step-00000003" in names_in(effect.folder), names_in(effect.folder)


def error_of(call):
    """The exception that a call raises."""
    try:
        call()
    except Exception as error:
        return error
    return None


@scenario
def another_runs_folder_is_refused_on_all_ranks(mesh):
    for plan in KEPT:
        effect = saving(mesh, f"owned-{plan}")
        trained(mesh, plan, steps=2, callbacks=[effect])
        other = saving(mesh, f"owned-{plan}")
        error = error_of(lambda: trained(mesh, plan, steps=2, seed=1, callbacks=[other]))  # noqa: B023
        assert isinstance(error, FileExistsError) and "holds another run" in str(error)
        trained(mesh, plan, steps=3, seed=1, callbacks=[other], overwrite=True)
        meet(mesh)
        assert names_in(other.folder) == ["step-00000002", "step-00000003"]


@scenario
def a_checkpoint_on_one_rank_alone_is_refused(mesh):
    effect = [saving(mesh, "alone")]
    given = effect if mesh.rank == 0 else []
    error = error_of(lambda: trained(mesh, "zero2", callbacks=given))
    assert isinstance(error, RankError), error
    assert "effects" in str(error) and "checkpoint" in str(error)


@scenario
def each_ranks_own_folder_is_refused(mesh):
    effect = fl.checkpoint(Path(folder_for(mesh, "own"), str(mesh.rank)), keep=1)
    error = error_of(lambda: trained(mesh, "zero2", callbacks=[effect]))
    assert isinstance(error, RankError) and "different things" in str(error), error


@scenario
def damage_that_one_rank_finds_is_passed_over_by_all(mesh):
    for plan in DIVIDED:
        folder = folder_for(mesh, f"damaged-{plan}")
        for steps in (2, 3):
            state, _, _ = trained(mesh, plan, steps=steps)
            fl.save(state, folder, mesh=mesh)
        if mesh.rank == 0:
            last = f"state-{mesh.data - 1:05d}.safetensors"
            file = Path(folder, "step-00000003", last)
            raw = bytearray(file.read_bytes())
            raw[-1] ^= 1
            file.write_bytes(raw)
        like = step_for(mesh, plan).init(Net, seed=9)
        meet(mesh)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = fl.load(folder, like=like)
        assert int(loaded.step) == 2 and "step-00000003 was skipped" in str(caught[0].message)
        error = error_of(lambda: fl.load(Path(folder, "step-00000003"), like=like))  # noqa: B023
        assert isinstance(error, fl.errors.CheckpointError) and "sha256 differs" in str(error)
        assert last_rank_of(error) == mesh.data - 1
        effect = fl.checkpoint(folder, keep=None)
        _, caught, history = trained(
            mesh, plan, steps=2, callbacks=[effect], resume=folder, overwrite=True
        )
        assert history.resumed.path.name == "step-00000002"


def last_rank_of(error):
    """The rank that an error came from."""
    return error.ranks[0]


# Failures


def fails_on(mesh, rank, step, stage):
    """A callback or an effect that raises on one rank after a step."""

    def failing(state, metrics):
        if mesh.rank == rank and int(state.cursor[2]) == step:
            raise ArithmeticError("the callback of one rank")
        return state, metrics

    return failing if stage else fl.effect(failing, ranks="all")


@scenario
def the_last_good_state_is_saved_when_one_rank_fails(mesh):
    for plan in KEPT:
        for rank in {0, mesh.data - 1}:
            for first in (True, False):
                for background in (False, True):
                    name = f"failed-{plan}-{rank}-{first}-{background}"
                    effect = saving(mesh, name, every=2, background=background)
                    failing = fails_on(mesh, rank, 3, stage=False)
                    both = [failing, effect] if first else [effect, failing]
                    error = error_of(lambda: trained(mesh, plan, callbacks=both))  # noqa: B023
                    assert error is not None and "the callback of one rank" in str(error)
                    meet(mesh)
                    assert effect.latest().name == "step-00000003"
                    assert read_manifest(effect.latest())["status"] == "failed"
                    expected, _, _ = trained(mesh, plan, steps=3)
                    like = step_for(mesh, plan).init(Net, seed=9)
                    loaded = fl.gather(fl.load(effect.folder, like=like))
                    assert bits(loaded) == bits(fl.gather(expected))


@scenario
def pieces_of_different_steps_are_never_one_checkpoint(mesh):
    effect = saving(mesh, "apart", every=2)
    failing = fails_on(mesh, mesh.data - 1, 3, stage=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = step_for(mesh, "zero2")
        state = step.init(Net, seed=5)
        error = error_of(lambda: fl.fit(step, state, data(), steps=6, callbacks=[failing, effect]))
    assert error is not None and "the callback of one rank" in str(error)
    meet(mesh)
    assert effect.latest().name == "step-00000002"
    told = [str(each.message) for each in caught if "last state" in str(each.message)]
    assert bool(told) == (mesh.rank == 0), told


# Stores that cannot rename


@scenario
def a_store_that_cannot_rename_takes_pieces(mesh):
    for plan in DIVIDED:
        folder = folder_for(mesh, f"remote-{plan}")
        url = f"file://{folder.absolute()}"
        like = step_for(mesh, plan).init(lambda: Net(7), seed=9)
        for scale in (1.0, 2.0):
            state, _, _ = trained(mesh, plan, steps=1)
            state = state.replace(params=state.params.scale(scale))
            fl.save(state, url)
            names = names_in(folder / "step-00000001")
            assert len(names) == mesh.data + 1, names
            assert bits(fl.gather(fl.load(url, like=like))) == bits(fl.gather(state))
        for rank in range(mesh.data):
            files = Faulty(Remote(), None)
            fl.save(state, url, files=files)
            calls = mesh.exchange(files.calls)[rank]
            before = fl.load(url, like=like)
            for at, (call, name) in enumerate(calls):
                if not (call == "close" and name.endswith(".safetensors")):
                    continue
                files = Faulty(Remote(), at if mesh.rank == rank else None, errno.ENOSPC)
                error = error_of(lambda: fl.save(state, url, files=files))  # noqa: B023
                assert isinstance(error, OSError) and f"rank {rank}" in str(error), error
                meet(mesh)
                assert len(names_in(folder / "step-00000001")) == mesh.data + 1
                assert bits(fl.gather(fl.load(url, like=like))) == bits(fl.gather(before))
        effect = fl.checkpoint(url + "-run", every=1, unit="step", keep=2)
        through, _, _ = trained(mesh, plan, steps=4)
        trained(mesh, plan, steps=2, callbacks=[effect])
        effect = fl.checkpoint(url + "-run", every=1, unit="step", keep=2)
        state, _, _ = trained(mesh, plan, steps=4, callbacks=[effect], resume=url + "-run")
        assert bits(fl.gather(state)) == bits(fl.gather(through))


# What succeeds on all ranks, or fails on all


class Odd(Exception):
    """An exception that cannot be sent: it cannot be made again from its text."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@scenario
def what_fails_on_one_rank_fails_on_all_with_its_error(mesh):
    assert jointly(mesh, "this", lambda: mesh.rank) == mesh.rank
    last = mesh.data - 1

    def fails(error, where):
        def call():
            if mesh.rank in where:
                raise error
            return 0

        try:
            jointly(mesh, "this", call)
        except BaseException as caught:
            return caught
        return None

    error = fails(OSError(errno.ENOSPC, "full"), {last})
    assert type(error) is OSError and error.errno == errno.ENOSPC and error.ranks == (last,)
    error = fails(fl.errors.CheckpointError(f"rank {mesh.rank}"), {0, last})
    assert (
        type(error) is fl.errors.CheckpointError and str(error) == "rank 0" and error.ranks == (0,)
    )
    error = fails(Odd(1, 2), {last})
    assert type(error) is (Odd if mesh.rank == last else RankError) and "1 and 2" in str(error)
    error = fails(KeyboardInterrupt(), {last})
    assert type(error) is (KeyboardInterrupt if mesh.rank == last else RankError)
    error = error_of(lambda: jointly(mesh, f"what rank {mesh.rank} does", lambda: None))
    assert isinstance(error, RankError) and f"what rank {mesh.rank} does" in str(error)
    # One that leaves is heard of, in place of what the others do.
    if mesh.rank == last:
        leave(mesh, ArithmeticError("elsewhere"))
    else:
        error = error_of(lambda: jointly(mesh, "this", lambda: None))
        assert isinstance(error, RankError) and "elsewhere" in str(error)


# A disk that fails on one rank


def every_call(mesh, rank, save):
    """How many calls to the disk a save makes on a rank."""
    files = Faulty(Disk())
    save(files)
    return mesh.exchange(len(files.calls))[rank]


def failing(mesh, rank, call, fault, onwards=False):
    """A disk of which one call fails on a rank."""
    return Faulty(Disk(), call if mesh.rank == rank else None, fault, onwards)


def check_intact(mesh, folder, states):
    """What is there is one of `states`, whole, and nothing else is left."""
    meet(mesh)
    if mesh.rank == 0:
        sweep(folder, Disk())
        for path in folder.iterdir():
            assert path.name.startswith("step-"), path
            named = set(read_manifest(path)["files"])
            assert {file.name for file in path.iterdir()} == {"manifest.json", *named}
        loaded = bits(fl.load(folder, like=pipeline().init(Net, seed=9)))
        assert loaded in states
    meet(mesh)


@contextlib.contextmanager
def quick():
    """No power is lost here, so nothing waits for the disk, and nothing is tried again for long."""
    fsync, delays = os.fsync, patience.DELAYS
    os.fsync, patience.DELAYS = lambda descriptor: None, (0.0, 0.0)
    try:
        yield
    finally:
        os.fsync, patience.DELAYS = fsync, delays


@scenario
def a_disk_that_fails_on_one_rank_fails_the_save_on_all(mesh):
    """At every call of a save, new or in the place of another, once and from then on."""
    for plan, stride in (("zero2", STRIDE), ("tensor", 3 * STRIDE - 2)):
        failures = failed_saves(mesh, plan, stride)
        assert failures > 200 // stride, (plan, failures)


def failed_saves(mesh, plan, stride):
    """How many saves have failed, of those of which every so many call fails."""
    old, _, _ = trained(mesh, plan, steps=1)
    new, _, _ = trained(mesh, plan, steps=2)
    again = old.replace(params=old.params.scale(2.0))
    failures = 0
    with quick():
        for state in (new, again):
            states = [bits(fl.gather(each)) for each in (old, state)]
            for rank in {0, mesh.data - 1}:
                place = folder_for(mesh, f"count-{plan}-{rank}")
                fl.save(old, place)
                calls = every_call(mesh, rank, lambda files: fl.save(state, place, files=files))  # noqa: B023
                assert calls > (25 if rank == 0 else 8), calls
                for call in range(rank, calls, stride):
                    for fault, onwards in ((errno.ENOSPC, False), (errno.EIO, True)):
                        folder = folder_for(mesh, f"fault-{failures % 2}")
                        if mesh.rank == 0:
                            shutil.rmtree(folder, ignore_errors=True)
                        fl.save(old, folder)
                        files = failing(mesh, rank, call, fault, onwards)
                        error = error_of(lambda: fl.save(state, folder, files=files))  # noqa: B023
                        told = mesh.exchange((type(error), str(error)))
                        assert len(set(told)) == 1, told
                        assert error is None or isinstance(error, OSError)
                        failures += error is not None
                        if error is not None and rank:
                            left = mesh.exchange(sorted(os.listdir(folder)))[0]
                            assert left == ["step-00000001"], (left, call)
                            assert f"(rank {rank}: " in str(error), error
                            assert os.strerror(fault) in str(error), error
                        check_intact(mesh, folder, states)
    return failures


@scenario
def a_run_goes_on_when_the_disk_of_one_rank_is_full(mesh):
    through, _, _ = trained(mesh, "zero2", steps=4)
    expected = bits(fl.gather(through))
    with quick():
        for background in (False, True):
            for rank in {0, mesh.data - 1}:

                def once(files, name):
                    effect = saving(mesh, name, background=background, files=files)  # noqa: B023
                    return effect, trained(mesh, "zero2", steps=4, callbacks=[effect])

                files = Faulty(Disk())
                once(files, f"full-count-{background}-{rank}")
                calls = mesh.exchange(files.calls)[rank]
                creations = [i for i, (call, _) in enumerate(calls) if call in ("write", "sync")]
                creations = creations[:: max(1, len(creations) // 12)]
                for call in creations:
                    name = f"full-{background}-{rank}-{call}"
                    files = failing(mesh, rank, call, errno.ENOSPC)
                    try:
                        effect, (state, _, _) = once(files, name)
                    except OSError as error:  # while the folder is opened
                        assert "state-" not in calls[call][1], error
                        continue
                    assert bits(fl.gather(state)) == expected
                    meet(mesh)
                    like = step_for(mesh, "zero2").init(Net, seed=9)
                    assert bits(fl.gather(fl.load(effect.folder, like=like))) == expected
                    assert [n for n in names_in(effect.folder) if n.startswith(".")] == []


if __name__ == "__main__":
    main()
