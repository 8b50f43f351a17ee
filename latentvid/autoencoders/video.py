"""Video autoencoders of others as ours: N frames in are N frames out, whatever their networks make of it.

What they have in common is here: sizes, scaling, padding in time and space; `pretrained/` holds a file for each.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from latentvid.autoencoders.base import BaseAutoencoder, Factor, numbers
from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.image import settings_of
from latentvid.autoencoders.tiling import Plan, plan_passes, stream_tiles
from latentvid.autoencoders.video_costs import blank_frames, blank_latents, pass_cost, tile_cost, without_values
from latentvid.core.errors import CheckpointError
from latentvid.core.registry import Registry
from latentvid.video.pixels import pad_to_multiple

VIDEO_NETWORKS = Registry(
    "video autoencoder",
    {
        "AutoencoderKLTemporalDecoder": "latentvid.autoencoders.pretrained.svd:SvdAutoencoder",
        "AutoencoderKLCogVideoX": "latentvid.autoencoders.pretrained.cogvideox:CogVideoXAutoencoder",
        "AutoencoderKLWan": "latentvid.autoencoders.pretrained.wan:WanAutoencoder",
        "AutoencoderKLLTXVideo": "latentvid.autoencoders.pretrained.ltx:LtxAutoencoder",
        "AutoencoderKLHunyuanVideo": "latentvid.autoencoders.pretrained.hunyuan:HunyuanAutoencoder",
    },
)
"""The classes that a checkpoint's config may name, and what runs them."""


PerPass = Callable[[int, int], int]
"""Height and width of frames, pixels -> how many of them one pass may take."""
TILE_OVERLAP = 128
"""Pixels that neighbouring tiles share at least, where pictures must be cut into tiles."""


