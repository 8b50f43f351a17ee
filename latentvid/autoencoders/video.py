"""Video autoencoders of others as ours: N frames in are N frames out, whatever their networks make of it.

What they have in common is here: sizes, scaling, padding in time and space; `pretrained/` holds a file for each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from latentvid.autoencoders.base import BaseAutoencoder, Factor, numbers
from latentvid.autoencoders.budget import Cost
from latentvid.autoencoders.image import settings_of
from latentvid.autoencoders.protocol import Coder
from latentvid.autoencoders.tiling import Plan, plan_passes
from latentvid.autoencoders.video_coding import VideoDecoder, VideoEncoder
from latentvid.autoencoders.video_costs import blank_frames, blank_latents, pass_cost, tile_cost, without_values
from latentvid.core.errors import CheckpointError
from latentvid.core.registry import Registry
from latentvid.core.time import TimeGrid
from latentvid.temporal.context import StreamState

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


TILE_OVERLAP = 128
"""Pixels that neighbouring tiles share at least, where pictures must be cut into tiles."""


class VideoAutoencoder(BaseAutoencoder):
    """A diffusers video autoencoder behind our seam.

    A film's first latent is one frame and every further one is `grid.step` frames. Films are padded at the end
    with copies of their last frame to a length that the network knows (`num_latents` says which), and what is decoded
    is cut to `grid.frames(latents)` frames; whoever knows how many frames the film had cuts to those.

    Args:
        network: shared, not copied.
    """

    kind: ClassVar[str]
    """The class in diffusers."""
    group: ClassVar[int] = 1
    """Latents after the first come in multiples of this."""
    looks_ahead: ClassVar[bool] = False
    """Layers hold frames back until later ones have come."""
    encodes: ClassVar[type[Coder]]
    """Encodes a film, or a tile of one, in the network: frames [1 3 t h w] -> moments [1 2c t h w]."""
    decodes: ClassVar[type[Coder]]
    """Decodes one: raw latents [1 c t h w] -> frames [1 3 t h w] and padding."""
    decodes_tiles: ClassVar[type[Coder] | None] = None
    """Decodes tiles, where that is another: what a tile holds between passes is held for all of them."""
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
        self.spatial_factor, step, self.latent_channels = self._geometry(self.network.config)
        self.grid = TimeGrid(1, step)
        self.tile_overlap = -(-TILE_OVERLAP // self.spatial_factor)
        self.pass_frames = step * self.group

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
        latents = self.grid.latents(num_frames)
        return latents + -(latents - 1) % self.group

    def film_encoder(self, state: Mapping[str, Tensor] | None = None) -> VideoEncoder:
        return VideoEncoder(self, state)

    def film_decoder(
        self, state: Mapping[str, Tensor] | None = None, *, size: tuple[int, int] | None = None
    ) -> VideoDecoder:
        return VideoDecoder(self, state, size)

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
        moments = torch.cat(list(blank.encodes(blank, StreamState(), lambda *_: self.pass_frames).run([video])), dim=2)
        latents = torch.cat(list(blank_latents(blank, frames)), dim=2)
        sizes = (1, 2 * self.latent_channels, *latents.shape[3:])
        again = torch.cat(list(blank.decodes(blank, StreamState(), lambda *_: self.pass_frames).run([latents])), dim=2)
        if (*moments.shape[:2], *moments.shape[3:]) != sizes or again.shape[3:] != video.shape[3:]:
            raise CheckpointError(f"it turns {list(video.shape)} into {list(moments.shape)} and {list(again.shape)}.")

    @abstractmethod
    def _geometry(self, config: Any) -> tuple[int, int, int]:
        """Return pixels per side of a latent, frames per latent, and channels.

        Raises:
            CheckpointError: the config is of a kind that is not run here.
        """

    def sharing(self, network: nn.Module) -> nn.Module | None:
        """Return the network if its norms are shared by tiles."""
        return network if self.shares_norms else None

    def _plan(self, cost: Cost, tile_cost: Callable[[], Cost], height: int, width: int) -> Plan:
        factor = self.spatial_factor
        size = (-(-height // factor), -(-width // factor))
        plan = plan_passes(cost, size, factor, self.max_memory, overlap=self.tile_overlap, tile_cost=tile_cost)
        # What waits between passes of tiles is counted for passes that are as short as they can be.
        return replace(plan, frames=self.pass_frames * (plan.frames if plan.num_tiles == 1 else 1))

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return shift and scale, [c 1 1 1] or [1 1 1 1]."""
        shift, scale = (
            torch.tensor(numbers(factor), device=device).view(-1, 1, 1, 1)
            for factor in (self.shift_factor, self.scaling_factor)
        )
        return shift, scale

    @cached_property
    def _encode_cost(self) -> Cost:
        return pass_cost(self, self.encodes, blank_frames)

    @cached_property
    def _decode_cost(self) -> Cost:
        return pass_cost(self, self.decodes, blank_latents)

    @cached_property
    def _encode_tile_cost(self) -> Cost:
        return tile_cost(self, self.encodes, blank_frames, self.sharing(self.encoder))

    @cached_property
    def _decode_tile_cost(self) -> Cost:
        return tile_cost(self, self.decodes_tiles or self.decodes, blank_latents, self.sharing(self.decoder))


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
