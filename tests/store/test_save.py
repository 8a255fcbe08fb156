import errno
import os
import shutil
import stat

import pytest
import safetensors.torch
import torch

import fnloop
from fnloop.store import tensor_file
from fnloop.store.folders import latest
from fnloop.store.load import load
from fnloop.store.manifest import read_manifest
from fnloop.store.save import save
from fnloop.trees.equal import tree_equal
from fnloop.trees.nodes import tree
from fnloop.values.cursor import Cursor
from fnloop.values.metrics import Last, Mean
from fnloop.values.start import start


@tree
class pipeline:
    lr: float


def a_state(count=1200):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = start(model, seed=7)
    return state.replace(
        step=torch.tensor(1190),
        cursor=Cursor(2, 64, count).tensor(),
        slots={"update": {"adamw": {"mu": {name: p * 0.1 for name, p in state.params.items()}}}},
    )


def test_the_layout_on_disk(tmp_path):
    state = a_state()
    path = save(state, tmp_path / "runs" / "a")
    assert path == tmp_path / "runs" / "a" / "step-00001200"
    assert sorted(os.listdir(path)) == ["manifest.json", "state.safetensors"]
    assert os.listdir(path.parent) == ["step-00001200"]
    stored = safetensors.torch.load_file(path / "state.safetensors")
    assert set(stored) == {
        *("step", "calls", "cursor", "key"),
        *("params/0.weight", "params/0.bias", "params/1.weight", "params/1.bias"),
        *("buffers/1.running_mean", "buffers/1.running_var", "buffers/1.num_batches_tracked"),
        *(f"slots/update/adamw/mu/{name}" for name in state.params),
    }
    assert torch.equal(stored["params/0.weight"], state.params["0.weight"])


def test_the_manifest(tmp_path):
    path = save(
        a_state(),
        tmp_path,
        metrics={"loss": Mean(torch.tensor(6.0), 4), "lr": Last(0.1), "plain": 2},
        config={"lr": 0.1, "dtype": torch.float16, "sizes": (1, 2)},
        memos={"track": {"run": "ab12"}},
        step=pipeline(lr=0.5),
        monitor={"name": "loss", "mode": "min", "value": 1.5},
        status="stopped",
    )
    manifest = read_manifest(path)
    leaf = manifest["leaves"].pop("params/0.weight")
    assert leaf["dtype"] == "float32" and leaf["shape"] == [4, 3] and len(leaf["sha256"]) == 64
    assert manifest["torch"] == torch.__version__
    assert manifest["bytes"] == (path / "state.safetensors").stat().st_size
    expected = {
        "format": 1,
        "fnloop": fnloop.__version__,
        "cursor": {"epoch": 2, "index": 64, "count": 1200},
        "step": 1190,
        "model": "Sequential",
        "pipeline": "pipeline(lr=0.5)",
        "status": "stopped",
        "metrics": {"loss": 1.5, "lr": 0.1, "plain": 2.0},
        "monitor": {"name": "loss", "mode": "min", "value": 1.5},
        "config": {"lr": 0.1, "dtype": "torch.float16", "sizes": [1, 2]},
        "memos": {"track": {"run": "ab12"}},
    }
    assert {key: manifest[key] for key in expected} == expected


def test_a_state_per_member_of_a_population_is_saved_too(tmp_path):
    state = a_state().replace(step=torch.tensor([3, 4]))
    assert read_manifest(save(state, tmp_path))["step"] == [3, 4]


def test_the_context_is_left_out(tmp_path):
    path = save(a_state().replace(context={"scale": torch.tensor(1.0)}), tmp_path)
    assert not any(leaf.startswith("context") for leaf in read_manifest(path)["leaves"])


def test_saving_again_replaces(tmp_path):
    state = a_state()
    save(state, tmp_path, metrics={"loss": 1.0})
    other = state.replace(params={name: p + 1 for name, p in state.params.items()})
    path = save(other, tmp_path, metrics={"loss": 2.0})
    assert os.listdir(tmp_path) == ["step-00001200"]
    assert tree_equal(load(path, like=state), other)
    assert read_manifest(path)["metrics"] == {"loss": 2.0}


def test_saving_changes_nothing_in_the_state(tmp_path):
    state = a_state()
    before = [(p, p._version, p.clone()) for p in state.params.values()]
    save(state, tmp_path)
    assert all(p._version == version and torch.equal(p, copy) for p, version, copy in before)


def test_files_and_folders_reach_the_disk_before_and_after_the_rename(tmp_path, monkeypatch):
    log = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        log.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def noted_replace(source, target):
        log.append(("rename", os.path.basename(target)))
        replace(source, target)

    folder = tmp_path / "runs"
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save(a_state(), folder)
    begin = log.index(("fsync", "state.safetensors"))
    assert ("fsync", tmp_path.name) in log[:begin]  # where the folder was made
    hidden = log[begin + 2][1]
    assert log[begin:] == [
        ("fsync", "state.safetensors"),
        ("fsync", "manifest.json"),
        ("fsync", hidden),
        ("rename", "step-00001200"),
        ("fsync", "runs"),
    ]
    assert hidden.startswith(".step-00001200.tmp-")


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    path = save(a_state(count=1), tmp_path)
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(OSError, match="100 B left") as caught:
        save(a_state(count=2), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, broken, count):
    state = a_state(count=1)
    save(state, tmp_path)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match=rf"step-0000000{count} was not saved \(Input/output error\)"):
        save(a_state(count=count), tmp_path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert tree_equal(load(latest(tmp_path), like=state), state)


def test_a_short_file_system_is_noticed(tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    save(a_state(count=1), tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="File too large"):
            save(a_state(count=2), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="read-only run folder"):
        save(a_state(), tmp_path / "file" / "runs")


def test_a_folder_without_permission_is_a_clear_error(tmp_path):
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError, match="read-only run folder"):
            save(a_state(), tmp_path)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_what_is_no_state_is_a_clear_error(tmp_path):
    with pytest.raises(TypeError, match="takes a state, got an OrderedDict"):
        save(torch.nn.Linear(1, 1).state_dict(), tmp_path)


def test_a_leaf_that_is_no_tensor_is_named(tmp_path):
    with pytest.raises(TypeError, match="'slots/every/loss/weight' is int 2"):
        save(a_state().put("every", {"loss": Mean(torch.tensor(1.0), 2)}), tmp_path)
    assert os.listdir(tmp_path) == []


def test_two_leaves_of_one_path_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"Two leaves .* 'slots/a/0'"):
        save(a_state().put("a", {0: torch.zeros(1), "0": torch.zeros(1)}), tmp_path)


def test_a_memo_that_is_no_json_names_the_effect(tmp_path):
    with pytest.raises(TypeError, match="the effect 'track'"):
        save(a_state(), tmp_path, memos={"track": {1, 2}})


def test_the_state_is_not_copied(tmp_path, monkeypatch):
    in_place = []
    original = tensor_file._bytes

    def noted(tensor):
        data = original(tensor)
        in_place.append(data.ctypes.data == tensor.data_ptr())
        return data

    monkeypatch.setattr(tensor_file, "_bytes", noted)
    save(a_state(), tmp_path)
    assert len(in_place) == 2 * 15 and all(in_place)  # written, and compared
