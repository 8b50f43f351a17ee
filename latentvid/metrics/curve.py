"""PSNR by frame index: whether quality falls along a clip, or beats with a chunk length."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics.metric import check_pair, mean
from latentvid.metrics.psnr import frame_errors, to_db


class PsnrCurve:
    """PSNR by frame index, averaged over clips: shows whether quality falls, or beats with a chunk length.

    Args:
        period: a chunk length in frames. With it, `curve_phase_spread` is the spread (dB) between the best and the
            worst position within a chunk; a decoder without seams has next to none.
    """

    is_over_set: ClassVar[bool] = False

    def __init__(self, *, period: int | None = None) -> None:
        if period is not None and period < 2:
            raise UsageError(f"curve: period={period} must be at least 2 frames.")
        self.period = period
        self.reset()

    def reset(self) -> None:
        self._sums: list[float] = []
        self._counts: list[int] = []
        self._index = 0

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        for error in frame_errors(video, check_pair(video, reference, "curve")):
            if self._index == len(self._sums):
                self._sums.append(0.0)
                self._counts.append(0)
            self._sums[self._index] += to_db(error)
            self._counts[self._index] += 1
            self._index += 1

    def end_clip(self) -> None:
        self._index = 0

    def curve(self) -> list[float]:
        """Return the PSNR (dB) of each frame index, averaged over the clips that are long enough to have it."""
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]

    def compute(self) -> dict[str, float]:
        curve = self.curve()
        if not curve:
            return {}
        result = {"curve_first": curve[0], "curve_last": curve[-1], "curve_min": min(curve)}
        if self.period and len(curve) >= self.period:
            phases = [mean(curve[phase :: self.period]) for phase in range(self.period)]
            result["curve_phase_spread"] = max(phases) - min(phases)
        return result

    def protocol(self) -> dict[str, Any]:
        return {"curve": "per-frame PSNR (dB) by frame index, mean over clips", "period": self.period}
