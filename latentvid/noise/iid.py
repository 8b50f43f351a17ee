"""Independent noise per frame: what image models, and video models that say nothing else, were trained with."""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.draws import frame_noise
from latentvid.noise.prior import NoisePrior


class IidNoise(NoisePrior, SchedulerMixin):
    """Frames do not share any noise."""

    kind = "iid"

    def __init__(self) -> None:
        self.register_to_config()

    def covariance(self, num_frames: int) -> Tensor:
        return torch.eye(num_frames, dtype=torch.float64)

    def _draw(self, shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
        return frame_noise(shape, rng, first_frame)
