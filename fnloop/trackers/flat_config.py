"""Hyperparameters as trackers take them that have no nested ones."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts and lists by dotted names; empty ones are left out.

    >>> flat({"data": {"sizes": [1, 2]}, "lr": 0.1, "none": None})
    {'data.sizes.0': 1, 'data.sizes.1': 2, 'lr': 0.1, 'none': None}
    """
    return dict(_walk("", config))


def plain_name(name: str) -> str:
    """A name of letters, digits and ``_-. /`` only.

    >>> plain_name("val/accuracy[3]"), plain_name("loss (nats)")
    ('val/accuracy.3', 'loss _nats_')
    """
    return re.sub(r"[^\w\-. /]", "_", re.sub(r"\[(\d+)\]", r".\1", name), flags=re.ASCII)


def _walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        parts = [(str(key), each) for key, each in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(i), each) for i, each in enumerate(value)]
    else:
        yield prefix, value
        return
    for key, each in parts:
        yield from _walk(f"{prefix}.{key}" if prefix else key, each)
