"""Parquet files, against what pyarrow and pandas read."""

from __future__ import annotations

import numpy as np
import pytest

from fnloop.store.parquet_file import about_parquet, first_rows, schema_of, write_parquet

pa = pytest.importorskip("pyarrow")
KINDS = {
    "a": (np.dtype("<i8"), ()),
    "b": (np.dtype("<f4"), (3,)),
    "c": (np.dtype("<f8"), (2, 2)),
    "d": (np.dtype("|b1"), (2,)),
    "e": (np.dtype("<f2"), ()),
    "f": (np.dtype("|u1"), (4, 1, 2)),
}


def rows(count):
    draw = np.random.default_rng(0)
    return {n: (draw.random((count, *s)) * 9).astype(k) for n, (k, s) in KINDS.items()}


def test_pyarrow_reads_what_was_written(tmp_path):
    import pyarrow.parquet

    parts = rows(7)
    blocks = [{n: a[i : i + 3] for n, a in parts.items()} for i in (0, 3, 6)]
    write_parquet(tmp_path / "a.parquet", KINDS, blocks, {"of": "this"})
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    for name, array in parts.items():
        assert np.array_equal(np.array(table[name].to_pylist(), array.dtype), array), name
    assert pyarrow.parquet.read_metadata(tmp_path / "a.parquet").num_row_groups == 3
    assert about_parquet(tmp_path / "a.parquet") == {"of": "this"}
    for name, array in first_rows(tmp_path / "a.parquet", 5).items():
        assert array.dtype == KINDS[name][0] and np.array_equal(array, parts[name][:5])


def test_other_files_tell_nothing(tmp_path):
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no such file")
    assert about_parquet(tmp_path / "a.parquet") is about_parquet(tmp_path / "b.parquet") is None


@pytest.mark.parametrize(
    "kind, message", [(("<c8", ()), "Parquet has no type"), (("<f4", (2, 0)), "has no numbers")]
)
def test_what_parquet_cannot_have(kind, message):
    with pytest.raises(ValueError, match=message):
        schema_of({"x": (np.dtype(kind[0]), kind[1])})
