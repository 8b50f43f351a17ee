"""Finetuning the temporal decoder of an autoencoder on footage, its encoder frozen, so that latents stay valid.

The recipe of "Align your Latents" (arXiv 2304.08818). By default only the temporal layers learn: single frames are
then decoded exactly as before. With the spatial decoder opened as well, stills are mixed in, a discriminator of videos
may judge, and the figures on stills (`image_psnr`) stand guard: the video decoder of that paper lost there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from latentvid.autoencoders.image import ImageAutoencoder
from latentvid.autoencoders.losses import Perceptual, ReconstructionLoss, ReconstructionWeights
from latentvid.autoencoders.temporal import TemporalAutoencoder
from latentvid.core.config import StrictModel
from latentvid.core.errors import UsageError
from latentvid.core.files import write_json
from latentvid.core.rng import Rng
from latentvid.temporal.context import StreamState
from latentvid.temporal.inject import temporal_parameters
from latentvid.training.adversary import Adversary, DiscriminatorOptions
from latentvid.training.checkpointing import checkpoint_spatial_blocks
from latentvid.training.latent_cache import LatentCache, as_network_input
from latentvid.training.task import Player, Task

GUARD_DB = 0.1
"""What single frames may lose."""


class DecoderOptions(StrictModel):
    """Batches and losses of decoder finetuning."""

    batch: int = Field(2, ge=1)
    num_frames: int = Field(8, ge=2)
    """Frames per example, cut at random from the clips."""
    chunk_frames: int | None = Field(None, ge=1)
    """Decode examples in chunks of so many frames, one after another: the past is carried, gradients are not. Null
    decodes them whole."""
    border: int = Field(0, ge=0)
    """Pixels at the edges of examples that do not count: networks see padding there, which whole pictures lack, and
    would learn to mend it."""
    train_spatial: bool = False
    """Train the image decoder's own weights too. Needs more data, and can cost single frames their quality."""
    spatial_rate: float = Field(0.1, gt=0)
    """Their learning rate, as a share of the temporal layers'."""
    still_share: float = Field(0.2, ge=0, lt=1)
    """Share of batches of stills while the spatial weights train; stills teach temporal layers nothing."""
    loss: ReconstructionWeights = ReconstructionWeights(l1=1.0, mse=2.0, temporal=0.5)
    discriminator: DiscriminatorOptions | None = None
    """Of videos; stills are not judged. Only where the spatial weights train."""
    gradient_checkpointing: bool = False
    """Compute spatial blocks again in the backward pass: less memory, the same gradients, about a third more time."""
    validation_clips: int = Field(6, ge=1)
    """The last clips of the source, never trained on."""

    @model_validator(mode="after")
    def _judges_what_trains(self) -> DecoderOptions:
        if self.discriminator is not None and not self.train_spatial:
            raise ValueError("a discriminator needs train_spatial: its weight is measured at the last layer")
        return self


