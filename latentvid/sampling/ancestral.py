"""Ancestral sampling: each step draws from the posterior of the noising process, or part of the way there.

DDPM (arXiv 2006.11239) at eta = 1, DDIM (arXiv 2010.02502) at eta = 0, in (alpha, sigma) for any schedule. With
a correlated prior the posterior's covariance is that of the prior, so the injected noise must be the prior's:
independent noise erases even a correct start (covariance error 0.77 instead of 0.01).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from latentvid.core.levels import Levels
from latentvid.sampling.solver import Denoise, OnStep, Renoise


@dataclass(frozen=True)
class Ancestral:
    """First order, one denoiser call per step, one draw from the prior in every step but the last."""

    eta: float = 1.0
    """Share of the posterior's standard deviation that is drawn anew; 0 is deterministic."""
    calls_per_step: ClassVar[int] = 1

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Levels,
        *,
        renoise: Renoise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        if renoise is None:
            raise ValueError("the ancestral solver needs `renoise`, which draws from the model's noise prior")
        for i in range(len(levels)):
            if on_step is not None:
                x = on_step(i, x)
            now, then = levels[i], levels[i + 1]
            clean = denoise(x, now)
            if then.sigma == 0:
                return clean.to(x.dtype)
            # Noise that the forward process adds from `then` to `now`, and its share in the posterior at `then`.
            added = (now.sigma**2 - (now.alpha * then.sigma / then.alpha) ** 2).clamp(min=0).sqrt()
            drawn = self.eta * then.sigma / now.sigma * added
            kept = (then.sigma**2 - drawn**2).clamp(min=0).sqrt()
            eps = (x - now.alpha * clean) / now.sigma
            x = then.alpha * clean + kept * eps + drawn * renoise(i).to(x)
        return x
