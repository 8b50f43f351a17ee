"""Gaussian conditioning across frames: what the noise of later frames must be, given the noise of earlier ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_NEGLIGIBLE = 1e-13


class Conditional(NamedTuple):
    """x_Q given x_P is `mean_weights @ x_P + noise_weights @ w`, w ~ N(0, I). Float64."""

    mean_weights: Tensor
    """A = S_QP S_PP^-1, [q p]."""
    noise_weights: Tensor
    """Lower triangular L with L L^T = S_QQ - A S_PQ, [q q]."""


def conditional(covariance: Tensor, num_past: int) -> Conditional:
    """Condition frames num_past.. on frames 0..num_past-1 under `covariance` [n n].

    The pseudo-inverse stands in for the inverse, because strongly correlated priors (and VideoFusion's base
    frame repeated in a longer clip) have singular covariances; for a past that is possible at all it is exact.
    """
    cov = covariance.double()
    past, cross = cov[:num_past, :num_past], cov[num_past:, :num_past]
    inverse = torch.linalg.pinv(past, rtol=1e-12, hermitian=True) if num_past else past
    mean_weights = _without_dust(cross @ inverse)
    return Conditional(mean_weights, cholesky(cov[num_past:, num_past:] - mean_weights @ cross.T))


def cholesky(covariance: Tensor) -> Tensor:
    """Return lower triangular L with L L^T = `covariance` [n n], which may be singular. Float64.

    Triangular, so that the noise of a frame does not depend on how many frames follow it.
    """
    cov = covariance.double()
    factor = torch.zeros_like(cov)
    for j in range(len(cov)):
        pivot = cov[j, j] - factor[j, :j] @ factor[j, :j]
        if pivot <= _NEGLIGIBLE:  # frame j is already determined by the frames before it
            continue
        factor[j, j] = pivot.sqrt()
        factor[j + 1 :, j] = (cov[j + 1 :, j] - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    return _without_dust(factor)


def combine(weights: Tensor, frames: Tensor) -> Tensor:
    """Return weights [q p] applied to `frames` [b c p h w] along t: [b c q h w], in the dtype of `frames`.

    Summed one frame at a time and in order, since a matrix product may round a frame differently in a longer clip.
    """
    b, c, _, h, w = frames.shape
    out = frames.new_zeros(b, c, len(weights), h, w)
    for q, row in enumerate(weights.tolist()):
        for p, weight in enumerate(row):
            if weight:
                out[:, :, q] += weight * frames[:, :, p]
    return out


def _without_dust(weights: Tensor) -> Tensor:
    return torch.where(weights.abs() < _NEGLIGIBLE, torch.zeros_like(weights), weights)
