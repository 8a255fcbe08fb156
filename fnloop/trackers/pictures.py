"""``Image``: a picture that a tracker shows."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fnloop.trackers.shown import Shown, copied


class Image(Shown):
    """A picture to be shown.

    Args:
        picture: A tensor ``[H, W]`` or ``[C, H, W]`` of 1, 3 or 4 channels, or ``[N, C, H, W]``,
            which are put into one picture, side by side. A numpy array ``[H, W]``, ``[H, W, C]`` or
            ``[N, H, W, C]``. Floating point values are in 0 to 1 (others are cut off, with a
            warning from 16 on, and nan is 0), integers in 0 to 255. Or a picture of PIL, or a
            figure of matplotlib, which is drawn at once: close one that ``pyplot`` has made.
        caption: A line below it, where the tracker has one.

    Raises:
        TypeError, ValueError: It is none of these.

    >>> Image(torch.rand(12, 1, 8, 8)).pixels().shape  # 3 rows of 4, with a pixel between
    (26, 35, 1)
    """

    kind: ClassVar[str] = "pictures"

    def __init__(self, picture: Any, caption: str = "") -> None:
        self.caption = caption
        values = _with_channels(picture)
        self._largest = values.max() if values.is_floating_point() else None
        self._pixels = _bytes(values)

    def pixels(self) -> np.ndarray[Any, Any]:
        """Its pixels: uint8[H, W, C]."""
        if self._largest is not None and math.inf > self._largest > FAR:
            warnings.warn(
                "fl.trackers.Image takes floating point values in 0 to 1, and was given some up to "
                f"{float(self._largest):.4g}: what is above 1 is white. The usual cause is pixels "
                "in 0 to 255: divide by 255, or give them as integers (uint8).",
                stacklevel=2,
            )
        return self._pixels.cpu().numpy()

    def png(self) -> bytes:
        """It as a file in PNG format."""
        return as_png(self.pixels())


def as_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file (W3C, Portable Network Graphics, 2nd edition) of uint8[H, W, C].

    >>> as_png(np.zeros((2, 2, 3), np.uint8))[:4]
    b'\\x89PNG'
    """
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes()), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    )


FAR = 16.0
"""Above it, floating point values are no pixels in 0 to 1, not even those that a model makes."""


def _with_channels(picture: Any) -> Tensor:
    """A picture as ``[H, W, C]``."""
    if hasattr(picture, "savefig"):
        return _drawn(picture)
    if hasattr(picture, "getbands"):  # of PIL
        mode = picture.mode if picture.mode in ("L", "RGB", "RGBA") else "RGB"
        picture = np.asarray(picture.convert(mode))
    tensor = copied(picture, "fl.trackers.Image")
    given = tuple(tensor.shape)
    if tensor.ndim == 2:
        tensor = tensor[..., None]
    elif isinstance(picture, Tensor) and tensor.ndim in (3, 4):
        tensor = tensor.movedim(-3, -1)
    if tensor.ndim not in (3, 4) or tensor.shape[-1] not in (1, 3, 4) or not tensor.numel():
        expected = (
            "[H, W], [C, H, W] or [N, C, H, W]"
            if isinstance(picture, Tensor)
            else "[H, W], [H, W, C] or [N, H, W, C]"
        )
        raise ValueError(
            f"fl.trackers.Image takes {expected} with 1, 3 or 4 channels, and was given "
            f"{list(given)}. Tensors have their channels first, numpy arrays last."
        )
    return _tiled(tensor) if tensor.ndim == 4 else tensor


def _tiled(tensor: Tensor) -> Tensor:
    """Pictures ``[N, H, W, C]`` side by side in one, with a pixel between."""
    count, height, width, channels = tensor.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    framed = tensor.new_zeros(rows * columns, height + 1, width + 1, channels)
    framed[:count, :height, :width] = tensor
    lines = framed.view(rows, columns, height + 1, width + 1, channels).transpose(1, 2)
    whole = lines.reshape(rows * (height + 1), columns * (width + 1), channels)
    return whole[:-1, :-1]


def _bytes(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    if tensor.is_complex():
        raise ValueError("fl.trackers.Image takes real numbers, and was given complex ones.")
    if tensor.is_floating_point():
        tensor = tensor.float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).mul(255).round()
    return tensor.clamp(0, 255).to(torch.uint8)


def _drawn(figure: Any) -> Tensor:
    """The pixels of a figure of matplotlib, which may be closed or drawn over afterwards."""
    import PIL.Image  # matplotlib needs it, too

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=figure.dpi)
    file.seek(0)
    return torch.asarray(np.asarray(PIL.Image.open(file).convert("RGBA")), copy=True)
