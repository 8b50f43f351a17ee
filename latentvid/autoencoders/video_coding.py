"""Coding one film with a video autoencoder: in whole pictures or in tiles, with a state that can be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from latentvid.autoencoders.base import FilmDecoder, FilmEncoder, Posterior
from latentvid.autoencoders.protocol import Coder
from latentvid.autoencoders.tiling import Plan, TiledCoder
from latentvid.core.errors import CheckpointError, ResourceError, UsageError
from latentvid.temporal.context import StreamState, count_in, counts_in
from latentvid.video.pixels import pad_to_multiple

if TYPE_CHECKING:
    from latentvid.autoencoders.video import VideoAutoencoder


class _Film:
    """One film in a video network: as whole pictures, or in tiles where `max_memory` asks for them.

    Args:
        does: what is done with it, for the state to tell.
        plan: gives the plan for height and width of frames.
        factors: entries per side of a latent of what comes in and of what goes out.
    """

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        does: str,
        *,
        whole: type[Coder],
        tiles: type[Coder],
        network: nn.Module,
        plan: Callable[[int, int], Plan],
        factors: tuple[int, int],
        saved: Mapping[str, Tensor] | None,
    ) -> None:
        self._autoencoder, self._whole, self._tiles = autoencoder, whole, tiles
        self._network, self._plan, self._factors = network, plan, factors
        self._mark = _mark(f"{autoencoder.kind}/{does}")
        self._coder: Coder | TiledCoder | None = None
        self.size: tuple[int, int] = (0, 0)
        """Height and width in latents; nothing before the first part."""
        self.num_in = self.num_out = 0
        """Frames or latents that came in, and went out."""
        if saved:
            self._restore(saved)

    def push(self, part: Tensor) -> Iterator[Tensor]:
        """Take the next part of the film [1 c t h w] and yield the passes that are ready."""
        height, width = (side // self._factors[0] for side in part.shape[-2:])
        if self._coder is None:
            self.size = (height, width)
            self._coder = self._started(None if self._autoencoder.max_memory is None else self._planned(), {})
        elif self.size != (height, width):
            raise UsageError(f"a film of {self.size[1]}x{self.size[0]} latents cannot go on with {width}x{height}.")
        self.num_in += part.shape[2]
        yield from self._coder.push(part)

    def finish(self) -> Iterator[Tensor]:
        if self._coder is not None:
            yield from self._coder.finish()

    def state(self) -> dict[str, Tensor]:
        numbers = {_MARK: self._mark, "num_in": self.num_in, "num_out": self.num_out}
        found = {name: torch.tensor(value) for name, value in numbers.items()}
        if self._coder is None:
            return found
        found["size"] = torch.tensor(self.size)
        if isinstance(self._coder, TiledCoder):
            plan = self._coder.plan
            found["plan"] = torch.tensor([plan.frames, *plan.tile, plan.overlap])
            return found | self._coder.to_tensors()
        return found | self._coder.state.to_tensors("whole.")

    def _restore(self, saved: Mapping[str, Tensor]) -> None:
        if count_in(saved, _MARK) != self._mark:
            raise CheckpointError("the saved state of this film belongs to another kind of autoencoder, or direction.")
        self.num_in, self.num_out = count_in(saved, "num_in"), count_in(saved, "num_out")
        if "size" not in saved:
            return
        height, width = counts_in(saved, "size", 2)
        self.size = (height, width)
        now = None if self._autoencoder.max_memory is None else self._planned()
        frames, *tile, overlap = counts_in(saved, "plan", 4) if "plan" in saved else (0, *self.size, 0)
        if now is not None and tile != list(now.tile):
            raise ResourceError("this film was begun in tiles of another size; go on with the same --max-memory.")
        if "plan" in saved:
            frames = min(frames, now.frames) if now else frames
            now = Plan(frames, (tile[0], tile[1]), self.size, overlap)
        self._coder = self._started(now, saved)

    def _planned(self) -> Plan:
        return self._plan(*(side * self._autoencoder.spatial_factor for side in self.size))

    def _started(self, plan: Plan | None, saved: Mapping[str, Tensor]) -> Coder | TiledCoder:
        def state(prefix: str) -> StreamState:
            if saved and f"{prefix}num_frames_seen" not in saved:
                raise CheckpointError("the saved state of this film is incomplete.")
            return StreamState.from_tensors(saved, prefix, device=self._autoencoder.device)

        if plan is None or plan.num_tiles == 1:
            return self._whole(self._autoencoder, state("whole."), lambda *size: self._plan(*size).frames)
        return TiledCoder(
            plan,
            lambda own: self._tiles(self._autoencoder, own, lambda *_: plan.frames),
            self._autoencoder.sharing(self._network),
            factor_in=self._factors[0],
            factor_out=self._factors[1],
            states=state,
        )


_MARK = "kind"


def _mark(text: str) -> int:
    """Return a number that stands for a text in a saved state, which holds no words."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class VideoEncoder(FilmEncoder):
    """Encodes one film in a video network.

    Args:
        saved: what `state` returned, to go on from there.
    """

    def __init__(self, autoencoder: VideoAutoencoder, saved: Mapping[str, Tensor] | None = None) -> None:
        self._autoencoder = autoencoder
        self._film = _Film(
            autoencoder,
            "encode",
            whole=autoencoder.encodes,
            tiles=autoencoder.encodes,
            network=autoencoder.encoder,
            plan=autoencoder.plan_encode,
            factors=(autoencoder.spatial_factor, 1),
            saved=saved,
        )

    @torch.no_grad()
    def passes(self, frames: Tensor) -> Iterator[Posterior]:
        network = self._autoencoder
        padded, _ = pad_to_multiple(frames, network.spatial_factor)
        video = padded.transpose(0, 1)[None].to(network.device, network.dtype)  # [1 3 t h w]
        yield from map(self._posterior, self._film.push(video))

    @torch.no_grad()
    def last_passes(self) -> Iterator[Posterior]:
        yield from map(self._posterior, self._film.finish())

    def state(self) -> dict[str, Tensor]:
        return self._film.state()

    def _posterior(self, moments: Tensor) -> Posterior:
        found = DiagonalGaussianDistribution(moments.float())
        self._autoencoder.check_values(found.mean, "encoder")
        shift, scale = self._autoencoder.factors(moments.device)
        self._film.num_out += moments.shape[2]
        return ((found.mean - shift) * scale)[0].cpu(), (found.logvar + 2 * scale.abs().log())[0].cpu()

    def _nothing(self) -> Tensor:
        return torch.zeros(self._autoencoder.latent_channels, 0, *self._film.size)


