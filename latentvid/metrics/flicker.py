"""Flicker: how far a video's frame-to-frame changes are from those of its source.

A still wall that shimmers after a round trip scores high here while its PSNR is fine. Needs no weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics.metric import check_pair, eight_bit, mean


class Flicker:
    """`flicker` = mean |(x_t - x_{t-1}) - (y_t - y_{t-1})| over pixels, channels and steps, on the 0-255 scale.

    `flicker_static` and `flicker_moving` are its parts where the source changes (mean over RGB of |y_t - y_{t-1}|)
    by at most, and by more than, `threshold`; `static_share` is the share of the static pixels, so that
    flicker = static_share * flicker_static + (1 - static_share) * flicker_moving.

    Args:
        threshold: largest change, on the 0-255 scale, that counts as static. Sensor noise lies below about 2.
    """

    is_over_set: ClassVar[bool] = False

    def __init__(self, *, threshold: float = 2.0) -> None:
        if threshold < 0:
            raise UsageError(f"flicker: threshold={threshold:g} must not be negative.")
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        self._previous: tuple[Tensor, Tensor] | None = None
        self._static_errors: list[float] = []
        self._moving_errors: list[float] = []
        self._static_shares: list[float] = []

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        for x, y in zip(video, check_pair(video, reference, "flicker"), strict=True):
            x, y = eight_bit(x), eight_bit(y)
            if self._previous is not None:
                self._step(x - self._previous[0], y - self._previous[1])
            self._previous = (x, y)

    def _step(self, change: Tensor, source_change: Tensor) -> None:
        error = (change - source_change).abs().mean(dim=0).double()  # [h w]
        is_static = source_change.abs().mean(dim=0) <= self.threshold
        pixels = error.numel()
        self._static_errors.append(float(error[is_static].sum()) / pixels)
        self._moving_errors.append(float(error[~is_static].sum()) / pixels)
        self._static_shares.append(int(is_static.sum()) / pixels)

    def end_clip(self) -> None:
        self._previous = None

    def compute(self) -> dict[str, float]:
        if not self._static_shares:
            return {}
        static, moving, share = mean(self._static_errors), mean(self._moving_errors), mean(self._static_shares)
        result = {"flicker": static + moving, "static_share": share}
        if share > 0:
            result["flicker_static"] = static / share
        if share < 1:
            result["flicker_moving"] = moving / (1 - share)
        return result

    def protocol(self) -> dict[str, Any]:
        return {
            "flicker": "mean absolute error of frame differences against the source, 0-255, mean over steps",
            "static_threshold": self.threshold,
        }
