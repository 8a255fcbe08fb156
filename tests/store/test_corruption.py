"""Damage of every kind to checkpoints: always noticed, and never anything but a CheckpointError."""

from __future__ import annotations

import contextlib
import os
import random
import shutil

import pytest
import torch

import fnloop as fl

PAGE = 4096
FILES = ("manifest.json", "state.safetensors")


def small_state(count=1):
    step = fl.pipe(lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.sgd(0.1)))
    state = step.init(lambda: torch.nn.Linear(2, 1), seed=count)
    return state.replace(cursor=torch.tensor([0, count, count]))


class Mixed(torch.nn.Module):
    """Parameters in three precisions, and buffers of four dtypes."""

    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Linear(300, 700)
        self.narrow = torch.nn.Linear(700, 200).to(torch.bfloat16)
        self.precise = torch.nn.Linear(100, 50).to(torch.float64)
        self.norm = torch.nn.BatchNorm1d(100)
        self.register_buffer("mask", torch.arange(5000) % 3 == 0)
        self.register_buffer("table", torch.arange(30_000, dtype=torch.int32))

    def forward(self, x):
        y = self.narrow(self.wide(x).to(torch.bfloat16)).float()[:, :100]
        return self.precise(self.norm(y).double())


def large_state(count=1, seed=0):
    """6 MB: parameters, AdamW's memory and an average, after two steps."""
    step = fl.pipe(
        lambda m, b: m(b).square().mean(), fl.grad, fl.update(fl.optim.adamw(0.1)), fl.ema(0.9)
    )
    state = step.init(Mixed, seed=seed)
    for batch in torch.randn(2, 4, 300, generator=torch.Generator().manual_seed(seed)):
        state, _ = step(state, batch)
    return state.replace(cursor=torch.tensor([0, count, count]))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    state = small_state()
    return fl.save(state, tmp_path_factory.mktemp("small")), state


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    state = large_state()
    return fl.save(state, tmp_path_factory.mktemp("large")), state


def noticed(path, like):
    """Whether loading it is refused; another error than CheckpointError ends the test."""
    try:
        fl.load(path, like=like)
    except fl.errors.CheckpointError as error:
        assert str(path) in str(error)
        return True
    return False


@contextlib.contextmanager
def patched(file, offset, data):
    """Other bytes at a place of a file, for a while."""
    with file.open("r+b", buffering=0) as stream:
        before = os.pread(stream.fileno(), len(data), offset)
        assert before != data and len(before) == len(data)
        os.pwrite(stream.fileno(), data, offset)
        try:
            yield
        finally:
            os.pwrite(stream.fileno(), before, offset)


@contextlib.contextmanager
def replaced(file, data):
    before = file.read_bytes()
    assert data != before
    file.write_bytes(data)
    try:
        yield
    finally:
        file.write_bytes(before)


