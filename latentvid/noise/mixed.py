"""Mixed noise: one draw shared by all frames plus one draw per frame.

"Preserve Your Own Correlation" (PYoCo), arXiv 2305.10474. The paper's N(0, v) gives variances; taking v for the
standard deviation (as published code does) leaves a variance of 0.5 at alpha = 1.
"""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.draws import frame_noise, shared_noise
from latentvid.noise.prior import NoisePrior, checked_alpha


class MixedNoise(NoisePrior, SchedulerMixin):
    """Any two frames have correlation alpha^2 / (1 + alpha^2).

    Args:
        alpha: weight of the shared draw. 0 is iid, the paper recommends 1, a large value freezes the noise in time.
    """

    kind = "mixed"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = checked_alpha(alpha)
        # Registered by hand and in full: diffusers' decorator marks values left at their default, and loading
        # would then follow a default that has changed since.
        self.register_to_config(alpha=self.alpha)

    @property
    def correlation(self) -> float:
        """The shared draw's share of the variance."""
        return self.alpha**2 / (1 + self.alpha**2)

    def covariance(self, num_frames: int) -> Tensor:
        cov = torch.full((num_frames, num_frames), self.correlation, dtype=torch.float64)
        return cov.fill_diagonal_(1.0)

    def _draw(self, shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
        own = frame_noise(shape, rng, first_frame)
        return self.correlation**0.5 * shared_noise(shape, rng) + (1 - self.correlation) ** 0.5 * own
