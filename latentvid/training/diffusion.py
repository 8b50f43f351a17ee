"""Training a latent video diffusion model on images and videos together, under a correlated noise prior.

Noise of all training clips is drawn from the model's prior (PYoCo, arXiv 2305.10474, section 2.4 of its method:
only the covariance over frames changes, the loss stays plain MSE). Images are clips of one frame, for which
every prior is standard normal and which pass the temporal layers untouched. A share of the clips shows its
first frames (almost) clean, with a noise level per frame, so that the model learns to continue a clip as well
as to make one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from latentvid.core.config import StrictModel
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.denoisers.text import tokenize
from latentvid.noise.prior import NoisePrior
from latentvid.pipeline import LatentVideoPipeline
from latentvid.sampling.prediction import noisy, target
from latentvid.training.latent_cache import LatentCache
from latentvid.training.task import Task


class DiffusionOptions(StrictModel):
    """What a batch is made of."""

    video_share: float = Field(0.7, ge=0, le=1)
    """Share of the batches that hold videos; the others hold images. 0 trains an image model."""
    num_frames: int = Field(16, ge=2)
    """Frames of a training window."""
    video_batch: int = Field(6, ge=1)
    image_batch: int = Field(64, ge=1)
    context_share: float = Field(0.5, ge=0, le=1)
    """Share of the videos whose first frames are shown (almost) clean, to learn continuation."""
    max_context: int = Field(8, ge=1)
    """The most frames shown clean."""
    context_sigma: float = Field(0.15, ge=0, lt=1)
    """Half of the shown frames are noised up to this level: a model that has only seen perfect pasts drifts."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by "", for classifier-free guidance."""
    logit_mean: float = 0.0
    """Of the logit-normal law of training times: larger trains noisier levels more."""
    train_text: bool = True
    """Train the text encoder too (a small one made for the model; leave a pretrained one alone)."""
    validation_clips: int = Field(48, ge=1)
    """The last clips of each cache, never trained on."""


