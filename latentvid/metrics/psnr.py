"""Peak signal-to-noise ratio, in dB, of a video against its source."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from latentvid.metrics.metric import check_pair, eight_bit, mean

CAP_DB = 100.0
"""What identical frames score: infinity would spoil every mean and is no JSON."""


def frame_errors(video: Tensor, reference: Tensor) -> list[float]:
    """Return the mean squared error of each frame on the 8-bit scale, in float64."""
    pairs = zip(video, reference, strict=True)
    return [float((eight_bit(x).double() - eight_bit(y).double()).square().mean()) for x, y in pairs]


def to_db(squared_error: float) -> float:
    """Return 10 log10(255^2 / squared_error), at most `CAP_DB`.

    >>> round(to_db(65.025), 6)
    30.0
    """
    return CAP_DB if squared_error == 0 else min(CAP_DB, 10 * math.log10(255**2 / squared_error))


class Psnr:
    """`psnr` is the headline: the mean over frames of each frame's PSNR.

    `psnr_pooled` is the mean over clips of the PSNR of the clip's pooled squared error; it is never higher within
    a clip, and bad frames weigh more. Codec papers report either; say which.
    """

    is_over_set: ClassVar[bool] = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._clips: list[list[float]] = [[]]

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        self._clips[-1].extend(frame_errors(video, check_pair(video, reference, "psnr")))

    def end_clip(self) -> None:
        if self._clips[-1]:
            self._clips.append([])

    def compute(self) -> dict[str, float]:
        clips = [clip for clip in self._clips if clip]
        if not clips:
            return {}
        return {
            "psnr": mean([to_db(error) for clip in clips for error in clip]),
            "psnr_pooled": mean([to_db(mean(clip)) for clip in clips]),
        }

    def protocol(self) -> dict[str, Any]:
        return {
            "psnr": "mean over frames of per-frame PSNR",
            "psnr_pooled": "mean over clips of the PSNR of the squared error pooled over the clip",
            "peak": 255,
            "pixels": "RGB, clamped, not rounded",
            "cap_db": CAP_DB,
        }
