"""Image autoencoders as video autoencoders: any diffusers `AutoencoderKL` or `AutoencoderTiny`, frame by frame.

Latents are in model space everywhere: (raw - shift_factor) * scaling_factor. `AutoencoderTiny` learned to put out
latents of that kind itself, so its factors are 1 and 0.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from latentvid.autoencoders import budget
from latentvid.autoencoders.base import BaseAutoencoder, FilmDecoder, FilmEncoder, Posterior, hash_weights, plain
from latentvid.autoencoders.tiling import Plan, plan_passes, run_tiles
from latentvid.core.errors import CheckpointError, ResourceError
from latentvid.core.registry import Registry
from latentvid.core.rng import Rng
from latentvid.temporal.context import StreamState, counts_in
from latentvid.temporal.inject import is_temporal
from latentvid.video.pixels import pad_to_multiple

IMAGE_NETWORKS = Registry(
    "image autoencoder", {"AutoencoderKL": "diffusers:AutoencoderKL", "AutoencoderTiny": "diffusers:AutoencoderTiny"}
)
"""The classes that a checkpoint's config may name."""
CHILDREN = ("encoder", "decoder", "quant_conv", "post_quant_conv")


class ImageAutoencoder(BaseAutoencoder):
    """A diffusers image autoencoder behind the seam of video autoencoders.

    The image network's children are registered here under their own names, so that state dicts are those of the
    image network.

    Args:
        image: the network; shared, not copied.
    """

    image: Any
    """The diffusers network, which lends its methods."""
    config: Any
    """The config of a subclass that is saved by its own."""
    tile_overlap: int = 16
    """Latents that neighbouring tiles share, where pictures must be cut into tiles."""
    cpu_memory_format: torch.memory_format = torch.channels_last
    """What convolutions on a CPU are fastest in; other devices keep the frames as they come."""

    def __init__(self, image: nn.Module) -> None:
        super().__init__()
        kind = type(image).__name__
        if kind not in IMAGE_NETWORKS:
            raise CheckpointError(
                f"{kind} is no image autoencoder that video latents can be made with; known: "
                f"{', '.join(IMAGE_NETWORKS.kinds())}."
            )
        # Unregistered: it lends its methods, and its children are ours.
        object.__setattr__(self, "image", image)
        for child in CHILDREN:
            if isinstance(getattr(image, child, None), nn.Module):
                self.add_module(child, getattr(image, child))
        self.spatial_factor, self.latent_channels = _geometry(self.image.config)

    @property
    def image_config(self) -> dict[str, Any]:
        """The image network's config, with its class name, as plain data."""
        known = settings_of(type(self.image), self.image.config)
        return {"_class_name": type(self.image).__name__, **{k: plain(v) for k, v in known.items()}}

    @property
    def force_upcast(self) -> bool:
        return bool(self.image.config.get("force_upcast", False))

    @property
    def scaling_factor(self) -> float:
        return float(self.image.config.scaling_factor)

    @property
    def shift_factor(self) -> float:
        return float(self.image.config.get("shift_factor") or 0.0)

    @property
    def is_gaussian(self) -> bool:
        """Whether the encoder gives a distribution (mean and log variance) or one value."""
        return type(self.image).__name__ == "AutoencoderKL"

    def posterior(self, video: Tensor) -> Posterior:
        """Encode a batch of clips whose sides are multiples of `spatial_factor`.

        Args:
            video: [b 3 t h w] in [-1, 1].

        Returns:
            Mean and log variance in model space, float32 [b c t h w]; no variance where the encoder has none.
        """
        frames = video.shape[2]
        flat = self._in_memory_format(rearrange(video, "b c t h w -> (b t) c h w").to(self.device, self.dtype))
        if not self.is_gaussian:
            return self._to_model(self.image.encode(flat).latents, frames), None
        found = self.image.encode(flat).latent_dist
        logvar = found.logvar.float() + 2 * torch.tensor(self.scaling_factor).abs().log()
        return self._to_model(found.mean, frames), _batched(logvar, frames)

    def encode_clip(self, video: Tensor, *, rng: Rng | None = None, first_frame: int = 0) -> Tensor:
        """Encode [b 3 t h w] in [-1, 1] to latents, float32 [b c t h w].

        Args:
            rng: draws a sample of the posterior (a stream per clip; the noise of a frame depends on the seed and
                the frame's number only); without it, or without a variance, the mean.
            first_frame: number of the clip's first frame.
        """
        mean, logvar = self.posterior(video)
        if rng is None or logvar is None:
            return mean
        dims = (mean.shape[1], *mean.shape[3:])
        noise = [rng.child(f"posterior/{first_frame + k}").normal(*dims) for k in range(mean.shape[2])]
        return mean + (0.5 * logvar).exp() * torch.stack(noise, dim=2).to(mean.device)

    def decode_chunk(self, latents: Tensor, state: StreamState | None = None) -> Tensor:
        """Decode the next frames of a batch of films in one pass of the network, with gradients where they are on.

        Args:
            latents: [b c t h w] in model space.
            state: where the films stand; updated. A fresh one is their start, None makes the chunk a film of its own.

        Returns:
            [b 3 t h w] in about [-1, 1], not clipped.
        """
        frames = latents.shape[2]
        raw = latents.to(self.device) / self.scaling_factor + self.shift_factor
        flat = self._in_memory_format(rearrange(raw, "b c t h w -> (b t) c h w").to(self.dtype))
        return _batched(self._decode_frames(flat, frames, state), frames)

    def forward(self, video: Tensor) -> Tensor:
        """Encode [b 3 t h w] and decode it again, as films of their own."""
        return self.decode_chunk(self.encode_clip(video))

    def film_encoder(self, state: Mapping[str, Tensor] | None = None) -> ImageEncoder:
        state, size = _without_size(state)
        return ImageEncoder(self, StreamState.from_tensors(state), size)

    def film_decoder(
        self, state: Mapping[str, Tensor] | None = None, *, size: tuple[int, int] | None = None
    ) -> ImageDecoder:
        """Return a decoder at a film's start, or where `state` was saved.

        Latents that are too many for one pass are decoded in several, so that the working set stays below
        `max_memory`; where a single frame does not fit, it is decoded in tiles (`tiling.py`), which gives nearly and
        not quite the same.
        """
        state, latent_size = _without_size(state)
        return ImageDecoder(self, StreamState.from_tensors(state, device=self.device), size, latent_size)

    def frames_per_encode(self, height: int, width: int) -> int:
        """Return how many frames of this size `encode` sends through the network at once within `max_memory`.

        Raises:
            ResourceError: not even one fits.
        """
        return self.plan_encode(height, width).frames

    def frames_per_decode(self, height: int, width: int) -> int:
        """Return the same for `decode`."""
        return self.plan_decode(height, width).frames

    def tiles_per_frame(self, height: int, width: int) -> int:
        return self.plan_decode(height, width).num_tiles

    def plan_encode(self, height: int, width: int) -> Plan:
        """Return into how many frames and tiles `encode` cuts films of this size.

        Raises:
            ResourceError: not even one small tile fits into `max_memory`.
        """
        return self._plan(self._encode_cost, height, width)

    def plan_decode(self, height: int, width: int) -> Plan:
        """Return the same for `decode`."""
        return self._plan(self._decode_cost, height, width)

    def without_time(self) -> ImageAutoencoder:
        """Return what decodes every frame for itself: this one, or a copy without layers that see other frames."""
        return self

    def freeze_encoder(self) -> None:
        """Take the encoder out of training, so that latents stay what they are."""
        for child in (self.encoder, getattr(self, "quant_conv", None)):
            if child is not None:
                child.requires_grad_(False)

    def image_weights(self) -> str:
        """Return a hash of all weights but temporal ones, which a delta refers to."""
        return hash_weights({k: v for k, v in self.state_dict().items() if not is_temporal(k)})

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write the image network as a diffusers folder."""
        self.image.save_pretrained(folder, **options)

    def _in_memory_format(self, flat: Tensor) -> Tensor:
        """Reorder [n c h w] in memory, on the CPU; all that the network makes of it keeps the order."""
        return flat.to(memory_format=self.cpu_memory_format) if flat.device.type == "cpu" else flat

    def _plan(self, cost: budget.Cost, height: int, width: int) -> Plan:
        size = (-(-height // self.spatial_factor), -(-width // self.spatial_factor))
        return plan_passes(cost, size, self.spatial_factor, self.max_memory, overlap=self.tile_overlap)

    def posterior_of_tiles(self, video: Tensor, plan: Plan) -> Posterior:
        """Like `posterior`, in the tiles of a plan."""
        if plan.num_tiles == 1:
            return self.posterior(video)

        def run(tile: Tensor, _: int) -> Tensor:
            return torch.cat([found for found in self.posterior(tile) if found is not None], dim=1)

        found = run_tiles(video, plan, run, self.encoder, factor_in=self.spatial_factor, factor_out=1)
        if not self.is_gaussian:
            return found, None
        mean, logvar = found.chunk(2, dim=1)
        return mean, logvar

    def decode_tiles(self, latents: Tensor, state: StreamState, plan: Plan) -> Tensor:
        """Like `decode_chunk`, in the tiles of a plan; what they carry is kept in the one state, under their names.

        Raises:
            ResourceError: the state is that of other tiles.
        """
        names = [_tile_name(tile) for tile in plan.tiles()] if plan.num_tiles > 1 else [""]
        if not {key.rpartition(":")[0] for key in state.tensors} <= set(names):
            raise ResourceError("this film was begun in tiles of another size; go on with the same --max-memory.")
        if plan.num_tiles == 1:
            return self.decode_chunk(latents, state)
        seen = state.num_frames_seen

        def run(tile: Tensor, number: int) -> Tensor:
            name = f"{names[number]}:"
            own = {k.removeprefix(name): v for k, v in state.tensors.items() if k.startswith(name)}
            inner = StreamState({k: v.to(self.device) for k, v in own.items()}, seen)
            video = self.decode_chunk(tile, inner)
            # On the CPU they wait for their turn: a device that is short of memory need not hold those of all tiles.
            carried.update({name + k: v.cpu() for k, v in inner.tensors.items()})
            return video

        carried: dict[str, Tensor] = {}
        video = run_tiles(latents, plan, run, self.decoder, factor_in=1, factor_out=self.spatial_factor)
        state.tensors |= carried
        state.num_frames_seen = seen + latents.shape[2]
        return video

    def _decode_frames(self, raw: Tensor, num_frames: int, state: StreamState | None) -> Tensor:
        """Decode raw latents [b*t c h w] of `num_frames` = t frames each."""
        if state is not None:
            state.num_frames_seen += num_frames
        return self.image.decode(raw).sample

    def _to_model(self, raw: Tensor, frames: int) -> Tensor:
        return _batched((raw.float() - self.shift_factor) * self.scaling_factor, frames)

    @cached_property
    def _encode_cost(self) -> budget.Cost:
        side = 4 * self.spatial_factor
        probe = torch.zeros(1, 3, 1, side, side)
        return budget.measure(self.encoder, lambda: self.posterior(probe)[0], side * side)

    @cached_property
    def _decode_cost(self) -> budget.Cost:
        side = 4 * self.spatial_factor
        probe = torch.zeros(1, self.latent_channels, 1, 4, 4)
        return budget.measure(self.decoder, lambda: self.decode_chunk(probe, StreamState()), side * side)


class ImageEncoder(FilmEncoder):
    """Encodes one film frame by frame; every push gives as many latents as it takes frames.

    Sides that are no multiples of `spatial_factor` are padded at the right and bottom; decoders cut that off again.

    Args:
        stream: where the film stands; updated.
        latent_size: height and width in latents of what came before.
    """

    def __init__(
        self, autoencoder: ImageAutoencoder, stream: StreamState, latent_size: tuple[int, int] = (0, 0)
    ) -> None:
        self._autoencoder, self._stream, self._latent_size = autoencoder, stream, latent_size

    @torch.no_grad()
    def passes(self, frames: Tensor) -> Iterator[Posterior]:
        network = self._autoencoder
        padded, _ = pad_to_multiple(frames, network.spatial_factor)
        plan = network.plan_encode(*padded.shape[-2:])
        parts = padded.split(self._stream.limit_pass(plan.frames))
        found = [network.posterior_of_tiles(part.transpose(0, 1)[None], plan) for part in parts]
        self._stream.num_frames_seen += len(frames)
        logvars = [logvar[0] for _, logvar in found if logvar is not None]
        mean = torch.cat([mean[0] for mean, _ in found], dim=1)
        network.check_values(mean, "encoder")
        self._latent_size = (mean.shape[2], mean.shape[3])
        yield mean, torch.cat(logvars, dim=1) if logvars else None

    def state(self) -> dict[str, Tensor]:
        return {**self._stream.to_tensors(), _SIZE: torch.tensor(self._latent_size)}

    def _nothing(self) -> Tensor:
        return torch.zeros(self._autoencoder.latent_channels, 0, *self._latent_size)


class ImageDecoder(FilmDecoder):
    """Decodes one film in an image network, whose temporal layers, if it has any, look back only.

    Every push gives as many frames as it takes latents.

    Args:
        stream: where the film stands; updated.
        size: height and width of frames before padding.
        latent_size: height and width in latents of what came before.
    """

    def __init__(
        self,
        autoencoder: ImageAutoencoder,
        stream: StreamState,
        size: tuple[int, int] | None = None,
        latent_size: tuple[int, int] = (0, 0),
    ) -> None:
        self._autoencoder, self._stream, self._size, self._latent_size = autoencoder, stream, size, latent_size

    @torch.no_grad()
    def passes(self, latents: Tensor) -> Iterator[Tensor]:
        network = self._autoencoder
        network.check_latents(latents)
        self._latent_size = (latents.shape[2], latents.shape[3])
        plan = network.plan_decode(*(side * network.spatial_factor for side in self._latent_size))
        for part in latents.split(self._stream.limit_pass(plan.frames), dim=1):
            video = network.decode_tiles(part[None], self._stream, plan)[0].transpose(0, 1).float()
            network.check_values(video, "decoder")
            yield self._cropped(video.clamp_(-1, 1))

    def state(self) -> dict[str, Tensor]:
        return {**self._stream.to_tensors(), _SIZE: torch.tensor(self._latent_size)}

    def _cropped(self, frames: Tensor) -> Tensor:
        return frames if self._size is None else frames[..., : self._size[0], : self._size[1]]

    def _nothing(self) -> Tensor:
        factor = self._autoencoder.spatial_factor
        return self._cropped(torch.zeros(0, 3, *(side * factor for side in self._latent_size)))


_SIZE = "size"


def _without_size(saved: Mapping[str, Tensor] | None) -> tuple[Mapping[str, Tensor], tuple[int, int]]:
    """Return a saved state without the size of the film's latents, and that; 0 where nobody noted it."""
    saved = saved or {}
    height, width = counts_in(saved, _SIZE, 2) if _SIZE in saved else (0, 0)
    return {name: value for name, value in saved.items() if name != _SIZE}, (height, width)


