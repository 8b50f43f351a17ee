"""What a noise prior is: draws of unit variance whose correlation across frames is declared.

A network trained under one frame covariance and started or re-noised under another samples the wrong law
(relative covariance error about 0.8 where the matched prior has 0.01), so the prior is saved with the
checkpoint, as a component of the diffusers pipeline, and every draw goes through it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from diffusers import ConfigMixin
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.draws import frame_noise
from latentvid.noise.gaussian import combine, conditional


class NoisePrior(ConfigMixin, ABC):
    """A zero-mean Gaussian law over clips: unit variance everywhere, correlated across frames only.

    Frame n's own randomness is the stream "frame/n" of the given `Rng`, n counted from the start of the film:
    its noise depends on the seed and n, never on the batch, the window or the clip's length. The law itself
    belongs to places in a window, which is what a network was trained on; see `period`.

    A concrete prior also derives from diffusers' `SchedulerMixin`, named in its own module: it is there that
    diffusers looks for the way to load a pipeline's component.
    """

    config_name = "noise_config.json"
    kind: ClassVar[str]

    @property
    def period(self) -> int:
        """Number of frames after which the law repeats: 1 where all places in a window are alike.

        Elsewhere frame n's noise is the same in all windows that start a multiple of `period` apart.
        """
        return 1

    def sample(self, shape: LatentShape, *, rng: Rng, first_frame: int = 0, past: Tensor | None = None) -> Tensor:
        """Draw the noise of frames first_frame .. first_frame + t - 1, float32 [b c t h w] on the CPU.

        Args:
            shape: sizes of the draw; `shape.batch` is the number of seeds in `rng`.
            rng: the film's noise, one seed per sample.
            first_frame: index in the film of the first frame drawn; it stands at the first place of a window.
            past: noise [b c p h w] of the p frames before `first_frame`, which then stand at the first places of
                the window. The draw follows the law given exactly this noise, whatever it came from; frames
                further back are forgotten.
        """
        if len(rng) != shape.batch:
            raise ValueError(f"rng has {len(rng)} seeds for a batch of {shape.batch}")
        if first_frame < 0 or shape.frames < 1:
            raise ValueError(f"cannot draw {shape.frames} frames from frame {first_frame}")
        if past is None or past.shape[2] == 0:
            return self._draw(shape, rng, first_frame)
        return self._continue(past, shape, rng, first_frame)

    @abstractmethod
    def covariance(self, num_frames: int) -> Tensor:
        """Return the covariance of a window's first `num_frames` frames: float64 [t t], unit diagonal."""

    @abstractmethod
    def _draw(self, shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
        """Draw without a past, [b c t h w]."""

    def _continue(self, past: Tensor, shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
        b, c, t, h, w = shape.dims
        num_past = past.shape[2]
        if past.shape != (b, c, num_past, h, w):
            raise ValueError(f"past is {list(past.shape)}, which {list(shape.dims)} cannot continue")
        if num_past > first_frame:
            raise ValueError(f"{num_past} past frames cannot all lie before frame {first_frame}")
        # Only streams of frames >= first_frame: a past drawn from the same rng is independent of them.
        fresh = frame_noise(shape, rng, first_frame)
        given = conditional(self.covariance(num_past + t), num_past)
        past = past.to(fresh.device, fresh.dtype)
        return combine(given.mean_weights, past) + combine(given.noise_weights, fresh)


def checked_alpha(alpha: float) -> float:
    """Return PYoCo's alpha as a float.

    Raises:
        UsageError: it is negative or not finite.
    """
    if not (isinstance(alpha, int | float) and math.isfinite(alpha) and alpha >= 0):
        raise UsageError(f"noise prior: alpha={alpha!r} must be a finite number that is not negative (0 is iid noise).")
    return float(alpha)
