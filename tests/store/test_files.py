import os
import subprocess
import sys
import uuid

import fsspec
import pytest
import torch

import fnloop as fl
from fnloop.store.files import Disk, Remote, as_path, files_for
from fnloop.store.folders import listing
from fnloop.values.cursor import Cursor
from fnloop.values.start import start


def state_at(count, value=0.0):
    state = start(torch.nn.Linear(2, 1), seed=0)
    params = {name: torch.full_like(p, value or count) for name, p in state.params.items()}
    return state.replace(params=params, cursor=Cursor(0, count, count).tensor())


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}/runs/a"


@pytest.fixture
def names(url):
    system, root = fsspec.filesystem("memory"), "/" + url.removeprefix("memory://")

    def names():
        return sorted(path.removeprefix(root + "/") for path in system.find(root))

    return names


# The disk


def test_a_link_leads_nowhere(tmp_path):
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with Disk().open(tmp_path / "real") as file:
        assert file.read() == b"1"
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        Disk().open(tmp_path / "link")


def test_what_is_no_plain_file_is_an_error_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match=r"plain file|directory"):
            Disk().open(path)


def test_a_new_file_replaces_none(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(FileExistsError):
        Disk().create(tmp_path / "x")


# Remote stores


def test_a_url_is_remote_and_everything_else_the_disk(tmp_path):
    assert isinstance(files_for(as_path("memory://a/b")), Remote)
    assert isinstance(files_for(as_path("runs/a")), Disk)
    assert isinstance(files_for(as_path(tmp_path)), Disk)
    assert as_path(as_path("memory://a/b")) == as_path("memory://a/b")


@pytest.mark.lightning("T34")
def test_a_checkpoint_goes_to_a_store_and_comes_back(url, names):
    state = state_at(3)
    path = fl.save(state, url, metrics={"loss": 1.0})
    assert str(path) == f"{url}/step-00000003"
    tensors, manifest = sorted(names(), key=lambda name: "manifest" in name)
    assert manifest == "step-00000003/manifest.json"
    assert fl.store.read_manifest(path)["file"] == tensors.removeprefix("step-00000003/")
    assert fl.load(url, like=state_at(1)) == state == fl.load(str(path), like=state_at(1))
    assert fl.latest(url) == path


def test_a_checkpoint_is_replaced_whole(url, names):
    fl.save(state_at(3, value=1.0), url)
    before = names()
    fl.save(state_at(3, value=2.0), url)
    assert len(names()) == 2 and names() != before
    assert fl.load(url, like=state_at(1)) == state_at(3, value=2.0)


class Cut(Remote):
    """A connection that is cut at the n-th upload: nothing of the file appears."""

    def __init__(self, n):
        self.left = n

    def create(self, path):
        self.left -= 1
        if self.left < 0:
            raise OSError(104, "Connection reset by peer")
        return super().create(path)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("count", [3, 4])
def test_a_cut_connection_leaves_what_was_there(url, n, count):
    fl.save(state_at(3, value=1.0), url)
    with pytest.raises(OSError, match=f"step-0000000{count} was not saved .Connection reset"):
        fl.save(state_at(count, value=2.0), url, files=Cut(n))
    # What has no manifest is an upload that has not ended.
    assert fl.load(url, like=state_at(1)) == state_at(3, value=1.0)


STEP = fl.pipe(lambda m, x: m(x).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.01)))


def fit(folder, steps, **options):
    data = fl.Batches(torch.arange(24.0).reshape(12, 2), 2)
    state = STEP.init(lambda: torch.nn.Linear(2, 1), seed=1)
    saving = fl.checkpoint(folder, keep=2, every=2, unit="step", **options)
    return fl.fit(STEP, state, data, steps=steps, callbacks=[saving], resume=folder)[0]


@pytest.mark.lightning("T37")
@pytest.mark.parametrize("background", [False, True])
def test_a_run_keeps_its_checkpoints_there_and_resumes(url, names, tmp_path, background):
    fit(url, 7, background=background)
    assert sorted(listing(url)) == [6, 7]
    resumed = fit(url, 13, background=background)
    assert resumed == fit(tmp_path, 13)
    assert sorted(listing(url)) == [12, 13] and len(names()) == 4
    assert fl.store.read_manifest(fl.latest(url))["status"] == "completed"


def test_what_an_interrupted_upload_left_is_swept_up(url, names):
    system = fsspec.filesystem("memory")
    fl.save(state_at(2), url)
    for place in ("step-00000001/state-0123abcd.safetensors", "step-00000002/state-1.safetensors"):
        system.pipe(f"{url}/{place}", b"half")
    fit(url, 4)
    assert sorted(listing(url)) == [2, 4]
    assert not [name for name in names() if "0123abcd" in name]


def test_without_universal_pathlib_the_error_says_what_to_install():
    script = (
        "import sys; sys.modules['upath'] = None\n"
        "import fnloop as fl\n"
        "try: fl.latest('s3://bucket/x')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'fnloop[remote]'" in done.stdout, done.stderr