class VideoAutoencoder(BaseAutoencoder):
    """A diffusers video autoencoder behind our seam.

    A film's first latent is one frame and every further one is `temporal_factor` frames. Films are padded at the end
    with copies of their last frame to a length that the network knows (`num_latents` says which), and what is decoded
    is cut to 1 + (latents - 1) * temporal_factor frames; whoever knows how many frames the film had cuts to those.

    Args:
        network: shared, not copied.
    """

    kind: ClassVar[str]
    """The class in diffusers."""
    group: ClassVar[int] = 1
    """Latents after the first come in multiples of this."""
    looks_ahead: ClassVar[bool] = False
    """Layers hold frames back until later ones have come."""
    shares_norms: ClassVar[bool] = True
    """Group norms of tiles use the statistics of all of them, at the cost of a second film for each."""
    pass_frames: int
    """Frames of one pass, or the least that there may be."""
    tile_overlap: int
    """Latents that neighbouring tiles share, where pictures must be cut into tiles."""
    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spatial_factor, self.temporal_factor, self.latent_channels = self._geometry(self.network.config)
        self.tile_overlap = -(-TILE_OVERLAP // self.spatial_factor)
        self.pass_frames = self.temporal_factor * self.group

    @property
    def weights(self) -> nn.Module:
        network: nn.Module = self.network
        return network

    @property
    def encoder(self) -> nn.Module:  # type: ignore[override]
        encoder: nn.Module = self.network.encoder
        return encoder

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        decoder: nn.Module = self.network.decoder
        return decoder

    @property
    def force_upcast(self) -> bool:
        return bool(self.network.config.get("force_upcast", False))

    @property
    def scaling_factor(self) -> Factor:
        return float(self.network.config.scaling_factor)

    @property
    def shift_factor(self) -> Factor:
        return float(self.network.config.get("shift_factor") or 0.0)

    @property
    def is_gaussian(self) -> bool:
        return True

    @property
    def num_temporal_convs(self) -> int:
        """Convolutions of the decoder that look at other frames."""
        return sum(isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1 for m in self.decoder.modules())

    def num_latents(self, num_frames: int) -> int:
        """Return how many latents that many frames become, padding included.

        At four frames per latent in groups of two, 10 frames are padded to 17 and become 5 latents.
        """
        return 1 + -(-(num_frames - 1) // (self.temporal_factor * self.group)) * self.group

    @torch.no_grad()
    def encode_posterior(self, frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Turn chunks [t 3 h w] into means and log variances [c t h w]; how many come out when is the network's."""
        for moments in self._encode_passes(self._pixels(chunk) for chunk in frames):
            found = DiagonalGaussianDistribution(moments.float())
            self.check_values(found.mean, "encoder")
            shift, scale = self._factors(moments.device)
            yield ((found.mean - shift) * scale)[0].cpu(), (found.logvar + 2 * scale.abs().log())[0].cpu()

    @torch.no_grad()
    def decode(self, latents: Iterable[Tensor], *, size: tuple[int, int] | None = None) -> Iterator[Tensor]:
        count = _Counter(latents)
        done = 0
        for video in self._decode_passes(self._raw(chunk) for chunk in count):
            frames = video[0].transpose(0, 1)[: self.num_frames(count.seen) - done]
            done += len(frames)
            if len(frames):
                frames = frames.float()
                self.check_values(frames, "decoder")
                frames = frames.clamp(-1, 1)
                yield frames if size is None else frames[..., : size[0], : size[1]]

    def frames_per_encode(self, height: int, width: int) -> int:
        """Return how many frames the network may take at once: what the architecture takes, or a multiple of it.

        Raises:
            ResourceError: not even passes over small tiles fit into `max_memory`.
        """
        return self.plan_encode(height, width).frames

    def frames_per_decode(self, height: int, width: int) -> int:
        return self.plan_decode(height, width).frames

    def tiles_per_frame(self, height: int, width: int) -> int:
        return 1 if self.max_memory is None else self.plan_decode(height, width).num_tiles

    def plan_encode(self, height: int, width: int) -> Plan:
        """Return into how many frames and tiles `encode` cuts films of this size.

        Raises:
            ResourceError: not even passes over small tiles fit into `max_memory`.
        """
        return self._plan(self._encode_cost, lambda: self._encode_tile_cost, height, width)

    def plan_decode(self, height: int, width: int) -> Plan:
        """Return the same for `decode`."""
        return self._plan(self._decode_cost, lambda: self._decode_tile_cost, height, width)

    @torch.no_grad()
    def check_runs(self) -> None:
        """Send a short film without values through the network without weights: not every config that makes one works.

        Raises:
            CheckpointError: latents or frames come out in another size than the config says.
        """
        blank, frames = without_values(self), 1 + self.pass_frames
        video = torch.cat(list(blank_frames(blank, frames)), dim=2)
        moments = torch.cat(list(blank._encode(iter([video]), lambda *_: self.pass_frames)), dim=2)
        latents = torch.cat(list(blank_latents(blank, frames)), dim=2)
        sizes = (1, 2 * self.latent_channels, *latents.shape[3:])
        again = torch.cat(list(blank._decode(iter([latents]), lambda *_: self.pass_frames)), dim=2)
        if (*moments.shape[:2], *moments.shape[3:]) != sizes or again.shape[3:] != video.shape[3:]:
            raise CheckpointError(f"it turns {list(video.shape)} into {list(moments.shape)} and {list(again.shape)}.")

    @abstractmethod
    def _geometry(self, config: Any) -> tuple[int, int, int]:
        """Return pixels per side of a latent, frames per latent, and channels.

        Raises:
            CheckpointError: the config is of a kind that is not run here.
        """

    @abstractmethod
    def _encode(self, frames: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        """Turn chunks [1 3 t h w] of a film, ready for the network, into its moments [1 2c t h w]."""

    @abstractmethod
    def _decode(self, latents: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        """Turn raw latents [1 c t h w] of a film, in chunks of any length, into its frames [1 3 t h w] and padding."""

    def _decode_tile(self, latents: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        """Like `_decode`, of a tile: what it holds between passes is held for all of them."""
        return self._decode(latents, per_pass)

    def _encode_passes(self, frames: Iterator[Tensor]) -> Iterator[Tensor]:
        frames, plan = self._planned(frames, self.plan_encode, 1)
        if plan is None:
            return self._encode(frames, self.frames_per_encode)
        run = partial(self._encode, per_pass=lambda *_: plan.frames)
        return stream_tiles(frames, plan, run, self._sharing(self.encoder), factor_in=self.spatial_factor, factor_out=1)

    def _decode_passes(self, latents: Iterator[Tensor]) -> Iterator[Tensor]:
        latents, plan = self._planned(latents, self.plan_decode, self.spatial_factor)
        if plan is None:
            return self._decode(latents, self.frames_per_decode)
        run = partial(self._decode_tile, per_pass=lambda *_: plan.frames)
        return stream_tiles(
            latents, plan, run, self._sharing(self.decoder), factor_in=1, factor_out=self.spatial_factor
        )

    def _sharing(self, network: nn.Module) -> nn.Module | None:
        return network if self.shares_norms else None

    def _planned(
        self, chunks: Iterator[Tensor], plan_of: Callable[[int, int], Plan], factor: int
    ) -> tuple[Iterator[Tensor], Plan | None]:
        """Return chunks and the tiles that they must be cut into, None where a whole picture fits.

        Args:
            factor: pixels per side of a chunk's entry.
        """
        first = None if self.max_memory is None else next(chunks, None)
        if first is None:
            return chunks, None
        plan = plan_of(*(side * factor for side in first.shape[-2:]))
        return itertools.chain([first], chunks), plan if plan.num_tiles > 1 else None

    def _plan(self, cost: Cost, tile_cost: Callable[[], Cost], height: int, width: int) -> Plan:
        factor = self.spatial_factor
        size = (-(-height // factor), -(-width // factor))
        plan = plan_passes(cost, size, factor, self.max_memory, overlap=self.tile_overlap, tile_cost=tile_cost)
        # What waits between passes of tiles is counted for passes that are as short as they can be.
        return replace(plan, frames=self.pass_frames * (plan.frames if plan.num_tiles == 1 else 1))

    def _pixels(self, chunk: Tensor) -> Tensor:
        padded, _ = pad_to_multiple(chunk, self.spatial_factor)
        return padded.transpose(0, 1)[None].to(self.device, self.dtype)

    def _raw(self, chunk: Tensor) -> Tensor:
        self.check_latents(chunk)
        shift, scale = self._factors(self.device)
        return (chunk[None].to(self.device).float() / scale + shift).to(self.dtype)

    def _cut(self, latents: Iterator[Tensor], per_pass: PerPass) -> Iterator[Tensor]:
        """Cut chunks [1 c t h w] that are too long for a pass."""
        for chunk in latents:
            frames = per_pass(*(side * self.spatial_factor for side in chunk.shape[-2:]))
            yield from chunk.split(max(1, frames // self.temporal_factor), dim=2)

    def _factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return shift and scale, [c 1 1 1] or [1 1 1 1]."""
        shift, scale = (
            torch.tensor(numbers(factor), device=device).view(-1, 1, 1, 1)
            for factor in (self.shift_factor, self.scaling_factor)
        )
        return shift, scale

    @cached_property
    def _encode_cost(self) -> Cost:
        return pass_cost(self, type(self)._encode, blank_frames)

    @cached_property
    def _decode_cost(self) -> Cost:
        return pass_cost(self, type(self)._decode, blank_latents)

    @cached_property
    def _encode_tile_cost(self) -> Cost:
        return tile_cost(self, type(self)._encode, blank_frames, self._sharing(self.encoder))

    @cached_property
    def _decode_tile_cost(self) -> Cost:
        return tile_cost(self, type(self)._decode_tile, blank_latents, self._sharing(self.decoder))


def build_video_autoencoder(config: Mapping[str, Any]) -> VideoAutoencoder:
    """Make the autoencoder that a config with `_class_name` describes, with random weights.

    Raises:
        CheckpointError: its network is of a kind that is not run here.
    """
    import diffusers

    kind = str(config["_class_name"])
    adapter: type[VideoAutoencoder] = VIDEO_NETWORKS.get(kind)
    network = getattr(diffusers, adapter.kind)
    return adapter(network.from_config(settings_of(network, config)).eval())


def refuse(what: str) -> CheckpointError:
    """Return the error for a network of a known class that is built in a way we do not run."""
    return CheckpointError(f"this video autoencoder {what}, which is not run here.")


class _Counter:
    """Hands chunks [c t h w] on and counts their frames."""

    def __init__(self, chunks: Iterable[Tensor]) -> None:
        self.seen = 0
        self._chunks = chunks

    def __iter__(self) -> Iterator[Tensor]:
        for chunk in self._chunks:
            self.seen += chunk.shape[1]
            yield chunk
