"""A stand-in for `Rng` whose draws are basis vectors, so that a linear sampler's covariance can be read off."""

from __future__ import annotations

import torch
from torch import Tensor


class BasisRng:
    """Each named stream is one unit vector along the channel axis: equal names, equal vectors.

    A linear draw of shape [1 size t 1 1] then holds the coefficients of every frame, and their Gram matrix is
    the covariance, without any counting.
    """

    def __init__(self, size: int, *, path: str = "", known: dict[str, int] | None = None) -> None:
        self.size, self.path, self.known = size, path, {} if known is None else known

    def __len__(self) -> int:
        return 1

    def child(self, name: object) -> BasisRng:
        return BasisRng(self.size, path=f"{self.path}/{name}", known=self.known)

    def normal(self, channels: int, height: int, width: int) -> Tensor:
        assert (channels, height, width) == (self.size, 1, 1)
        index = self.known.setdefault(self.path, len(self.known))
        assert index < self.size, "more streams than basis vectors"
        vector = torch.zeros(1, channels, 1, 1)
        vector[0, index] = 1
        return vector


def covariance_of(coefficients: Tensor) -> Tensor:
    """Return the frame covariance [t t], float64, of coefficients [1 size t 1 1]."""
    x = coefficients[0, :, :, 0, 0].double()
    return x.T @ x
