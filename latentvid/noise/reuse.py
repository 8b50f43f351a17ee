"""Noise carried from one window to the next: VidRD's reversal and recycling, exact under any prior.

"Reuse and Diffuse" (VidRD), arXiv 2309.03549. Its past-dependent noise keeps the law only of independent frames;
under a correlated prior it is off by up to 30 %, so new frames are drawn here given the reused ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentvid.core.errors import UsageError
from latentvid.core.overlap import check_overlap
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.noise.draws import frame_noise
from latentvid.noise.gaussian import combine, conditional

if TYPE_CHECKING:
    from latentvid.noise.prior import NoisePrior


def reuse_noise(
    previous: Tensor,
    *,
    order: str,
    overlap: int,
    alpha: float,
    prior: NoisePrior,
    rng: Rng,
    first_frame: int,
) -> Tensor:
    """Make a window's noise from the previous window's: float32 [b c t h w] on the CPU.

    "mirror" is VidRD: the whole window's noise in reversed frame order, kept as it is for the first `overlap`
    frames and recycled for the others. "chronological" gives the first `overlap` frames the noise of the previous
    window's last ones in their own order, and draws the others given these.

    Args:
        previous: the previous window's initial noise, unit variance, [b c t h w].
        overlap: number M of frames whose noise is reused unchanged, 0..t.
        alpha: mirror only: weight of the old noise in the recycled frames; 0 draws afresh, infinity only reverses.
        rng: the film's noise. The new frames take the streams "frame/n", n = first_frame + overlap and up, which
            the previous window must not have used: first_frame is at least its own plus t - overlap.
        first_frame: index in the film of the window's first frame.

    Raises:
        UsageError: unknown order, impossible overlap, or a prior whose law does not survive the move.
    """
    num_frames = previous.shape[2]
    check_overlap(overlap, order, num_frames=num_frames)
    cov = prior.covariance(num_frames)
    if order == "mirror":
        _check_law_survives(cov, cov.flip(0, 1), prior, order)
        reused = reverse(previous)
    else:
        start = num_frames - overlap
        _check_law_survives(cov[:overlap, :overlap], cov[start:, start:], prior, order)
        # Old noise behind the overlap would have to be permuted, which no correlated law survives: draw it anew.
        reused, alpha = previous.roll(overlap, dims=2), 0.0
    return recycle(reused, prior=prior, num_prompt_frames=overlap, alpha=alpha, rng=rng, first_frame=first_frame)


def reverse(noise: Tensor) -> Tensor:
    """Reverse the frames of [b c t h w] (VidRD's frame-level noise reversion)."""
    return noise.flip(2)


def recycle(
    reused: Tensor, *, prior: NoisePrior, num_prompt_frames: int, alpha: float, rng: Rng, first_frame: int = 0
) -> Tensor:
    """Keep the first frames of `reused` and renew the others in part (VidRD's past-dependent noise sampling).

    With P the first M frames and Q the rest, A = S_QP S_PP^-1, L L^T = S_QQ - A S_PQ, rho = alpha/sqrt(1+alpha^2):
        z_P = r_P,   z_Q = rho r_Q + (1 - rho) A z_P + sqrt(1 - rho^2) L w,   w ~ N(0, I)
    which has the covariance S of the prior whenever `reused` has; for S = I it is VidRD's formula.

    Args:
        reused: noise r with the law of the prior, [b c t h w].
        num_prompt_frames: M, 0..t.
        alpha: in [0, inf]; infinity keeps `reused` as it is.
    """
    b, c, num_frames, h, w = reused.shape
    reused = reused.to("cpu", torch.promote_types(reused.dtype, torch.float32))
    num_new = num_frames - num_prompt_frames
    if num_new == 0 or math.isinf(alpha):
        return reused
    kept, renewed = 1 / math.hypot(1, 1 / alpha) if alpha else 0.0, 1 / math.hypot(1, alpha)
    prompt, old = reused[:, :, :num_prompt_frames], reused[:, :, num_prompt_frames:]
    fresh = frame_noise(LatentShape(b, c, num_new, h, w), rng, first_frame + num_prompt_frames).to(reused)
    mean_weights, noise_weights = conditional(prior.covariance(num_frames), num_prompt_frames)
    new = kept * old + combine((1 - kept) * mean_weights, prompt) + combine(renewed * noise_weights, fresh)
    return torch.cat([prompt, new], dim=2)


def _check_law_survives(wanted: Tensor, moved: Tensor, prior: NoisePrior, order: str) -> None:
    if not torch.allclose(wanted, moved, atol=1e-9):
        raise UsageError(
            f"{order} reuse does not keep the law of {prior.kind} noise, whose frames are not alike in this window;"
            " use another order, a smaller overlap, or a base frame in the exact middle (odd num_frames)."
        )
