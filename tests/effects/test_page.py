import hashlib

from fnloop.effects.page import Page


def test_it_is_bytes_with_a_digest():
    assert Page(b"rows") == b"rows"
    assert Page(b"rows").digest == hashlib.sha256(b"rows").hexdigest()
