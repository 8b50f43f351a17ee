"""Clips that metrics are tried on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.core.rng import Rng


@pytest.fixture(scope="session")
def source() -> Tensor:
    """A smooth pattern, half of which stands still while the other half moves: [13 3 48 64] in [-1, 1]."""
    pattern = F.interpolate(Rng(1).normal(3, 8, 10), size=(48, 64), mode="bicubic")[0].clamp(-1.5, 1.5) * 0.5
    frames = []
    for t in range(13):
        frame = pattern.clone()
        frame[..., 32:] = torch.roll(pattern[..., 32:], 3 * t, dims=-2)
        frames.append(frame)
    return torch.stack(frames)


@pytest.fixture(scope="session")
def noise(source: Tensor) -> Tensor:
    """Unit noise of the source's shape, another draw per frame."""
    return Rng(2).normal(*source.shape)[0]
