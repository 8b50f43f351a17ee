"""Video autoencoders of others as ours: N frames in are N frames out, whatever their networks make of it.

What they have in common is here: sizes, scaling, padding in time and space; `pretrained/` holds a file for each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from latentvid.autoencoders import budget
from latentvid.autoencoders.base import BaseAutoencoder, Factor, numbers
from latentvid.autoencoders.image import settings_of
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
WORKSPACE = 1.6
"""What a pass takes in all, over the tensors that it holds: kernels copy them into other layouts."""
_PROBE_SIDE = 8
"""Latents per side of the films that costs are measured with."""


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
    pass_frames: int
    """Frames of one pass, or the least that there may be."""
    network: Any

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.spatial_factor, self.temporal_factor, self.latent_channels = self._geometry(self.network.config)
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

    def num_latents(self, num_frames: int) -> int:
        """Return how many latents that many frames become, padding included.

        At four frames per latent in groups of two, 10 frames are padded to 17 and become 5 latents.
        """
        return 1 + -(-(num_frames - 1) // (self.temporal_factor * self.group)) * self.group

    @torch.no_grad()
    def encode_posterior(self, frames: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Turn chunks [t 3 h w] into means and log variances [c t h w]; how many come out when is the network's."""
        if self.max_memory is not None:
            frames = self._within_memory(frames, self.frames_per_encode, 1)
        for moments in self._encode((self._pixels(chunk) for chunk in frames), self.frames_per_encode):
            found = DiagonalGaussianDistribution(moments.float())
            shift, scale = self._factors(moments.device)
            yield ((found.mean - shift) * scale)[0].cpu(), (found.logvar + 2 * scale.abs().log())[0].cpu()

    @torch.no_grad()
    def decode(self, latents: Iterable[Tensor], *, size: tuple[int, int] | None = None) -> Iterator[Tensor]:
        if self.max_memory is not None:
            latents = self._within_memory(latents, self.frames_per_decode, self.spatial_factor)
        count = _Counter(latents)
        done = 0
        for video in self._decode((self._raw(chunk) for chunk in count), self.frames_per_decode):
            frames = video[0].transpose(0, 1)[: self.num_frames(count.seen) - done]
            done += len(frames)
            if len(frames):
                frames = frames.float().clamp(-1, 1)
                yield frames if size is None else frames[..., : size[0], : size[1]]

    def frames_per_encode(self, height: int, width: int) -> int:
        """Return how many frames the network may take at once: what the architecture takes, or a multiple of it."""
        return self.pass_frames * self._encode_cost.frames_per_pass(height * width, self.max_memory)

    def frames_per_decode(self, height: int, width: int) -> int:
        return self.pass_frames * self._decode_cost.frames_per_pass(height * width, self.max_memory)

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

    def _within_memory(self, chunks: Iterable[Tensor], per_pass: PerPass, factor: int) -> Iterator[Tensor]:
        """Hand on chunks whose passes fit into the memory; the others are a ResourceError."""
        for chunk in chunks:
            per_pass(*(side * factor for side in chunk.shape[-2:]))
            yield chunk

    def _pixels(self, chunk: Tensor) -> Tensor:
        padded, _ = pad_to_multiple(chunk, self.spatial_factor)
        return padded.transpose(0, 1)[None].to(self.device, self.dtype)

    def _raw(self, chunk: Tensor) -> Tensor:
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
    def _encode_cost(self) -> budget.Cost:
        side = _PROBE_SIDE * self.spatial_factor

        def film(shadow: VideoAutoencoder, frames: int, per_pass: PerPass) -> Iterator[Tensor]:
            return shadow._encode(iter([shadow._empty(3, frames, side, side)]), per_pass)

        return self._cost(film)

    @cached_property
    def _decode_cost(self) -> budget.Cost:
        def film(shadow: VideoAutoencoder, frames: int, per_pass: PerPass) -> Iterator[Tensor]:
            dims = (shadow.latent_channels, shadow.num_latents(frames), _PROBE_SIDE, _PROBE_SIDE)
            return shadow._decode(iter([shadow._empty(*dims)]), per_pass)

        return self._cost(film)

    def _cost(self, film: Callable[[VideoAutoencoder, int, PerPass], Iterator[Tensor]]) -> budget.Cost:
        """Return what a pass of `pass_frames` takes, and what is held between passes.

        Both from films that go through a network without memory for its values: nothing is computed.

        Args:
            film: sends so many frames, in passes of so many, through an autoencoder like this one.
        """
        with torch.device("meta"):
            network = type(self.network).from_config(settings_of(type(self.network), self.network.config))
        # ModelMixin.to warns of casts that do not matter here, and some parameters are made on the CPU all the same.
        shadow = type(self)(nn.Module.to(network, "meta", self.dtype).eval())
        # Longer than anything that layers hold back.
        num_convs = sum(isinstance(m, nn.Conv3d) and m.kernel_size[0] > 1 for m in self.decoder.modules())
        passes = 4 + (num_convs if self.looks_ahead else 0)

        def peak(passes_at_once: int) -> int:
            step = passes_at_once * self.pass_frames
            shown = film(shadow, 1 + passes * self.pass_frames, lambda *_: step)
            return budget.peak_live_bytes(lambda: deque(shown, maxlen=0))

        one, two = peak(1), peak(2)
        pixels = (_PROBE_SIDE * self.spatial_factor) ** 2
        # Architectures whose passes are of one length only show no difference: all of it is the pass.
        each = two - one if two > one else one
        return budget.Cost(WORKSPACE * each / pixels, (one - each) / pixels)

    def _empty(self, *dims: int) -> Tensor:
        return torch.empty(1, *dims, device=self.device, dtype=self.dtype)


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
