"""``Audio``: a sound that a tracker plays."""

from __future__ import annotations

import io
import wave
from typing import Any, ClassVar

import numpy as np

from fnloop.trackers.shown import Shown, copied
from fnloop.values.counts import as_count


class Audio(Shown):
    """A sound to be played.

    Args:
        samples: A tensor or an array ``[samples]``, or ``[channels, samples]`` of 1 or 2 channels.
            Floating point values are in -1 to 1 (others are cut off), or int16.
        rate: Samples a second.
        caption: A line below it, where the tracker has one.

    Raises:
        TypeError, ValueError: It is none of these.

    >>> import torch
    >>> Audio(torch.zeros(2, 400), rate=8000).samples().shape
    (400, 2)
    """

    kind: ClassVar[str] = "sounds"

    def __init__(self, samples: Any, rate: int, caption: str = "") -> None:
        tensor = copied(samples, "fl.trackers.Audio")
        whole = not tensor.is_floating_point()
        wrong = str(tensor.dtype) != "torch.int16" if whole else False
        if tensor.ndim not in (1, 2) or (tensor.ndim == 2 and tensor.shape[0] > 2) or wrong:
            raise ValueError(
                "fl.trackers.Audio takes [samples] or [channels, samples], of 1 or 2 channels, "
                "floating point numbers in -1 to 1, or int16; it was given "
                f"{tensor.dtype} {list(tensor.shape)}. The usual cause is a batch of sounds, or "
                "channels that come last."
            )
        self.caption = caption
        self.rate = as_count(rate, "fl.trackers.Audio(rate=...)", 1)
        self._samples = tensor if tensor.ndim == 2 else tensor[None]

    def samples(self) -> np.ndarray[Any, Any]:
        """Its samples: int16[samples, channels]."""
        samples = self._samples.T.cpu()
        if samples.is_floating_point():
            samples = samples.double().nan_to_num(0.0).clamp(-1, 1).mul(32767).round()
        return samples.numpy().astype("<i2")

    def wav(self) -> bytes:
        """It as a file in WAV format, 16 bits a sample."""
        samples, file = self.samples(), io.BytesIO()
        with wave.open(file, "wb") as written:
            written.setnchannels(samples.shape[1])
            written.setsampwidth(2)
            written.setframerate(self.rate)
            written.writeframes(samples.tobytes())
        return file.getvalue()