class VideoDecoder(FilmDecoder):
    """Decodes one film in a video network.

    Args:
        saved: what `state` returned, to go on from there.
        size: height and width of frames before padding.
    """

    def __init__(
        self,
        autoencoder: VideoAutoencoder,
        saved: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._autoencoder, self._size = autoencoder, size
        self._film = _Film(
            autoencoder,
            "decode",
            whole=autoencoder.decodes,
            tiles=autoencoder.decodes_tiles or autoencoder.decodes,
            network=autoencoder.decoder,
            plan=autoencoder.plan_decode,
            factors=(1, autoencoder.spatial_factor),
            saved=saved,
        )

    @torch.no_grad()
    def passes(self, latents: Tensor) -> Iterator[Tensor]:
        network = self._autoencoder
        network.check_latents(latents)
        shift, scale = network.factors(network.device)
        raw = (latents[None].to(network.device).float() / scale + shift).to(network.dtype)
        yield from self._shown(self._film.push(raw))

    @torch.no_grad()
    def last_passes(self) -> Iterator[Tensor]:
        yield from self._shown(self._film.finish())

    def state(self) -> dict[str, Tensor]:
        return self._film.state()

    def _shown(self, passes: Iterator[Tensor]) -> Iterator[Tensor]:
        """Cut what networks add at a film's end and at the pictures' edges."""
        for video in passes:
            most = self._autoencoder.grid.frames(self._film.num_in) - self._film.num_out
            frames = video[0].transpose(0, 1)[:most]
            self._film.num_out += len(frames)
            if len(frames):
                frames = frames.float()
                self._autoencoder.check_values(frames, "decoder")
                yield self._cropped(frames.clamp(-1, 1))

    def _cropped(self, frames: Tensor) -> Tensor:
        return frames if self._size is None else frames[..., : self._size[0], : self._size[1]]

    def _nothing(self) -> Tensor:
        factor = self._autoencoder.spatial_factor
        return self._cropped(torch.zeros(0, 3, *(side * factor for side in self._film.size)))
