"""DPM-Solver++(2M): a DDIM step along a clean estimate extrapolated from the last two (arXiv 2211.01095)."""

from __future__ import annotations

from torch import Tensor

from latentvid.core.levels import Level, Levels
from latentvid.sampling.solver import Denoise, OnStep, Renoise, ddim


class DpmPp2M:
    """Second order with one denoiser call per step; the first and the last step are of first order.

    The extrapolation is in log(alpha / sigma), for variance-preserving and flow levels alike. From pure noise
    that quantity is infinite, and the second step falls back to first order as well.
    """

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
        clean_before: Tensor | None = None
        for i in range(len(levels)):
            if on_step is not None:
                x = on_step(i, x)
            clean = denoise(x, levels[i])
            towards = clean
            if clean_before is not None and i + 1 < len(levels):
                ahead = _log_ratio(levels[i + 1]) - _log_ratio(levels[i])
                behind = _log_ratio(levels[i]) - _log_ratio(levels[i - 1])
                towards = clean + ahead / (2 * behind) * (clean - clean_before)
            x = ddim(x, towards, levels[i], levels[i + 1])
            clean_before = clean
        return x


def _log_ratio(level: Level) -> Tensor:
    return (level.alpha / level.sigma).log()
