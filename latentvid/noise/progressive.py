"""Progressive noise: each frame's noise is the previous frame's, faded, plus a draw of its own.

"Preserve Your Own Correlation" (PYoCo), arXiv 2305.10474: an autoregressive process of first order. The paper's
N(0, v) gives variances; taken for standard deviations the noise fades along the clip.
"""

from __future__ import annotations

import math

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.draws import frame_noise
from latentvid.noise.prior import NoisePrior, checked_alpha

_FORGOTTEN = 1e-9
"""A correlation below this is taken for none."""


class ProgressiveNoise(NoisePrior, SchedulerMixin):
    """Frames i and j have correlation rho^|i - j|, rho = alpha / sqrt(1 + alpha^2).

    Args:
        alpha: weight of the previous frame. 0 is iid, the paper recommends 2, a large value freezes the noise in time.
    """

    kind = "progressive"

    def __init__(self, alpha: float = 2.0) -> None:
        self.alpha = checked_alpha(alpha)
        self.register_to_config(alpha=self.alpha)

    @property
    def correlation(self) -> float:
        """Correlation of neighbouring frames."""
        return self.alpha / math.sqrt(1 + self.alpha**2)

    def covariance(self, num_frames: int) -> Tensor:
        index = torch.arange(num_frames, dtype=torch.float64)
        return self.correlation ** (index[:, None] - index[None]).abs()

    @property
    def memory(self) -> int:
        """Number of frames after which a draw is forgotten."""
        if self.alpha == 0:
            return 1
        # log(rho), without the cancellation that a large alpha brings.
        return max(1, math.ceil(math.log(_FORGOTTEN) / (-0.5 * math.log1p(self.alpha**-2))))

    def _draw(self, shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
        # The process is walked from a fixed grid, one to two memories back: a frame costs the same anywhere in a
        # film, and is the same to the bit whichever window asks for it.
        stop, block = first_frame + shape.frames, self.memory
        pieces = []
        while first_frame < stop:
            end = min(stop, (first_frame // block + 1) * block)
            start = max(0, (first_frame // block - 1) * block)
            pieces.append(self._walk(shape, rng, start, first_frame, end))
            first_frame = end
        return torch.cat(pieces, dim=2)

    def _walk(self, shape: LatentShape, rng: Rng, start: int, keep_from: int, stop: int) -> Tensor:
        """Walk from frame `start`, which is its own noise, and keep frames keep_from .. stop - 1."""
        own_weight = 1 / math.sqrt(1 + self.alpha**2)
        one = shape.with_frames(1)
        noise = frame_noise(one, rng, start)
        kept = [noise] if start >= keep_from else []
        for n in range(start + 1, stop):
            noise = self.correlation * noise + own_weight * frame_noise(one, rng, n)
            if n >= keep_from:
                kept.append(noise)
        return torch.cat(kept, dim=2)