def build_image_network(config: Mapping[str, Any]) -> nn.Module:
    """Make the image network that a config with `_class_name` describes, with random weights.

    Raises:
        CheckpointError: the class is not one of ours.
    """
    kind = config.get("_class_name")
    if kind not in IMAGE_NETWORKS:
        raise CheckpointError(
            f"the class {kind!r} is no image autoencoder; known: {', '.join(IMAGE_NETWORKS.kinds())}."
        )
    network = IMAGE_NETWORKS.get(str(kind))
    return network.from_config(settings_of(network, config))


def settings_of(network: type[nn.Module], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `network` in a config, leaving out what diffusers derives from them and saves as well."""
    return {k: v for k, v in config.items() if k in inspect.signature(network.__init__).parameters}


def _geometry(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many pixels per side one latent covers, and the latents' channels."""
    if "num_encoder_blocks" in config:  # AutoencoderTiny: every encoder stage but the first halves the picture
        down = 2 ** (len(config["num_encoder_blocks"]) - 1)
        up = config["upsampling_scaling_factor"] ** (len(config["num_decoder_blocks"]) - 1)
    else:
        down = up = 2 ** (len(config["block_out_channels"]) - 1)
    if down != up:
        raise CheckpointError(f"the image autoencoder shrinks pictures by {down} and grows them by {up}.")
    return down, int(config["latent_channels"])


def _tile_name(tile: tuple[tuple[int, int], tuple[int, int]]) -> str:
    return "x".join(f"{first}-{last}" for first, last in tile)


def _batched(flat: Tensor, frames: int) -> Tensor:
    """[b*t c h w] -> [b c t h w]."""
    return rearrange(flat, "(b t) c h w -> b c t h w", t=frames)
