import hashlib
import os

import pytest

from fnloop.effects.page import Page
from fnloop.store.files import Disk
from fnloop.store.pages import PAGES, attached, detached, put_pages, saveable

MEMOS = {"history": {"pages": [Page(b"one"), Page(b"two")], "cut": {}}, "a/b": [{"x": Page(b"3")}]}


def written(folder):
    memos, pages = detached(MEMOS)
    put_pages(pages, folder, Disk())
    return {"memos": memos, "pages": {path: page.digest for path, page in pages.items()}}


def test_they_come_back(tmp_path):
    memos, faults = attached(written(tmp_path), tmp_path, Disk())
    assert memos == MEMOS and not faults
    assert all(type(page) is Page for page in memos["history"]["pages"])


def test_each_is_written_once_and_leftovers_go(tmp_path):
    manifest = written(tmp_path)
    times = {file.name: file.stat().st_mtime_ns for file in (tmp_path / PAGES).iterdir()}
    assert times.keys() == set(manifest["pages"].values())
    (tmp_path / PAGES / "0123.tmp-0123abcd").touch()
    written(tmp_path)
    assert times == {f.name: f.stat().st_mtime_ns for f in (tmp_path / PAGES).iterdir()}


def test_missing_and_damaged_ones_are_told_and_stay_none(tmp_path):
    manifest = written(tmp_path)
    one, two = (tmp_path / PAGES / hashlib.sha256(raw).hexdigest() for raw in (b"one", b"two"))
    one.unlink()
    two.write_bytes(b"twa")
    memos, faults = attached(manifest, tmp_path, Disk())
    assert memos["history"]["pages"] == [None, None] and memos["a/b"] == [{"x": b"3"}]
    assert len(faults) == 2 and "No such file" in faults[0] and "damaged" in faults[1]


@pytest.mark.parametrize("path", ["history", "history/pages/7", "history/pages/x", "no/such", ""])
def test_paths_that_lead_nowhere_are_passed_over(tmp_path, path):
    manifest = written(tmp_path)
    manifest["pages"] = {path: next(iter(manifest["pages"].values()))}
    memos, _ = attached(manifest, tmp_path, Disk())
    assert memos["a/b"] == [{"x": None}]


def test_a_memo_that_cannot_be_saved_is_left_out():
    with pytest.warns(UserWarning, match="effect 'b' cannot be saved, and is left out: "):
        assert saveable({"a": Page(b"1"), "b": {1, 2}}).keys() == {"a"}


def test_no_pages_no_folder(tmp_path):
    put_pages({}, tmp_path, Disk())
    assert not os.listdir(tmp_path)
