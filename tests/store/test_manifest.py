import json
import math

import pytest

from fnloop.store.checkpoint_errors import CheckpointError
from fnloop.store.files import Disk
from fnloop.store.manifest import MANIFEST, amend, put_manifest, read_manifest

DISK = Disk()


def entries(**changes):
    return {
        "format": 1,
        "fnloop": "1",
        "torch": "2",
        "python": "3",
        "threads": 1,
        "device": "cpu",
        "cursor": {"epoch": 0, "index": 0, "count": 0},
        "step": 0,
        "key": 0,
        "model": "Linear",
        "pipeline": None,
        "status": "running",
        "metrics": {},
        "monitor": None,
        "config": {},
        "data": {},
        "memos": {},
        "structure": {},
        "file": "state.safetensors",
        "bytes": 0,
        "leaves": {},
        **changes,
    }


def put(folder, manifest):
    (folder / MANIFEST).unlink(missing_ok=True)
    put_manifest(folder, manifest, DISK)


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_what_is_read_is_what_was_written(tmp_path):
    given = entries(
        metrics={"loss": 0.1, "big": 1e300, "inf": math.inf, "-inf": -math.inf},
        memos={"a": [1, {"b": None}], "ü": "\ud800"},
    )
    put(tmp_path, given)
    read = read_manifest(tmp_path)
    read.pop("digest", None)
    assert read == given
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_nan_and_infinity_are_valid_json_and_come_back(tmp_path):
    put(tmp_path, entries(metrics={"loss": math.nan, "best": math.inf}))
    json.loads((tmp_path / "manifest.json").read_text(), parse_constant=refuse_constant)
    metrics = read_manifest(tmp_path)["metrics"]
    assert math.isnan(metrics["loss"]) and metrics["best"] == math.inf


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    put(tmp_path, entries())
    file = tmp_path / "manifest.json"
    whole, right = file.read_bytes(), read_manifest(tmp_path)
    noticed = 0
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << i % 8
        file.write_bytes(damaged)
        try:
            assert read_manifest(tmp_path) == right
        except CheckpointError as error:
            assert str(file) in str(error)
            noticed += 1
    assert noticed > 0.95 * 8 * len(whole)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "{}", "[" * 100_000, '{"digest": 1}', "\xff"]
)
def test_what_is_no_manifest_is_a_clear_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="damaged"):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        read_manifest(tmp_path)


@pytest.mark.lightning("K10")
def test_a_later_format_is_refused_with_the_version_that_wrote_it(tmp_path):
    put(tmp_path, entries(format=3, fnloop="9.9"))
    with pytest.raises(CheckpointError, match=r"format 3, written by fnloop 9\.9"):
        read_manifest(tmp_path)


def test_a_manifest_that_lacks_an_entry_is_refused(tmp_path):
    given = entries()
    del given["leaves"]
    put(tmp_path, given)
    with pytest.raises(CheckpointError, match="lacks leaves"):
        read_manifest(tmp_path)


def test_amend_changes_what_is_named(tmp_path):
    put(tmp_path, entries(metrics={"loss": math.nan}))
    amend(tmp_path, DISK, status="completed")
    read = read_manifest(tmp_path)
    assert read["status"] == "completed" and math.isnan(read["metrics"]["loss"])


# What is too large


def test_the_largest_of_what_is_only_for_show_is_left_out(tmp_path):
    large = entries(config={"lr": 0.1}, memos={"big": [1] * 2**20, "small": 1}, run="one")
    with pytest.warns(UserWarning, match="the memo of the effect 'big' is too large"):
        put_manifest(tmp_path, large, DISK)
    read = read_manifest(tmp_path)
    assert read["memos"] == {"small": 1} and read["config"] == {"lr": 0.1}
    with pytest.warns(UserWarning, match="the configuration is too large"):
        amend(tmp_path, DISK, config={"table": "x" * 2**26})
    assert read_manifest(tmp_path) == {**read, "config": {}}


def test_what_is_needed_to_load_is_never_left_out(tmp_path):
    large = entries(data={"position": [1] * 2**20}, config={"lr": [0.1] * 1000})
    with pytest.raises(
        ValueError, match="more than 1048576 values, because of its data's position"
    ):
        put_manifest(tmp_path, large, DISK)


@pytest.mark.parametrize("run", [7, "", "a/b", "../a", "a" * 81])
def test_an_identity_is_a_short_name(tmp_path, run):
    put(tmp_path, entries(run=run))
    with pytest.raises(CheckpointError, match="'run' is not an identity or null"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("pages", [7, {"a": "../a"}, {"a": 1}, {"a": "A" * 64}])
def test_pages_have_digests(tmp_path, pages):
    put(tmp_path, entries(pages=pages))
    with pytest.raises(CheckpointError, match="'pages' is not digests by path"):
        read_manifest(tmp_path)
