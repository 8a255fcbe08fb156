import dis
import hashlib
import signal
import struct
import sys
import threading
import time

import pytest
import safetensors
import safetensors.torch
import torch

from fnloop.store import tensor_file
from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.files import Disk
from fnloop.store.tensor_file import Leaf

DISK = Disk()


def put(path, named):
    path.unlink(missing_ok=True)
    file = DISK.create(path)
    try:
        tensor_file.write(file, named)
    finally:
        file.close()
    leaves = tensor_file.check(DISK, path, named)
    assert leaves == tensor_file.digests(named)
    return leaves


def get(path, leaves):
    return dict(tensor_file.read(DISK, path, leaves))


def bits(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).tolist()


def odd_values():
    quiet, payload = 0x7FC00000, 0x7FC12345
    return {
        "nan payload": torch.tensor([quiet, payload, payload | 1 << 31], dtype=torch.int64)
        .to(torch.int32)
        .view(torch.float32),
        "negative zero": torch.tensor([-0.0, 0.0, float("inf"), -float("inf")]),
        "bf16": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
        "fp16": torch.tensor([[65504.0], [6e-8]], dtype=torch.float16),
        "f64": torch.tensor([0.1, 5e-324], dtype=torch.float64),
        "i64": torch.tensor([-(2**63), 2**63 - 1]),
        "i32": torch.arange(4, dtype=torch.int32),
        "u8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "0-d": torch.tensor(3.25),
        "empty": torch.empty(0),
        "empty 2-d": torch.empty(3, 0, dtype=torch.int64),
        "c64": torch.tensor([1 + 2j], dtype=torch.complex64),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "expanded": torch.tensor([7.0]).expand(4),
        "part": torch.arange(10.0)[3:7:2],
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "negated": torch.tensor([1 + 2j]).conj().imag,
    }


def test_any_safetensors_reader_reads_what_is_written(tmp_path):
    given = odd_values()
    put(tmp_path / "x", given)
    read = safetensors.torch.load_file(tmp_path / "x")
    assert read.keys() == given.keys()
    for name, tensor in given.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape, name
        assert bits(read[name]) == bits(tensor.resolve_conj().resolve_neg()), name


def test_what_is_read_is_what_was_written_to_the_bit(tmp_path):
    given = {
        **odd_values(),
        "c128, which safetensors lacks": torch.tensor([[1j, 2.5]], dtype=torch.complex128),
    }
    leaves = put(tmp_path / "x", given)
    assert list(leaves) == list(given)
    read = get(tmp_path / "x", leaves)
    for name, tensor in given.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape, name
        assert bits(read[name]) == bits(tensor.resolve_conj().resolve_neg()), name
        assert read[name].untyped_storage().nbytes() == leaves[name].nbytes, "memory of its own"


def test_tensors_that_share_memory_are_written_each_in_full(tmp_path):
    base = torch.arange(4.0)
    leaves = put(tmp_path / "x", {"a": base, "b": base, "c": base[1:]})
    read = get(tmp_path / "x", leaves)
    assert read["a"].data_ptr() != read["b"].data_ptr()
    assert torch.equal(read["b"], base) and torch.equal(read["c"], base[1:])


def test_digest_is_that_of_the_bytes_in_memory_order(tmp_path):
    leaves = put(tmp_path / "x", {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T})
    assert leaves["a"].sha256 == hashlib.sha256(struct.pack("<4f", 1, 3, 2, 4)).hexdigest()


