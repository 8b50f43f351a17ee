"""Training a small image autoencoder (diffusers' `AutoencoderKL`) from nothing, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from pydantic import Field
from torch import Tensor

from latentvid.autoencoders.losses import ReconstructionLoss, ReconstructionWeights
from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.training.sources import ClipSource
from latentvid.training.task import Task


class AutoencoderOptions(StrictModel):
    """Batches and losses of the image autoencoder."""

    batch: int = Field(32, ge=1)
    crop: int = Field(64, ge=16)
    """Training crops, in pixels; the network is convolutional and serves any size."""
    kl_weight: float = Field(1e-6, ge=0)
    loss: ReconstructionWeights = ReconstructionWeights()
    validation_clips: int = Field(64, ge=1)
    """The last clips of the source, never trained on."""


class AutoencoderTask(Task):
    """Reconstruct random crops of stills; export sets the scaling factor that gives latents unit variance."""

    def __init__(self, vae: AutoencoderKL, source: ClipSource, options: AutoencoderOptions, *, seed: int) -> None:
        super().__init__()
        self.vae = vae
        self.source = source
        self.options = options
        self.rng = Rng(seed)
        self.loss = ReconstructionLoss(options.loss)
        self._num_train = len(source) - options.validation_clips
        if self._num_train < 1:
            raise UsageError(
                f"{len(source)} clips with {options.validation_clips} held out leave none to train on;"
                " raise num_clips or lower validation_clips."
            )

    def batch(self, index: int) -> Tensor:
        """Return crops, float32 [b 3 h w] in [-1, 1]."""
        rng, size = self.rng.child(f"batch/{index}"), self.options.crop
        picks = rng.child("clips").integers(0, self._num_train, self.options.batch)[0]
        crops = []
        for k, pick in enumerate(picks.tolist()):
            video = self.source.clip(pick)[0]  # [t 3 h w]
            own = rng.child(f"crop/{k}")
            t, _, h, w = video.shape
            if size > min(h, w):
                raise UsageError(f"crops of {size} pixels do not fit into clips of {w}x{h}.")
            frame, y, x, flip = (
                int(own.child(name).integers(0, top, 1))
                for name, top in (("t", t), ("y", h - size + 1), ("x", w - size + 1), ("flip", 2))
            )
            crop = video[frame, :, y : y + size, x : x + size]
            crops.append(crop.flip(-1) if flip else crop)
        return torch.stack(crops).float().div(127.5).sub(1)

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        posterior = self.vae.encode(batch).latent_dist
        noise = torch.randn_like(posterior.mean)
        output = self.vae.decode(posterior.mean + posterior.std * noise).sample
        loss, terms = self.loss(output[:, None], batch[:, None])  # clips of one frame
        kl = posterior.kl().float().mean()
        return loss + self.options.kl_weight * kl, {**terms, "kl": kl.detach()}

    def _held_out(self) -> Tensor:
        frames = [self.source.clip(k)[0][0] for k in range(self._num_train, len(self.source))]
        return torch.stack(frames).float().div(127.5).sub(1)

    def validate(self) -> dict[str, float]:
        images = self._held_out().to(self.vae.device)
        error, spread = [], []
        for part in images.split(16):
            mean = self.vae.encode(part).latent_dist.mean
            output = self.vae.decode(mean).sample.clamp(-1, 1)
            error.append((output - part).square().mean(dim=(1, 2, 3)) / 4)  # on [0, 1]
            spread.append(mean)
        psnr = -10 * torch.log10(torch.cat(error))
        return {
            "psnr": float(psnr.mean()),
            "psnr_worst": float(psnr.min()),
            "latent_std": float(torch.cat(spread).std()),
        }

    def export(self, folder: Path) -> None:
        images = self._held_out().to(self.vae.device)
        means: Any = torch.cat([self.vae.encode(part).latent_dist.mean for part in images.split(16)])
        self.vae.register_to_config(scaling_factor=1.0 / float(means.std()), shift_factor=float(means.mean()))
        self.vae.save_pretrained(folder)
