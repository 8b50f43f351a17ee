"""Draws that priors are made of: of every frame by itself, and of what all frames share."""

from __future__ import annotations

import torch
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape


def frame_noise(shape: LatentShape, rng: Rng, first_frame: int) -> Tensor:
    """Draw every frame's own noise, independent across frames: float32 [b c t h w]."""
    _, c, t, h, w = shape.dims
    return torch.stack([rng.child(f"frame/{first_frame + i}").normal(c, h, w) for i in range(t)], dim=2)


def shared_noise(shape: LatentShape, rng: Rng) -> Tensor:
    """Draw the noise that all frames of a film share: float32 [b c 1 h w]."""
    return rng.child("shared").normal(shape.channels, shape.height, shape.width).unsqueeze(2)
