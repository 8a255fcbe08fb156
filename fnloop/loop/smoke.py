"""What a smoke run does otherwise: everything comes once, and nothing is left."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from fnloop.distributed.mesh import Mesh
from fnloop.effects.effect import Effect
from fnloop.stages.callback import Callback


@contextlib.contextmanager
def smoke_folder(mesh: Mesh) -> Generator[Path]:
    """A folder for what effects write, one for all ranks; it is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="fnloop-smoke-") as own:
        yield Path(mesh.exchange(own)[0])


def in_smoke(callbacks: Sequence[Any], folder: Path) -> list[Any]:
    """The callbacks and effects of a smoke run, in place of those of the run itself."""
    found: list[Any] = []
    for number, each in enumerate(callbacks):
        if isinstance(each, Effect):
            effect = each.smoke(folder / str(number))
            found += [] if effect is None else [effect]
        else:
            found.append(each.smoke() if isinstance(each, Callback) else each)
    return found