class DecoderTask(Task):
    """Reconstruct clips from cached latents.

    Args:
        autoencoder: trained in place; its encoder and, by default, its spatial decoder are frozen.
        clips: latents and pixels of clips of at least `options.num_frames` frames, made by this encoder.
        held_out: the same, to validate on; by default the last of `clips`, which are then not trained on.
        perceptual: network of the LPIPS term, where that has a weight.
        image: what the guard compares with, where the spatial weights of `autoencoder` are not the first ones any more.

    Raises:
        UsageError: nothing is left to train on, or a cache was built without pixels.
    """

    autoencoder: TemporalAutoencoder
    image: ImageAutoencoder

    def __init__(
        self,
        autoencoder: TemporalAutoencoder,
        clips: LatentCache,
        options: DecoderOptions,
        *,
        seed: int,
        held_out: LatentCache | None = None,
        perceptual: Perceptual | None = None,
        image: ImageAutoencoder | None = None,
    ) -> None:
        super().__init__()
        count = options.validation_clips
        self._num_train = len(clips) if held_out is not None else len(clips) - count
        if self._num_train < 1:
            raise UsageError(f"{len(clips)} clips with {count} held out leave none to train on.")
        if not all(_has_pixels(cache) for cache in (clips, held_out) if cache is not None):
            raise UsageError(f"{clips.folder} holds latents without pixels; a decoder needs both.")
        self.autoencoder = autoencoder.requires_grad_(True)
        if options.train_spatial:
            autoencoder.freeze_encoder()
        else:
            autoencoder.freeze_image()
        self.clips, self.held_out, self.options = clips, held_out, options
        self.rng = Rng(seed)
        self.loss = ReconstructionLoss(options.loss, perceptual=perceptual)
        if image is None:
            image = copy.deepcopy(autoencoder).requires_grad_(False) if options.train_spatial else autoencoder
        # Unregistered: what the spatial weights were is neither trained nor saved.
        object.__setattr__(self, "image", image)
        self.adversary = Adversary(options.discriminator, seed=seed) if options.discriminator else None
        self._decoded: list[dict[str, Tensor]] = []
        if options.gradient_checkpointing:
            checkpoint_spatial_blocks(autoencoder.decoder)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        temporal = temporal_parameters(self.autoencoder)
        spatial = [p for name, p in self.autoencoder.named_parameters() if p.requires_grad and name not in temporal]
        groups = [{"params": list(temporal.values()), "lr": lr}]
        return [*groups, {"params": spatial, "lr": lr * self.options.spatial_rate}] if spatial else groups

    def batch(self, index: int) -> dict[str, Tensor]:
        """Return video, uint8 [b t 3 h w], and its latents, float32 [b c t h w]; stills have t = 1."""
        rng = self.rng.child(f"batch/{index}")
        stills = self.options.train_spatial and float(rng.child("kind").uniform(1)) < self.options.still_share
        picks = rng.child("clips").integers(0, self._num_train, self.options.batch)[0]
        examples = [self._example(pick, rng.child(f"clip/{k}")) for k, pick in enumerate(picks.tolist())]
        video, latents = (torch.stack(parts) for parts in zip(*examples, strict=True))
        if stills:
            video, latents = video.flatten(0, 1)[:, None], _as_stills(latents)
        return {"video": video, "latents": latents}

    def _example(self, pick: int, rng: Rng) -> tuple[Tensor, Tensor]:
        frames = self.options.num_frames
        video, latents = self.clips.video(pick), self.clips.latents(pick)
        first = int(rng.child("first").integers(0, len(video) - frames + 1, 1))
        return video[first : first + frames], latents[:, first : first + frames]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if "fake" in batch:
            assert self.adversary is not None
            return self.adversary.judge(batch["real"], batch["fake"], share=float(batch["share"]))
        video = self._inside(as_network_input(batch["video"]))
        decoded = self._inside(self._decode(batch["latents"]))
        loss, terms = self.loss(decoded.transpose(1, 2), video.transpose(1, 2))
        if self.adversary is None or not self.adversary.is_on:
            return loss, terms
        moves = video.shape[2] > 1
        found = {"real": video, "fake": decoded.detach(), "share": torch.tensor(float(moves))}
        self._decoded.append(found)
        if not moves:
            return loss, terms
        added, more = self.adversary.term(decoded, loss, last_weight(self.autoencoder.decoder))
        return loss + added, {**terms, **more}

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode [b c t h w] to [b 3 t h w], in chunks where that is asked for."""
        if self.options.chunk_frames is None:
            return self.autoencoder.decode_chunk(latents)
        state, parts = StreamState(), []
        for chunk in latents.split(self.options.chunk_frames, dim=2):
            parts.append(self.autoencoder.decode_chunk(chunk, state))
            state = state.detach()
        return torch.cat(parts, dim=2)

    def begin_step(self, step: int) -> None:
        self._decoded = []
        if self.adversary is not None:
            self.adversary.begin_step(step)

    def players(self, lr: float) -> list[Player]:
        """Return the decoder and, after it, the discriminator of what it has decoded."""
        decoder = Player("decoder", self.parameter_groups(lr))
        if self.adversary is None:
            return [decoder]
        groups = self.adversary.groups()
        return [decoder, Player("discriminator", groups, self.discriminator_batches, averaged=False)]

    def discriminator_batches(self) -> list[dict[str, Tensor]]:
        """Return, and forget, what the last batches left for the discriminator to judge."""
        batches, self._decoded = self._decoded, []
        return batches

    def score(self, figures: Mapping[str, float]) -> float | None:
        """Return how small the loss on held-out clips is, where stills are as good as they were.

        What is trained for decides: PSNR alone would keep weights that blur, whatever the LPIPS term is worth.
        """
        return -figures["loss"] if figures["image_guard"] else None

    def validated(self, figures: Mapping[str, float]) -> None:
        if self.adversary is not None:
            self.adversary.validated(figures["psnr"])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the loss, PSNR (dB), flicker (mean absolute error of frame differences, in 8-bit levels) and, where it
        is trained for, LPIPS of held-out clips, the same of the frame-by-frame decoder, and their PSNR as stills."""
        device = self.autoencoder.device
        self.image.to(device)
        sums: dict[str, float] = {}
        cache = self.held_out or self.clips
        picks = range(0 if self.held_out is not None else self._num_train, len(cache))
        for pick in picks:
            video = as_network_input(cache.video(pick)[None].to(device))
            latents = cache.latents(pick)[None].to(device)
            figures = self._compared(self.autoencoder.decode_chunk(latents), video)
            before = self._compared(_frame_by_frame(self.image, latents), video)
            stills = self._compared(_frame_by_frame(self.autoencoder, latents), video)
            found = {**figures, **{f"{k}_frame_by_frame": v for k, v in before.items()}, "image_psnr": stills["psnr"]}
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        means = {name: value / len(picks) for name, value in sums.items()}
        means["image_guard"] = float(means["image_psnr"] >= means["psnr_frame_by_frame"] - GUARD_DB)
        return means

    def _inside(self, video: Tensor) -> Tensor:
        border = self.options.border
        return video[..., border : video.shape[-2] - border, border : video.shape[-1] - border]

    def _compared(self, decoded: Tensor, video: Tensor) -> dict[str, float]:
        decoded, video = self._inside(decoded), self._inside(video)
        loss, terms = self.loss(decoded.transpose(1, 2), video.transpose(1, 2))
        figures = {**_compared(decoded, video), "loss": float(loss)}
        return {**figures, "lpips": float(terms["lpips"])} if "lpips" in terms else figures

    def export(self, folder: Path) -> None:
        """Write the autoencoder, its delta where there is one, and `metrics.json`."""
        self.autoencoder.save_with_delta(folder)
        write_json(folder / "metrics.json", {"held_out": self.validate()})


