"""Parts of ranks, and what is left where they were put together and something failed."""

from __future__ import annotations

import numpy as np
import pytest

from fnloop.store.files import Disk
from fnloop.store.predictions import Predictions
from fnloop.values.cursor import Cursor


@pytest.mark.parametrize("name", ["out", "out.parquet"])
@pytest.mark.parametrize("failing", ["before it has its name", "after"])
def test_joining_goes_on_where_it_failed(name, failing, tmp_path, monkeypatch):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    about = {"of": "this"}
    for to, ranks in (("whole", 1), ("cut", 3)):  # of two batches: one rank of three has none
        place = Predictions(tmp_path / to / name)
        for rank in range(ranks):
            with place.part(about, rank, ranks) as part:
                for batch in range(rank, 2, ranks):
                    cursor = Cursor(batch, 3 - 3 * batch, batch + 1)
                    place.add(part, {"x": np.arange(3.0) + 3 * batch}, cursor)
                if ranks == 1:
                    place.finish(part)

    def fail(*arguments):
        raise OSError("the disk is gone")

    with monkeypatch.context() as broken:
        if failing == "after":
            broken.setattr(Predictions, "sweep", fail)
        else:
            broken.setattr(Disk, "rename", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            place.join(about, 3)
    if place.about() is None:
        for rank in range(3):
            with place.part(about, rank, 3) as part:
                assert part.batches == (rank < 2)
        place.join(about, 3)
    place.sweep()
    assert place.about() == about and place.first(4)["x"].tolist() == [0, 1, 2, 3]
    found = [
        {p.relative_to(tmp_path / to): p.read_bytes() for p in (tmp_path / to).rglob("*.*")}
        for to in ("whole", "cut")
    ]
    assert found[0] == found[1] and not place.work.exists()
