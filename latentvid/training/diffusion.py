"""Training a latent video diffusion model on images and videos together, under a correlated noise prior.

Noise of all training clips is drawn from the model's prior (PYoCo, arXiv 2305.10474, section 2.4 of its method:
only the covariance over frames changes, the loss stays plain MSE). Images are clips of one frame, for which
every prior is standard normal and which pass the temporal layers untouched. A share of the clips shows its
first frames (almost) clean, with a noise level per frame, so that the model learns to continue a clip as well
as to make one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError
from latentvid.core.rng import Rng
from latentvid.core.shapes import LatentShape
from latentvid.data.mixture import Latents, Mixture
from latentvid.denoisers.temporal_unet import TemporalUNet
from latentvid.denoisers.text import text_length, tokenize, warn_of_long_captions
from latentvid.noise.prior import NoisePrior
from latentvid.pipeline import LatentVideoPipeline
from latentvid.sampling.prediction import noisy, target
from latentvid.sampling.schedule import SchedulerSchedule
from latentvid.temporal.inject import is_temporal
from latentvid.training.loop import is_main_process
from latentvid.training.task import Task

VALIDATED_LEVELS = (0.25, 0.5, 0.75, 0.95)


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
    behind_share: float = Field(0.0, ge=0, le=1)
    """Share of those whose last frames are shown too, to learn what lies between: re-rolled windows, end frames."""
    context_sigma: float = Field(0.15, ge=0, lt=1)
    """Half of the shown frames are noised up to this level: a model that has only seen perfect pasts drifts."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of captions replaced by "", for classifier-free guidance."""
    logit_mean: float = 0.0
    """Of the logit-normal law of training times: larger trains noisier levels more."""
    whitening: float = Field(0.0, ge=0, le=1)
    """Weigh errors by this power of the inverse of the prior's covariance over frames. 0 is the papers' plain error,
    most of which is then noise that all frames share; 1 is the Gaussian likelihood: what moves counts fully."""
    twins: bool = False
    """Draw clips 2k and 2k + 1 together, under equal noise, level and form of caption (see the world's `twins`): what
    only motion tells apart is a small part of the error, and everything else cancels between the two."""
    train: Literal["all", "temporal"] = "all"
    """Which layers of the U-Net learn. `temporal` keeps what it knows of single images."""
    gradient_checkpointing: bool = False
    """Recompute the U-Net's blocks in the backward pass: less memory, the same gradients, about a third more time."""
    train_text: bool = True
    """Train the text encoder too (a small one made for the model; leave a pretrained one alone)."""
    validation_clips: int = Field(48, ge=1)
    """The last clips of videos and of images, never trained on; of a mixture, those of each part by its weight."""


