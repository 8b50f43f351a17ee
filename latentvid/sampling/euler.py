"""Euler's method, which in (alpha, sigma) is DDIM without added noise (arXiv 2010.02502)."""

from __future__ import annotations

from torch import Tensor

from latentvid.core.levels import Levels
from latentvid.sampling.solver import Denoise, OnStep, Renoise, ddim


class Euler:
    """First order, one denoiser call per step."""

    calls_per_step = 1

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
            x = ddim(x, denoise(x, levels[i]), levels[i], levels[i + 1])
        return x
