"""Classifier-free guidance, composed around the denoiser so that no solver knows of it.

"Classifier-Free Diffusion Guidance" (arXiv 2207.12598), on clean estimates, which is the same as on noise
estimates. Rescaling from arXiv 2305.08891, the interval from arXiv 2404.07724.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentvid.core.levels import Level
from latentvid.sampling.solver import Denoise

EVERYWHERE = (0.0, 1.0)


def classifier_free(
    conditional: Denoise,
    unconditional: Denoise,
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] = EVERYWHERE,
) -> Denoise:
    """Guide away from `unconditional` towards `conditional`.

    Args:
        scale: 1 is the conditional estimate alone (and one call instead of two), 0 the unconditional one.
        rescale: how far, 0..1, the guided estimate's spread is brought back to the conditional one's.
        interval: guide only where sigma / (alpha + sigma), 1 at pure noise, lies within.
    """

    def denoise(x: Tensor, level: Level) -> Tensor:
        with_condition = conditional(x, level)
        if not _is_guided(scale, interval, level):
            return with_condition
        return _guide(with_condition, unconditional(x, level), scale, rescale)

    return denoise


def classifier_free_batched(
    conditional: Denoise,
    both: Denoise,
    scale: float,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] = EVERYWHERE,
) -> Denoise:
    """Guide as `classifier_free` does, in one call of twice the batch.

    Args:
        conditional: denoises [b c t h w]; used where nothing is guided.
        both: denoises [2b c t h w], the first half with the condition and the second without.
    """

    def denoise(x: Tensor, level: Level) -> Tensor:
        if not _is_guided(scale, interval, level):
            return conditional(x, level)
        with_condition, without = both(torch.cat([x, x]), _twice(level)).chunk(2)
        return _guide(with_condition, without, scale, rescale)

    return denoise


def _is_guided(scale: float, interval: tuple[float, float], level: Level) -> bool:
    if scale == 1:
        return False
    low, high = interval
    # Where frames have levels of their own, the noisiest decides: the others are context.
    return low <= float((level.sigma / (level.alpha + level.sigma)).max()) <= high


def _guide(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float) -> Tensor:
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    each = (1, 2, 3, 4)
    spread = conditional.std(each, keepdim=True) / guided.std(each, keepdim=True)
    return guided * (rescale * spread + (1 - rescale))


def _twice(level: Level) -> Level:
    double = lambda v: v if v.ndim == 0 else torch.cat([v, v])  # noqa: E731
    return Level(double(level.alpha), double(level.sigma), double(level.timestep))
