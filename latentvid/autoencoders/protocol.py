"""The seam of every autoencoder: clips in, latents out, and back, as streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor

from latentvid.core.shapes import LatentShape, VideoShape


class Autoencoder(Protocol):
    """Encodes and decodes films of any length; how a film is cut into chunks never changes the result."""

    def latent_shape(self, video: VideoShape) -> LatentShape:
        """Return what a batch of clips becomes."""
        ...

    def encode(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn chunks [t 3 h w] in [-1, 1] into chunks of latents [c t h w] in model space."""
        ...

    def decode(self, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn chunks of latents [c t h w] into chunks [t 3 h w] in [-1, 1]."""
        ...