def last_weight(decoder: nn.Module) -> Tensor:
    """Return the weights of the convolution that makes the pixels."""
    convolutions = [module for module in decoder.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1].weight


def _has_pixels(cache: LatentCache) -> bool:
    try:
        cache.video(0)
    except IndexError:
        return False
    return True


def _as_stills(latents: Tensor) -> Tensor:
    """[b c t h w] -> [b*t c 1 h w]."""
    return rearrange(latents, "b c t h w -> (b t) c 1 h w")


def _frame_by_frame(autoencoder: ImageAutoencoder, latents: Tensor) -> Tensor:
    frames = latents.shape[2]
    stills = torch.cat([autoencoder.decode_chunk(part) for part in _as_stills(latents).split(8)])
    return rearrange(stills, "(b t) c 1 h w -> b c t h w", t=frames)


def _compared(decoded: Tensor, video: Tensor) -> dict[str, float]:
    """Compare [1 3 t h w] in [-1, 1]: PSNR is the mean over frames."""
    error = (decoded.float().clamp(-1, 1) - video) / 2
    psnr = -10 * error.square().mean(dim=(0, 1, 3, 4)).clamp(min=1e-10).log10()
    return {"psnr": float(psnr.mean()), "flicker": 255 * float(error.diff(dim=2).abs().mean())}