def test_each_tensor_starts_at_a_multiple_of_its_element_size(tmp_path):
    put(
        tmp_path / "x",
        {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(3, dtype=torch.float64)},
    )
    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert b'"b":{"dtype":"F64","shape":[3],"data_offsets":[0,24]}' in data


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path):
    file = tmp_path / "x"
    given = {"w": torch.tensor([1.5, -2.0]), "n": torch.tensor(3)}
    leaves = put(file, given)
    whole = file.read_bytes()
    silent = 0
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        file.write_bytes(damaged)
        try:
            get(file, leaves)
        except CheckpointError as error:
            assert str(file) in str(error)
        else:
            silent += 1
    assert silent == 0
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            get(file, leaves)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x02",
        (2**63).to_bytes(8, "little") + b"{}",
        (10**9).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (40_000).to_bytes(8, "little") + b"[" * 40_000,
        (2).to_bytes(8, "little") + b"\xff\xff",
        b"\x80\x04\x95pickle",
    ],
)
def test_what_is_no_safetensors_file_is_a_clear_error(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match="and its manifest says 68"):
        get(tmp_path / "x", {"a": Leaf(torch.float32, (1,), "")})


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}',
        b'{"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[4000000000],"data_offsets":[0,4]}}',
        b"[" * 56,
        b"\xff" * 56,
        b"",
    ],
)
def test_a_header_that_is_not_the_manifests_is_a_clear_error(tmp_path, header):
    leaf = Leaf(torch.float32, (1,), "")
    header = header[:56].ljust(56)
    (tmp_path / "x").write_bytes((56).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="does not begin with the safetensors header"):
        get(tmp_path / "x", {"a": leaf})


def test_a_manifest_that_claims_an_exabyte_allocates_nothing(tmp_path):
    put(tmp_path / "x", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="truncated"):
        get(tmp_path / "x", {"a": Leaf(torch.float32, (10**9, 10**9), "")})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="gone cannot be read"):
        get(tmp_path / "gone", {})


@pytest.mark.parametrize(
    "leaf",
    [
        3.0,
        None,
        torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(),
    ],
)
def test_what_cannot_be_saved_is_a_clear_error(leaf):
    with pytest.raises(TypeError, match="slots/x"):
        tensor_file.check_storable("slots/x", leaf)


@pytest.mark.parametrize("size", [3, 5_000_000])
def test_what_is_not_on_the_disk_as_it_is_in_memory_is_noticed(tmp_path, size):
    named = {"a": torch.arange(size, dtype=torch.float32), "b": torch.tensor(1)}
    put(tmp_path / "x", named)
    named["a"][-1] = 7.5
    with pytest.raises(CheckpointError, match="'a' are not those in memory"):
        tensor_file.check(DISK, tmp_path / "x", named)


class Stop(BaseException):
    """What nobody catches."""


class Hangs(BaseException):
    """What an alarm raises where nothing goes on."""


def stopped(call, n):
    """Call it with an exception at the n-th line of Python of all that runs; whether it came."""
    left = [n]

    def tracer(frame, event, arg):
        if event == "line" and frame.f_code.co_code[frame.f_lasti] != dis.opmap["NOP"]:
            left[0] -= 1
            if left[0] == -1:
                raise Stop
        return tracer

    before = sys.gettrace()
    try:
        sys.settrace(tracer)
        call()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


def hangs(number, frame):
    raise Hangs


def test_an_exception_at_any_line_leaves_no_thread_and_nothing_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_PIECE", 2**19)
    monkeypatch.setattr(sys, "unraisablehook", lambda what: None)
    given = {name: torch.arange(7 * 2**15) + n for n, name in enumerate("ab")}
    leaves = put(tmp_path / "x", given)
    before = signal.signal(signal.SIGALRM, hangs)
    try:
        for call in (
            lambda: tensor_file.check(DISK, tmp_path / "x", given),
            lambda: get(tmp_path / "x", leaves),
        ):
            threads, n = {*sys._current_frames()}, 0
            signal.alarm(60)
            while stopped(call, n):
                n += 1
                deadline = time.monotonic() + 5
                while {*sys._current_frames()} - threads and time.monotonic() < deadline:
                    time.sleep(1e-4)
                assert {*sys._current_frames()} <= threads, f"at line {n - 1}"
            signal.alarm(0)
            assert n > 100
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_where_no_thread_can_be_started_digests_are_computed_without(tmp_path):
    given = {"a": torch.arange(2**18)}
    size = threading.stack_size(2**40)
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=print).start()
        leaves = put(tmp_path / "x", given)
        assert torch.equal(get(tmp_path / "x", leaves)["a"], given["a"])
    finally:
        threading.stack_size(size)