class DiffusionTask(Task):
    """Train a pipeline's U-Net (and its text encoder) in place; its autoencoder stays out of it."""

    def __init__(
        self,
        pipeline: LatentVideoPipeline,
        videos: LatentCache | None,
        images: LatentCache | None,
        options: DiffusionOptions,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.unet = pipeline.unet.requires_grad_(True)
        self.text_encoder = pipeline.text_encoder.requires_grad_(options.train_text)
        object.__setattr__(self, "pipeline", pipeline)  # not a submodule: the autoencoder is not trained or saved
        self.tokenizer = pipeline.tokenizer
        self.prior: NoisePrior = pipeline.noise_prior
        self.schedule = pipeline.schedule
        self.videos, self.images = videos, images
        self.options = options
        self.rng = Rng(seed)
        self._ids: dict[str, Tensor] = {}
        self._adapt_layout()

    def _adapt_layout(self) -> None:
        """Lay convolution weights out as [o h w i], with which CPU and GPU convolutions are faster."""
        self.unet.to(memory_format=torch.channels_last)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        groups = [{"params": [p for p in self.unet.parameters() if p.requires_grad], "lr": lr}]
        text = [p for p in self.text_encoder.parameters() if p.requires_grad]
        return [*groups, {"params": text, "lr": lr}] if text else groups

    def batch(self, index: int) -> dict[str, Tensor]:
        rng = self.rng.child(f"batch/{index}")
        is_video = self.videos is not None and float(rng.child("kind").uniform(1)) < self.options.video_share
        if not is_video and self.images is None:
            is_video = True
        cache = self.videos if is_video else self.images
        assert cache is not None
        size = self.options.video_batch if is_video else self.options.image_batch
        picks = rng.child("clips").integers(0, len(cache) - self.options.validation_clips, size)[0]
        return self._examples(cache, picks.tolist(), rng, is_video=is_video, context_share=self.options.context_share)

    def _examples(
        self, cache: LatentCache, picks: list[int], rng: Rng, *, is_video: bool, context_share: float
    ) -> dict[str, Tensor]:
        frames = self.options.num_frames if is_video else 1
        clean, texts = [], []
        for k, pick in enumerate(picks):
            own = rng.child(f"clip/{k}")
            latents = cache.latents(pick)  # [c t h w]
            first = int(own.child("first").integers(0, latents.shape[1] - frames + 1, 1))
            clean.append(latents[:, first : first + frames])
            texts.append(self._caption(cache.captions[pick], own))
        stacked = torch.stack(clean)
        seeds = [rng.child(f"clip/{k}").seed_of("noise") for k in range(len(picks))]
        eps = self.prior.sample(LatentShape(*stacked.shape), rng=Rng(seeds))
        timestep = self._timesteps(rng, len(picks), frames, context_share if is_video else 0.0)
        ids = torch.cat([self._tokens(text) for text in texts])
        return {"clean": stacked, "eps": eps, "timestep": timestep, "ids": ids}

    def _caption(self, captions: list[str], rng: Rng) -> str:
        if not captions or float(rng.child("drop").uniform(1)) < self.options.caption_dropout:
            return ""
        return captions[int(rng.child("caption").integers(0, len(captions), 1))]

    def _tokens(self, text: str) -> Tensor:
        if text not in self._ids:
            self._ids[text] = tokenize(self.tokenizer, [text])
        return self._ids[text]

    def _timesteps(self, rng: Rng, batch: int, frames: int, context_share: float) -> Tensor:
        """Return network timesteps [b t]: one level per clip, the context frames (where shown) at their own."""
        schedule, options = self.schedule, self.options
        times = torch.sigmoid(rng.child("time").normal(batch)[0] + options.logit_mean)
        if schedule.kind == "flow":
            times = schedule.shift * times / (1 + (schedule.shift - 1) * times)
        steps = (times * schedule.num_train_timesteps)[:, None].expand(-1, frames).clone()
        shown = rng.child("shown").uniform(batch)[0] < context_share
        count = (
            rng.child("context").integers(1, min(options.max_context, frames - 1) + 1, batch)[0] if frames > 1 else 0
        )
        level = rng.child("context level").uniform(batch)[0] * options.context_sigma * schedule.num_train_timesteps
        level = level * (rng.child("perfect").uniform(batch)[0] < 0.5)
        is_context = (torch.arange(frames)[None] < torch.as_tensor(count).reshape(-1, 1)) & shown[:, None]
        return torch.where(is_context, level[:, None].expand(-1, frames), steps)

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        per_frame = self._errors(batch)
        # Clean and nearly clean context frames are given, not asked for.
        asked = batch["timestep"] >= batch["timestep"].amax(dim=1, keepdim=True)
        loss = (per_frame * asked).sum() / asked.sum()
        kind = "video" if batch["clean"].shape[2] > 1 else "image"
        return loss, {f"loss_{kind}": loss.detach()}

    def _errors(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared prediction error per frame, float32 [b t]."""
        clean, eps = batch["clean"].float(), batch["eps"].float()
        level = self.schedule.level(batch["timestep"])
        text = self.text_encoder(batch["ids"]).last_hidden_state
        output = self.unet(noisy(clean, eps, level), batch["timestep"], text).float()
        wanted = target(clean, eps, level, self.schedule.prediction_type)
        return F.mse_loss(output, wanted, reduction="none").mean(dim=(1, 3, 4))

    def validate(self) -> dict[str, float]:
        """Return the error on held-out clips at fixed levels, for videos and images, with averaged weights."""
        figures: dict[str, float] = {}
        for name, cache, size in (("video", self.videos, self.options.video_batch), ("image", self.images, 64)):
            if cache is None or (name == "video" and not self.options.video_share):
                continue
            first = len(cache) - self.options.validation_clips
            picks = [first + k % self.options.validation_clips for k in range(min(size, 64))]
            rng = Rng(0).child(f"validation/{name}")
            batch = self._examples(cache, picks, rng, is_video=name == "video", context_share=0.0)
            device = next(self.unet.parameters()).device
            for sigma in (0.25, 0.5, 0.75, 0.95):
                batch["timestep"] = torch.full_like(batch["timestep"], sigma * self.schedule.num_train_timesteps)
                errors = self._errors({k: v.to(device) for k, v in batch.items()})
                figures[f"{name}_{sigma}"] = float(errors.mean())
            figures[f"{name}_mean"] = sum(v for k, v in figures.items() if k.startswith(name)) / 4
        return figures

    def export(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)
