"""Arrays that grow in a .npy file, against what NumPy reads and writes."""

from __future__ import annotations

import numpy as np
import pytest

from fnloop.store.growing_array import GrowingArray


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", "<i8", "|u1", "|b1", "<c16"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 2), (0,)])
def test_numpy_reads_what_was_added(dtype, shape, tmp_path):
    rows = (np.random.default_rng(0).random((7, *shape)) * 9).astype(dtype)
    array = GrowingArray(tmp_path / "a.npy", np.dtype(dtype), shape)
    for part in np.split(rows, [3, 3, 5]):
        array.append(part)
    assert np.array_equal(array.read(2, 4), rows[2:6])
    array.finish()
    array.close()
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == rows.dtype and np.array_equal(found, rows)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r" if rows.size else None)
    assert np.array_equal(mapped, rows)


def test_it_is_opened_again_and_cut(tmp_path):
    array = GrowingArray(tmp_path / "a.npy", np.dtype("<i8"), (2,))
    array.append(np.arange(10).reshape(5, 2))
    array.close()
    array = GrowingArray(tmp_path / "a.npy", np.dtype("<i8"), (2,))
    assert len(array.read(0, 9)) == 5 and len(array.read(4, 9)) == 1 and len(array.read(8, 9)) == 0
    array.cut(2)
    array.append(np.full((1, 2), 7))
    array.finish()
    array.close()
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 1], [2, 3], [7, 7]]


def test_rows_that_do_not_lie_row_by_row(tmp_path):
    rows = np.asfortranarray(np.arange(6.0).reshape(2, 3))[:, ::2]
    array = GrowingArray(tmp_path / "a.npy", rows.dtype, (2,))
    array.append(rows)
    array.finish()
    array.close()
    assert np.array_equal(np.load(tmp_path / "a.npy"), rows)
