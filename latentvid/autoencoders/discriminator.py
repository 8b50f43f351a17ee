"""A patch discriminator over space and time, and the formulas that it is trained by and with.

Patches are PatchGAN's (arXiv 1611.07004) in 3-D, as in "Align your Latents" (arXiv 2304.08818), which found that a
discriminator of single frames beside it harms; GroupNorm instead of BatchNorm, so that small batches do no harm. Hinge
losses; the adaptive weight is VQGAN's (arXiv 2012.09841); the regularisation is LeCAM's (arXiv 2104.03310).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentvid.temporal.convolution import num_groups

EPSILON = 1e-4
"""Beside the gradient that the adaptive weight divides by; VQGAN's."""


class PatchDiscriminator(nn.Module):
    """[b 3 t h w] in [-1, 1] -> a logit per patch, [b 1 t' h' w']; any length and size.

    Args:
        width: channels after the first layer; doubled by each further one, up to eight times as many.
        num_layers: each halves height and width, all but the first the frames as well.
    """

    def __init__(self, *, width: int = 32, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(3, width, 3, stride=(1, 2, 2), padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for k in range(1, num_layers):
            wider = width * min(8, 2**k)
            layers += [
                nn.Conv3d(channels, wider, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(num_groups(wider), wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        self.layers = nn.Sequential(*layers, nn.Conv3d(channels, 1, 3, padding=1))

    def forward(self, video: Tensor) -> Tensor:
        logits: Tensor = self.layers(video)
        return logits


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss on its logits: half of mean(max(0, 1 - real)) + mean(max(0, 1 + fake))."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def generator_hinge(fake: Tensor) -> Tensor:
    """Return the generator's loss on the discriminator's logits: -mean(fake)."""
    return -fake.float().mean()


def lecam(real: Tensor, fake: Tensor, average_real: Tensor, average_fake: Tensor) -> Tensor:
    """Return mean(max(0, real - average_fake)^2) + mean(max(0, average_real - fake)^2), as LeCAM's own code has it.

    Args:
        real, fake: logits.
        average_real, average_fake: moving averages of their means.
    """
    apart = F.relu(real.float() - average_fake).square().mean()
    return apart + F.relu(average_real - fake.float()).square().mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, weight: Tensor, *, most: float) -> Tensor:
    """Return |d reconstruction / d weight| / (|d adversarial / d weight| + EPSILON), at most `most`, detached.

    Args:
        reconstruction, adversarial: losses, whose graphs are kept.
        weight: of the decoder's last layer.
    """
    norms = [
        torch.autograd.grad(loss, weight, retain_graph=True)[0].float().norm() for loss in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + EPSILON)).clamp(0, most).detach()
