"""The discriminator of a decoder finetuning with all that it remembers: averages of its logits, and whether it is on.

All of it is in the module's state, so that a resumed run goes on as if it had not been stopped.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from latentvid.autoencoders.discriminator import PatchDiscriminator, adaptive_weight, generator_hinge, hinge, lecam
from latentvid.core.config import StrictModel
from latentvid.core.rng import Rng


class DiscriminatorOptions(StrictModel):
    """The adversarial term of the loss, and who is behind it."""

    weight: float = Field(0.1, gt=0)
    """Of the adversarial term, beside the adaptive weight that makes it as strong as the reconstruction."""
    max_adaptive: float = Field(1e4, gt=0)
    """What the adaptive weight is clamped to."""
    start_step: int | None = Field(None, ge=0)
    """When it comes in; null is when the reconstruction is flat."""
    flat_db: float = Field(0.02, ge=0)
    """Flat: a validation has gained less PSNR than this over the best one before."""
    lr: float = Field(1e-4, gt=0)
    lecam: float = Field(0.005, ge=0)
    """Weight of the LeCAM regularisation; 0 leaves it out."""
    lecam_decay: float = Field(0.99, ge=0, lt=1)
    width: int = Field(32, ge=1)
    num_layers: int = Field(3, ge=1)


class Adversary(nn.Module):
    """A discriminator and its part of the losses.

    Args:
        seed: its first weights follow from it; other draws are not disturbed.
    """

    averages: Tensor
    """Moving averages of the logits' means: real, fake; not numbers before the first."""
    best_psnr: Tensor
    is_on: Tensor

    def __init__(self, options: DiscriminatorOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Rng(seed).seed_of("discriminator"))
            self.network = PatchDiscriminator(width=options.width, num_layers=options.num_layers)
        self.register_buffer("averages", torch.full((2,), math.nan))
        self.register_buffer("best_psnr", torch.tensor(-math.inf))
        self.register_buffer("is_on", torch.tensor(False))

    def groups(self) -> list[dict[str, Any]]:
        """Return its optimizer groups."""
        rates = {"lr": self.options.lr, "betas": (0.5, 0.9), "weight_decay": 0.0}
        return [{"params": list(self.network.parameters()), **rates}]

    def begin_step(self, step: int) -> None:
        if self.options.start_step is not None and step >= self.options.start_step:
            self.is_on.fill_(True)

    def validated(self, psnr: float) -> None:
        """Take note of a validation, and come in where it shows that the reconstruction is flat."""
        if self.options.start_step is None and psnr < float(self.best_psnr) + self.options.flat_db:
            self.is_on.fill_(True)
        self.best_psnr.fill_(max(psnr, float(self.best_psnr)))

    def term(self, video: Tensor, reconstruction: Tensor, last_weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what to add to the generator's loss, and terms for the log.

        Args:
            video: decoded, [b 3 t h w], with gradients.
            reconstruction: its loss so far.
            last_weight: of the decoder's last layer.
        """
        # By detached weights: this pass must leave the discriminator no gradients.
        frozen = {name: value.detach() for name, value in self.network.named_parameters()}
        loss = generator_hinge(functional_call(self.network, frozen, (video,)))
        ratio = adaptive_weight(reconstruction, loss, last_weight, most=self.options.max_adaptive)
        return self.options.weight * ratio * loss, {"generator": loss.detach(), "adaptive_weight": ratio}

    def judge(self, real: Tensor, fake: Tensor, *, share: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the discriminator's own loss on videos [b 3 t h w], times `share`, and its terms for the log.

        Nothing is learned from a share of 0, but every process of several takes the same steps.
        """
        logits_real, logits_fake = self.network(real), self.network(fake)
        loss = hinge(logits_real, logits_fake)
        terms = {"discriminator": loss.detach()}
        if self.options.lecam:
            if share:
                self._average(logits_real, logits_fake)
            averages = self.averages.nan_to_num(0.0)  # a copy: the buffer may change before the backward pass
            spread = lecam(logits_real, logits_fake, averages[0], averages[1])
            loss, terms = loss + self.options.lecam * spread, {**terms, "lecam": spread.detach()}
        return share * loss, terms

    @torch.no_grad()
    def _average(self, real: Tensor, fake: Tensor) -> None:
        means = torch.stack([real.float().mean(), fake.float().mean()])
        decay = self.options.lecam_decay
        self.averages.copy_(torch.where(self.averages.isnan(), means, decay * self.averages + (1 - decay) * means))