# Bits


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_of_a_small_checkpoint_is_noticed(small, name):
    path, like = small
    whole = (path / name).read_bytes()
    silent = []
    for bit in range(8 * len(whole)):
        with patched(path / name, bit // 8, bytes([whole[bit // 8] ^ 1 << bit % 8])):
            if not noticed(path, like):
                silent.append(bit)
    assert silent == []
    assert not noticed(path, like), "the damage is undone each time"


def flip_bits(path, like, count, seed):
    rng = random.Random(seed)
    sizes = {name: (path / name).stat().st_size for name in FILES}
    for _ in range(count):
        # Half of them in the manifest, which is small.
        name = rng.choice(FILES)
        offset, bit = rng.randrange(sizes[name]), rng.randrange(8)
        with (path / name).open("rb") as stream:
            byte = os.pread(stream.fileno(), 1, offset)[0]
        with patched(path / name, offset, bytes([byte ^ 1 << bit])):
            assert noticed(path, like), (name, offset, bit)
    assert not noticed(path, like)


def test_flipped_bits_of_a_larger_checkpoint_are_noticed(large):
    path, like = large
    assert (path / "state.safetensors").stat().st_size > 4 * 10**6
    assert len({leaf["dtype"] for leaf in fl.store.read_manifest(path)["leaves"].values()}) >= 6
    flip_bits(path, like, 300, seed=0)


@pytest.mark.slow
def test_ten_thousand_flipped_bits_of_a_larger_checkpoint_are_noticed(large):
    flip_bits(*large, 10_000, seed=1)


def test_a_flipped_bit_is_told_with_the_file_and_the_leaf(small):
    path, like = small
    file = path / "state.safetensors"
    with (
        patched(file, file.stat().st_size - 1, b"\x55"),
        pytest.raises(fl.errors.CheckpointError) as told,
    ):
        fl.load(path, like=like)
    assert str(file) in str(told.value) and "'params/weight'" in str(told.value)


def test_with_only_what_is_loaded_is_verified(small):
    """The rest is not read, so nothing can be said about it."""
    path, like = small
    whole = (path / "state.safetensors").read_bytes()
    weight = whole.index(like.params["weight"].numpy().tobytes())
    with patched(path / "state.safetensors", weight, bytes([whole[weight] ^ 1])):
        with pytest.raises(fl.errors.CheckpointError, match="'params/weight'"):
            fl.load(path, like=like, only="params")
        assert fl.load(path, like=like, only="slots") == like


# Pages


def zero_pages(path, like, pages):
    file = path / "state.safetensors"
    whole = file.read_bytes()
    damaged = 0
    for page in pages:
        part = whole[page * PAGE : (page + 1) * PAGE]
        if any(part):  # else nothing is lost
            damaged += 1
            with patched(file, page * PAGE, bytes(len(part))):
                assert noticed(path, like), page
    return damaged


def test_zeroed_pages_are_noticed(large):
    path, like = large
    pages = -(-(path / "state.safetensors").stat().st_size // PAGE)
    assert zero_pages(path, like, sorted(random.Random(0).sample(range(pages), 100))) > 90


@pytest.mark.slow
def test_every_zeroed_page_is_noticed(large):
    path, like = large
    pages = -(-(path / "state.safetensors").stat().st_size // PAGE)
    assert zero_pages(path, like, range(pages)) > 0.9 * pages


def test_pages_that_were_written_to_another_place_are_noticed(large):
    """Of the same file, and of the same file at another step."""
    path, like = large
    other = fl.save(large_state(count=2, seed=1), path.parent / "other")
    file = path / "state.safetensors"
    whole, foreign = file.read_bytes(), (other / "state.safetensors").read_bytes()
    assert len(whole) == len(foreign)
    rng = random.Random(0)
    for _ in range(60):
        here, there = (PAGE * rng.randrange(len(whole) // PAGE) for _ in range(2))
        source = rng.choice([whole, foreign])
        part = source[there : there + PAGE]
        if part != whole[here : here + PAGE]:
            with patched(file, here, part):
                assert noticed(path, like), (here, there)


# Lengths


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_of_a_small_checkpoint_is_noticed(small, name):
    path, like = small
    whole = (path / name).read_bytes()
    for length in reversed(range(len(whole))):
        os.truncate(path / name, length)
        assert noticed(path, like), length
    (path / name).write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_truncations_of_a_larger_checkpoint_are_noticed(large, name):
    path, like = large
    whole, rng = (path / name).read_bytes(), random.Random(0)
    pages = range(0, len(whole), PAGE)
    for length in [
        len(whole) - 1,
        *rng.sample(range(len(whole)), 40),
        *rng.sample(pages, min(10, len(pages))),
    ]:
        with replaced(path / name, whole[:length]):
            assert noticed(path, like), length


@pytest.mark.parametrize("name", FILES)
def test_truncations_that_were_filled_up_with_zeros_are_noticed(small, name):
    """What many file systems leave after the power was lost."""
    path, like = small
    whole = (path / name).read_bytes()
    for length in range(0, len(whole.rstrip(b"\0")), 7):
        with replaced(path / name, whole[:length].ljust(len(whole), b"\0")):
            assert noticed(path, like), length


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [b"\0", b"\n", b" ", b"}", bytes(PAGE), b"PK\x05\x06" + bytes(18)])
def test_bytes_at_the_end_or_the_beginning_are_noticed(small, name, more):
    path, like = small
    whole = (path / name).read_bytes()
    for data in (whole + more, more + whole, whole + whole):
        with replaced(path / name, data):
            assert noticed(path, like)


# Files


def test_files_of_another_step_are_noticed(tmp_path):
    """Whichever of the two it is, and although sizes and names are the same."""
    like = small_state()
    for name in FILES:
        root = tmp_path / name
        one, two = (fl.save(small_state(count), root) for count in (1, 2))
        assert (one / name).stat().st_size == (two / name).stat().st_size
        shutil.copy(one / name, two / name)
        assert noticed(two, like) and not noticed(one, like)
        with pytest.warns(UserWarning, match="step-00000002 was skipped"):
            assert fl.load(root, like=like).cursor.tolist() == [0, 1, 1]


def test_swapped_missing_and_empty_files_are_noticed(small):
    path, like = small
    first, second = ((path / name).read_bytes() for name in FILES)
    with replaced(path / FILES[0], second), replaced(path / FILES[1], first):
        assert noticed(path, like)
    for name in FILES:
        with replaced(path / name, b""):
            assert noticed(path, like)
        (path / name).rename(path / "away")
        assert noticed(path, like)
        (path / "away").rename(path / name)
    assert not noticed(path, like)


# Folders


def test_a_folder_of_another_count_is_refused_and_passed_over(tmp_path):
    """A copy under a later name would win against all that are true."""
    like = small_state()
    first, second = (fl.save(small_state(count), tmp_path) for count in (1, 2))
    copy = shutil.copytree(first, tmp_path / "step-00000009")
    with pytest.raises(fl.errors.CheckpointError, match="holds the checkpoint of count 1") as told:
        fl.load(copy, like=like)
    assert "Call it step-00000001" in str(told.value)
    for find in (fl.latest, lambda folder: fl.load(folder, like=like)):
        with pytest.warns(UserWarning, match="step-00000009"):
            find(tmp_path)
    with pytest.warns(UserWarning, match="step-00000009 was passed over"):
        assert fl.latest(tmp_path) == second
    shutil.rmtree(second)
    second.symlink_to(first)
    shutil.rmtree(copy)
    with pytest.warns(UserWarning, match="step-00000002"):
        assert fl.load(tmp_path, like=like).cursor.tolist() == [0, 1, 1]


def test_a_folder_with_a_name_of_ones_own_is_accepted(tmp_path):
    path = fl.save(small_state(), tmp_path)
    for name in ("good", "step", "step-1", "step-00000001.bak", "step-9-of-the-old-run"):
        shutil.copytree(path, tmp_path / name)
        assert not noticed(tmp_path / name, small_state())
    assert fl.latest(tmp_path) == path


def test_a_copy_inside_the_checkpoint_changes_nothing(tmp_path):
    like = small_state()
    path = fl.save(like, tmp_path)
    shutil.copytree(path, path / path.name)
    (path / "state-00000000.safetensors").write_bytes(b"x")
    assert fl.load(path, like=like) == fl.load(tmp_path, like=like) == like


@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_loaded_and_the_damaged_one_is_told(tmp_path, name):
    like = small_state()
    paths = [fl.save(small_state(count), tmp_path) for count in (1, 2, 3)]
    for path in paths[1:]:
        with (path / name).open("r+b") as stream:
            stream.seek(-3, os.SEEK_END)
            stream.write(b"\x99")
    with pytest.warns(UserWarning) as warned:
        assert fl.load(tmp_path, like=like) == like
    told = [str(warning.message) for warning in warned]
    assert [str(path) in text for path, text in zip(paths[:0:-1], told, strict=True)] == [
        True,
        True,
    ]
    with (paths[0] / name).open("r+b") as stream:
        stream.write(b"\x99")
    with pytest.raises(fl.errors.CheckpointError, match=r"No checkpoint in .* is whole:\n.*\n.*\n"):
        fl.load(tmp_path, like=like)
