"""Decomposed noise: a base shared by all frames and a residual per frame, which two networks predict apart.

VideoFusion, arXiv 2303.08320: eps^i = sqrt(lambda^i) base + sqrt(1 - lambda^i) residual^i. The base frame has
lambda 1, so its noise is the base alone and an ordinary image model can predict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.draws import frame_noise, shared_noise
from latentvid.noise.prior import NoisePrior

_MAX_FRAMES = 4096
"""Larger windows are no model's, but could come from a damaged config."""


@dataclass(frozen=True, slots=True)
class NoiseParts:
    """A draw taken apart."""

    base: Tensor
    """[b c 1 h w]"""
    residual: Tensor
    """[b c t h w]; where lambda is 1 it is drawn but does not enter the noise."""
    lambdas: Tensor
    """Share of the base in each frame's variance, float64 [t]."""

    @property
    def noise(self) -> Tensor:
        """The composed noise, [b c t h w]."""
        weights = self.lambdas.view(1, 1, -1, 1, 1)
        base_weight, own_weight = weights.sqrt().to(self.base), (1 - weights).sqrt().to(self.base)
        return base_weight * self.base + own_weight * self.residual


class DecomposedNoise(NoisePrior, SchedulerMixin):
    """Frames i and j have correlation sqrt(lambda^i lambda^j).

    The lambdas belong to places in a window of `num_frames`, and repeat in a longer draw. With one lambda and no
    base frame it is mixed noise.

    Args:
        lambdas: share of the base in the variance, one number or one per frame of the window, in [0, 1].
        num_frames: frames in the window that the networks were trained on.
        base_frame: "centre" ((num_frames - 1) // 2, the paper's frame 8 of 16 counted from one), an index, or
            None; its lambda is set to 1.
    """

    kind = "decomposed"

    def __init__(
        self,
        lambdas: float | Sequence[float] = 0.5,
        num_frames: int = 16,
        base_frame: str | int | None = "centre",
    ) -> None:
        if not (isinstance(num_frames, int) and 1 <= num_frames <= _MAX_FRAMES):
            raise UsageError(f"decomposed noise: num_frames={num_frames!r} must be a number from 1 to {_MAX_FRAMES}.")
        shares = [float(lambdas)] * num_frames if isinstance(lambdas, int | float) else [float(v) for v in lambdas]
        if len(shares) != num_frames or not all(0 <= share <= 1 for share in shares):
            raise UsageError(f"decomposed noise: lambdas={lambdas} must be {num_frames} numbers in [0, 1], or one.")
        self.base_frame = _base_index(base_frame, num_frames)
        if self.base_frame is not None:
            shares[self.base_frame] = 1.0
        self.window_lambdas = torch.tensor(shares, dtype=torch.float64)
        kept = float(lambdas) if isinstance(lambdas, int | float) else [float(v) for v in lambdas]
        self.register_to_config(lambdas=kept, num_frames=num_frames, base_frame=base_frame)

    @property
    def period(self) -> int:
        return 1 if (self.window_lambdas == self.window_lambdas[0]).all() else len(self.window_lambdas)

    def lambdas(self, num_frames: int) -> Tensor:
        """Return the share of the base in the variance of a window's first frames, float64 [t]."""
        return self.window_lambdas[torch.arange(num_frames) % len(self.window_lambdas)]

    def parts(self, shape: LatentShape, *, rng: Rng, first_frame: int = 0) -> NoiseParts:
        """Draw base and residual; `.noise` of the result is what `sample` returns."""
        residual = frame_noise(shape, rng, first_frame)
        return NoiseParts(shared_noise(shape, rng), residual, self.lambdas(shape.frames))

    def covariance(self, num_frames: int) -> Tensor:
        root = self.lambdas(num_frames).sqrt()
        return torch.outer(root, root).fill_diagonal_(1.0)

    def _draw(self, shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
        return self.parts(shape, rng=rng, first_frame=first_frame).noise


def _base_index(base_frame: str | int | None, num_frames: int) -> int | None:
    if base_frame is None:
        return None
    if base_frame == "centre":
        return (num_frames - 1) // 2
    if isinstance(base_frame, int) and 0 <= base_frame < num_frames:
        return base_frame
    raise UsageError(
        f"decomposed noise: base_frame={base_frame!r} must be 'centre', null, or an index below {num_frames}."
    )
