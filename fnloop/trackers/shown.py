"""What trackers show besides numbers: text and files, and what all kinds have in common."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnloop.names.keywords import Explained


class Shown(Explained):
    """Base class of what a tracker shows: `Image`, `Text`, `Audio`, `Histogram`, `File`.

    A value keeps a copy of what it is made from, on the device where that was: making one does not
    wait for the device, and a state that is donated to the next step may go. The thread that
    writes reads it from there.

    Attributes:
        kind: What it is called in messages, in the plural.
    """

    kind: ClassVar[str] = "values"


class Text(Shown):
    """A text to be shown.

    Args:
        text: The text.

    >>> Text("a b c").text
    'a b c'
    """

    kind: ClassVar[str] = "texts"

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(
                f"fl.trackers.Text takes a string, and was given {type(text).__name__}. The usual "
                "cause is a list of tokens: decode them first."
            )
        self.text = text


class File(Shown):
    """A file to be kept with the run: a configuration, a table, weights.

    It is read when it is written to the tracker, by another thread, and has to stay as it is until
    then.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is none.

    >>> File("pyproject.toml").path.name
    'pyproject.toml'
    """

    kind: ClassVar[str] = "files"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"fl.trackers.File: {self.path} is no file. A folder is shown file by file, or as "
                "an archive."
            )


def copied(data: Any, who: str) -> Tensor:
    """A copy of a tensor or an array, on its device.

    Raises:
        TypeError: It is neither; `who` was given it.
    """
    if isinstance(data, Tensor):
        return data.detach().clone()
    if hasattr(data, "__array__") or isinstance(data, list | tuple):
        try:
            return torch.asarray(data, copy=True)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{who} was given values that are no numbers: {error}") from error
    raise TypeError(f"{who} takes a tensor or an array, and was given {type(data).__name__}.")
