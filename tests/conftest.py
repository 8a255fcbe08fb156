"""Every test runs on one thread, in an empty working directory."""

from __future__ import annotations

import pytest
import torch

pytest_plugins = ["pytester"]
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The slow ones may take as long as they like; the others end when they hang."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path_factory, monkeypatch):
    """Tests that write into the working directory would litter; they find an empty one."""
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
