"""Heun's method: an Euler step, corrected with the estimates at its far end.

The solver of "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364), written
as dx = clean d(alpha) + eps d(sigma) with both estimates averaged. That form needs neither a finite
sigma/alpha at the start nor a particular noise schedule; for flow models it is Heun on the velocity.
"""

from __future__ import annotations

from torch import Tensor

from latentvid.core.levels import Levels
from latentvid.sampling.solver import Denoise, OnStep, Renoise, ddim


class Heun:
    """Second order, two denoiser calls per step; the last step, whose end has little or no noise, is Euler's."""

    calls_per_step = 2

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Levels,
        *,
        renoise: Renoise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        for i in range(len(levels)):
            if on_step is not None:
                x = on_step(i, x)
            now, then = levels[i], levels[i + 1]
            clean = denoise(x, now)
            end = ddim(x, clean, now, then)
            if i + 1 == len(levels):
                return end
            eps = (x - now.alpha * clean) / now.sigma
            clean_there = denoise(end, then)
            eps_there = (end - then.alpha * clean_there) / then.sigma
            x = (
                x
                + (then.alpha - now.alpha) / 2 * (clean + clean_there)
                + (then.sigma - now.sigma) / 2 * (eps + eps_there)
            )
        return x