class DiffusionTask(Task):
    """Train a pipeline's U-Net (and its text encoder) in place; its autoencoder stays out of it."""

    pipeline: LatentVideoPipeline

    def __init__(
        self,
        pipeline: LatentVideoPipeline,
        videos: Latents | None,
        images: Latents | None,
        options: DiffusionOptions,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.unet = choose_layers(pipeline.unet, options)
        self.text_encoder = pipeline.text_encoder.requires_grad_(options.train_text)
        object.__setattr__(self, "pipeline", pipeline)  # not a submodule: the autoencoder is not trained or saved
        self.tokenizer = pipeline.tokenizer
        self.prior: NoisePrior = pipeline.noise_prior
        self.schedule = pipeline.schedule
        self.videos, self.images = _mixture(videos), _mixture(images)
        self.options = options
        self.rng = Rng(seed)
        self._check_data()
        if is_main_process():
            sets = [cache.captions for cache in (self.videos, self.images) if cache is not None]
            captions = (text for each in sets for texts in each for text in texts)
            warn_of_long_captions(self.tokenizer, self.text_encoder, captions)
        self._ids: dict[str, Tensor] = {}

    def _check_data(self) -> None:
        """Refuse caches that leave nothing to train on, or whose clips are too short, and timesteps of no table."""
        if isinstance(self.schedule, SchedulerSchedule) and self.schedule.is_continuous:
            raise UsageError("models with continuous timesteps (Stable Video Diffusion) cannot be trained here.")
        if self.videos is None and self.images is None:
            raise UsageError("nothing to train on: neither videos nor images are given.")
        held_out = self.options.validation_clips
        for name, cache, frames in (("videos", self.videos, self.options.num_frames), ("images", self.images, 1)):
            if cache is None:
                continue
            for part, share in zip(cache.parts, cache.shares(held_out), strict=True):
                if len(part) <= share:
                    raise UsageError(f"{name}: {len(part)} clips with {share} held out leave none to train on.")
                length = part.latents(0).shape[1]
                if length < frames:
                    raise UsageError(f"{name}: clips of {length} frames hold no window of {frames}.")
                if name == "videos" and self.options.twins and (len(part) % 2 or share % 2):
                    raise UsageError(f"{name}: {len(part)} clips with {share} held out part twins; take even numbers.")

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        groups = [{"params": [p for p in self.unet.parameters() if p.requires_grad], "lr": lr}]
        text = [p for p in self.text_encoder.parameters() if p.requires_grad]
        return [*groups, {"params": text, "lr": lr}] if text else groups

    def batch(self, index: int) -> dict[str, Tensor]:
        rng = self.rng.child(f"batch/{index}")
        is_video = self.images is None or (
            self.videos is not None and float(rng.child("kind").uniform(1)) < self.options.video_share
        )
        cache = self.videos if is_video else self.images
        assert cache is not None
        size = self.options.video_batch if is_video else self.options.image_batch
        twins = is_video and self.options.twins
        picks = cache.draw(rng.child("clips"), size // 2 if twins else size, held_out=self.options.validation_clips)
        if twins:
            picks = [pick // 2 * 2 + k for pick in picks for k in (0, 1)]
        context_share = self.options.context_share if is_video else 0.0
        return self._examples(cache, picks, rng, is_video=is_video, context_share=context_share, twins=twins)

    def _examples(
        self,
        cache: Mixture,
        picks: list[int],
        rng: Rng,
        *,
        is_video: bool,
        context_share: float = 0.0,
        twins: bool = False,
    ) -> dict[str, Tensor]:
        """Build a batch; with `twins`, everything that is drawn is drawn once for every two neighbours."""
        frames = self.options.num_frames if is_video else 1
        each = 2 if twins else 1
        clean, texts = [], []
        for k, pick in enumerate(picks):
            own = rng.child(f"clip/{k // each}")
            latents = cache.latents(pick)  # [c t h w]
            first = int(own.child("first").integers(0, latents.shape[1] - frames + 1, 1))
            clean.append(latents[:, first : first + frames])
            texts.append(self._caption(cache.captions[pick], own))
        stacked = torch.stack(clean)
        seeds = [rng.child(f"clip/{k // each}").seed_of("noise") for k in range(len(picks))]
        eps = self.prior.sample(LatentShape(*stacked.shape), rng=Rng(seeds))
        timestep, is_context = (
            drawn.repeat_interleave(each, dim=0)
            for drawn in self._timesteps(rng, len(picks) // each, frames, context_share)
        )
        ids = torch.cat([self._tokens(text) for text in texts])
        return {"clean": stacked, "eps": eps, "timestep": timestep, "is_context": is_context, "ids": ids}

    def _caption(self, captions: list[str], rng: Rng) -> str:
        if not captions or float(rng.child("drop").uniform(1)) < self.options.caption_dropout:
            return ""
        return captions[int(rng.child("caption").integers(0, len(captions), 1))]

    def _tokens(self, text: str) -> Tensor:
        if text not in self._ids:
            self._ids[text] = tokenize(self.tokenizer, [text], text_length(self.tokenizer, self.text_encoder))
        return self._ids[text]

    def _timesteps(self, rng: Rng, batch: int, frames: int, context_share: float) -> tuple[Tensor, Tensor]:
        """Return network timesteps [b t] and which frames are context [b t].

        There is one level per clip; context frames are at a lower one of their own, in half of the clips clean.
        """
        schedule, options = self.schedule, self.options
        times = torch.sigmoid(rng.child("time").normal(batch)[0].double() + options.logit_mean)
        if schedule.kind == "flow":
            times = schedule.shift * times / (1 + (schedule.shift - 1) * times)
        steps = times * schedule.num_train_timesteps
        sigma = rng.child("context level").uniform(batch)[0] * options.context_sigma
        sigma = sigma * (rng.child("perfect").uniform(batch)[0] >= 0.5)
        levels = torch.minimum(schedule.timestep_of(sigma), steps)
        if schedule.kind == "vp":  # whole steps, as in sampling
            steps, levels = steps.floor(), levels.floor()
        places, most = torch.arange(frames)[None], min(options.max_context, max(1, frames - 1))
        count = rng.child("context").integers(1, most + 1, batch)[0][:, None]
        behind = rng.child("context behind").integers(1, most + 1, batch)[0][:, None].clamp(max=frames - 1 - count)
        shown = rng.child("shown").uniform(batch)[0][:, None] < context_share
        shown_behind = rng.child("shown behind").uniform(batch)[0][:, None] < options.behind_share
        is_context = ((places < count) | (shown_behind & (places >= frames - behind))) & shown
        return torch.where(is_context, levels[:, None], steps[:, None]).float(), is_context

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        asked = ~batch["is_context"]  # context frames are given, not asked for
        # Of the inverse covariance, the part of the asked frames is their precision given the others.
        error = self._error(batch) * asked[:, None, :, None, None]
        weighted = torch.einsum("ts,bcshw->bcthw", self._weights(error.shape[2]).to(error.device), error)
        loss = (error * weighted).mean(dim=(1, 3, 4)).sum() / asked.sum()
        kind = "video" if batch["clean"].shape[2] > 1 else "image"
        return loss, {f"loss_{kind}": loss.detach()}

    @functools.lru_cache(maxsize=2)  # noqa: B019 - windows and single frames, as long as the task lives
    def _weights(self, num_frames: int) -> Tensor:
        """Return the covariance of the frames' noise to the power of -whitening, with a mean diagonal of 1, [t t]."""
        values, modes = torch.linalg.eigh(self.prior.covariance(num_frames))
        powers = values.clamp_min(1e-6) ** -self.options.whitening
        return ((modes * powers) @ modes.T / powers.mean()).float()

    def _error(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the prediction's error, float32 [b c t h w]."""
        clean, eps = batch["clean"].float(), batch["eps"].float()
        level = self.schedule.level(batch["timestep"])
        text = self.text_encoder(batch["ids"]).last_hidden_state
        output = self.unet(noisy(clean, eps, level), batch["timestep"], text).float()
        wanted = target(clean, eps, level, self.schedule.prediction_type)
        return output - wanted

    def validate(self) -> dict[str, float]:
        """Return the error on held-out clips at fixed levels, as shares of the training time, and their mean."""
        figures: dict[str, float] = {}
        for name, cache, most in (
            ("video", self.videos, self.options.video_batch),
            ("image", self.images, self.options.image_batch),
        ):
            if cache is not None and (name == "image" or self.options.video_share):
                figures |= self._validate(name, cache, min(most, self.options.validation_clips))
        return figures

    def _validate(self, name: str, cache: Mixture, num_clips: int) -> dict[str, float]:
        picks = cache.held_out(self.options.validation_clips)[:num_clips]
        rng = Rng(0).child(f"validation/{name}")
        batch = self._examples(cache, picks, rng, is_video=name == "video")
        batch = {key: value.to(self.unet.device) for key, value in batch.items()}
        errors = {}
        for share in VALIDATED_LEVELS:
            timestep = torch.full_like(batch["timestep"], int(share * self.schedule.num_train_timesteps))
            errors[f"{name}_{share}"] = float(self._error({**batch, "timestep": timestep}).square().mean())
        return {**errors, f"{name}_mean": sum(errors.values()) / len(errors)}

    def export(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)


def choose_layers(unet: TemporalUNet, options: DiffusionOptions) -> TemporalUNet:
    """Let those of its layers learn that the options ask for, and return it."""
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(options.train == "all" or is_temporal(name))
    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _mixture(clips: Latents | None) -> Mixture | None:
    return Mixture([clips]) if clips is not None and not isinstance(clips, Mixture) else clips
