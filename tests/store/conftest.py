"""What tests of the store share: an S3 server that can be killed, and uploads in parts."""

from collections.abc import Iterator

import pytest

from fnloop.store import remote
from tests.store import s3_killed


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3_killed.Mortal]:
    """An S3 server of the module's own, which its tests kill and start again."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with s3_killed.living(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> int:
    """The bytes of a part; files that have more are uploaded in parts."""
    monkeypatch.setattr(remote, "_WHOLE", s3_killed.PART)
    return s3_killed.PART
