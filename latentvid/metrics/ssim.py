"""Structural similarity of a video with its source, frame by frame (Wang et al., IEEE TIP 13(4), 2004)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from kornia.metrics import ssim
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.metrics.metric import check_pair, eight_bit, mean

WINDOW = 11


class Ssim:
    """`ssim`: the mean over frames of SSIM over RGB, Gaussian window of 11 (sigma 1.5), whole windows only."""

    is_over_set: ClassVar[bool] = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._values: list[float] = []

    def update(self, video: Tensor, reference: Tensor | None = None) -> None:
        reference = check_pair(video, reference, "ssim")
        if len(video) and min(video.shape[-2:]) < WINDOW:
            raise UsageError(f"ssim needs frames of at least {WINDOW}x{WINDOW} pixels, not {list(video.shape[-2:])}.")
        for x, y in zip(video, reference, strict=True):
            # Local variances are differences of large numbers: float64 keeps flat regions from turning to noise.
            pair = (eight_bit(x)[None].double(), eight_bit(y)[None].double())
            with torch.no_grad():
                self._values.append(float(ssim(*pair, WINDOW, max_val=255.0, eps=0.0, padding="valid").mean()))

    def end_clip(self) -> None:
        """Nothing to close: frames are compared one by one."""

    def compute(self) -> dict[str, float]:
        return {"ssim": mean(self._values)} if self._values else {}

    def protocol(self) -> dict[str, Any]:
        return {
            "ssim": "mean over frames",
            "window": WINDOW,
            "sigma": 1.5,
            "pixels": "RGB, clamped",
            "padding": "valid",
        }
