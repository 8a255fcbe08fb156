"""Arrays that grow batch by batch, and what is left of them after a crash."""

from __future__ import annotations

import numpy as np
import pytest

from fnloop.store.batch_files import LOG, BatchFiles
from fnloop.values.cursor import Cursor

BATCHES = [{"x": np.arange(3.0) + i, "y": np.full((3, 2), i)} for i in range(4)]
CURSORS = [Cursor(0, 3 * i + 3, i + 1) for i in range(3)] + [Cursor(1, 0, 4)]


def filled(folder, batches=4):
    with BatchFiles(folder, {"of": "this"}) as files:
        for batch, cursor in zip(BATCHES[:batches], CURSORS, strict=False):
            files.append(batch, cursor)
    return folder


def test_what_was_added_is_there_when_it_is_opened_again(tmp_path):
    with BatchFiles(filled(tmp_path), {"of": "that"}) as files:
        assert (files.batches, files.rows, files.cursor) == (4, 12, Cursor(1, 0, 4))
        assert files.about == {"of": "this"}
        for (columns, cursor), batch, expected in zip(files.each(), BATCHES, CURSORS, strict=True):
            assert cursor == expected
            assert all(np.array_equal(columns[name], batch[name]) for name in batch)


@pytest.mark.parametrize("name", ["x.npy", "y.npy", LOG])
def test_wherever_a_file_is_cut_whole_batches_are_left(name, tmp_path):
    raw = (filled(tmp_path) / name).read_bytes()
    seen = set()
    for size in range(len(raw), -1, -7):
        (tmp_path / name).write_bytes(raw[:size])
        with BatchFiles(tmp_path) as files:
            seen.add(files.batches)
            assert files.rows == 3 * files.batches
            found = [columns["x"].tolist() for columns, _ in files.each()]
        assert found == [batch["x"].tolist() for batch in BATCHES[: len(found)]]
    assert seen == {0, 1, 2, 3, 4}


def test_a_batch_whose_numbers_have_changed_and_those_after_it_are_dropped(tmp_path):
    raw = bytearray((filled(tmp_path) / "x.npy").read_bytes())
    raw[-1 - 2 * 24] ^= 1  # in the second batch
    (tmp_path / "x.npy").write_bytes(raw)
    with BatchFiles(tmp_path) as files:
        assert files.batches == 1


def test_batches_that_do_not_fit(tmp_path):
    with BatchFiles(filled(tmp_path, 1)) as files:
        for batch, message in (
            ({"x": np.zeros(3)}, "batch 2 are 'x', and those of the first are 'x', 'y'"),
            ({"x": np.zeros(3), "y": np.zeros((2, 2), int)}, "'x' has 3, 'y' has 2"),
            ({"x": np.zeros(3, "f4"), "y": np.zeros((3, 2), int)}, "'x' of batch 2 is float32"),
        ):
            with pytest.raises(ValueError, match=message):
                files.append(batch, CURSORS[1])
        assert files.batches == 1
