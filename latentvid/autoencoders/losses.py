"""What a reconstruction is trained on: pixels, their change in time, structure at every scale, and the KL term.

Everything is computed in float32 with autocast off: bf16 has eight bits of mantissa, and these are small differences
of large numbers. The Laplacian pyramid as a loss is from "Optimizing the Latent Space of Generative Networks",
arXiv:1707.05776; here it stands in for LPIPS where no trunk weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two batches of frames [n 3 h w] in [-1, 1] -> their distances [n], with gradients."""


class ReconstructionWeights(StrictModel):
    """Weights of the terms; 0 leaves a term out."""

    l1: float = Field(1.0, ge=0)
    """Mean absolute error."""
    mse: float = Field(0.0, ge=0)
    """Mean squared error; raises PSNR, blurs."""
    temporal: float = Field(0.5, ge=0)
    """Mean absolute error of the differences between neighbouring frames: less flicker."""
    laplacian: float = Field(0.0, ge=0)
    """L1 of a Laplacian pyramid: structure at every scale, without weights of any network."""
    lpips: float = Field(0.0, ge=0)
    """Learned perceptual distance; needs a trunk. 1.0 is usual; more than 0.1 on long clips costs stability in time."""


class ReconstructionLoss:
    """The weighted sum of the terms, and the terms by name.

    Not a module, so that the perceptual network is neither trained nor saved with what is trained.
    """

    def __init__(self, weights: ReconstructionWeights | None = None, *, perceptual: Perceptual | None = None) -> None:
        """Take the weights and, where `weights.lpips` is not 0, the network to measure with (on any device).

        Raises:
            UsageError: LPIPS is wanted without a network, or nothing is wanted at all.
        """
        self.weights = weights or ReconstructionWeights()
        self.perceptual = perceptual
        if self.weights.lpips and perceptual is None:
            raise UsageError(
                "loss: lpips has a weight but no network; name a trunk file for it, or use the laplacian term instead."
            )
        if not any(self.weights.model_dump().values()):
            raise UsageError("loss: every weight is 0, so there is nothing to learn; give at least one term a weight.")

    def __call__(self, video: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of [b t 3 h w] in [-1, 1] against its target (float32 scalar), and each term, unweighted
        and detached. Stills are clips of one frame; their temporal term is 0."""
        if video.ndim != 5 or video.shape[2] != 3 or video.shape != target.shape:
            raise ValueError(
                f"clips must be [b t 3 h w] of one shape, not {list(video.shape)} and {list(target.shape)}"
            )
        with torch.autocast(video.device.type, enabled=False):
            x, y = video.float(), target.detach().float()
            terms = {
                name: getattr(self, f"_{name}")(x, y) for name, weight in self.weights.model_dump().items() if weight
            }
            loss = torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()
        return loss, {name: term.detach() for name, term in terms.items()}

    def _l1(self, x: Tensor, y: Tensor) -> Tensor:
        return F.l1_loss(x, y)

    def _mse(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(x, y)

    def _temporal(self, x: Tensor, y: Tensor) -> Tensor:
        return temporal_l1(x, y)

    def _laplacian(self, x: Tensor, y: Tensor) -> Tensor:
        return laplacian_l1(x.flatten(0, 1), y.flatten(0, 1))

    def _lpips(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.perceptual is not None
        if isinstance(self.perceptual, nn.Module):
            self.perceptual.to(x.device)
        return self.perceptual(x.flatten(0, 1), y.flatten(0, 1)).float().mean()


def temporal_l1(video: Tensor, target: Tensor) -> Tensor:
    """Return the mean of |(x_t - x_{t-1}) - (y_t - y_{t-1})| over [b t 3 h w]; 0, with gradients, for one frame."""
    error = (video - target).diff(dim=1).abs()
    return error.sum() / max(1, error.numel())


def laplacian_l1(frames: Tensor, target: Tensor, *, num_levels: int = 4) -> Tensor:
    """Return the sum over the bands of a Laplacian pyramid of the mean absolute error in that band, for [n 3 h w].

    The bands are octaves of spatial frequency, the last one everything coarser; sides below 8 pixels are not halved.
    """
    rest = frames - target  # the pyramid is linear: that of the difference is the difference of the two
    total = rest.new_zeros(())
    for _ in range(num_levels - 1):
        if min(rest.shape[-2:]) < 8:
            break
        coarse = F.avg_pool2d(rest, 2, ceil_mode=True, count_include_pad=False)
        band = rest - F.interpolate(coarse, size=rest.shape[-2:], mode="bilinear", align_corners=False)
        total = total + band.abs().mean()
        rest = coarse
    return total + rest.abs().mean()


def gaussian_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) summed over a latent's elements, averaged over the batch axis.

    The convention of latent diffusion (arXiv:2112.10752), whose usual weight is 1e-6. float32; `logvar` is clamped
    to [-30, 20] as diffusers does.
    """
    with torch.autocast(mean.device.type, enabled=False):
        mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
