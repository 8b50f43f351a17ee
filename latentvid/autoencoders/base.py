"""What image and video autoencoders have in common: sizes, factors, the hash of a latent space, where they compute."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from latentvid.core.errors import CheckpointError
from latentvid.core.shapes import LatentShape, VideoShape
from latentvid.core.time import TimeGrid

Factor = float | tuple[float, ...]
"""One number for all latent channels, or one for each."""
Posterior = tuple[Tensor, Tensor | None]
"""Mean and, where the encoder has it, log variance of latents in model space, float32 [c t h w]."""


Pass = TypeVar("Pass")


class _FilmCoder(ABC, Generic[Pass]):
    """Takes one film part by part and gives back what each part made ready, a pass of the network at a time."""

    def push(self, part: Tensor) -> Tensor:
        """Take the film's next part, [t 3 h w] in [-1, 1] or latents [c t h w]; return what is ready of the other."""
        return self._joined(self.passes(part))

    def finish(self) -> Tensor:
        """End the film; return what was held back."""
        return self._joined(self.last_passes())

    def run(self, parts: Iterable[Tensor]) -> Iterator[Pass]:
        """Take all parts that are left of the film, a pass at a time."""
        for part in parts:
            yield from self.passes(part)
        yield from self.last_passes()

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return what it needs to go on from here exactly, as copies on the CPU that safetensors takes."""

    @abstractmethod
    def passes(self, part: Tensor) -> Iterator[Pass]:
        """Like `push`, a pass of the network at a time; the state is complete once all of them are taken."""

    def last_passes(self) -> Iterator[Pass]:
        """Like `finish`, a pass of the network at a time."""
        return iter(())

    @abstractmethod
    def _joined(self, passes: Iterator[Pass]) -> Tensor:
        """Return all passes as one tensor, which may hold no frames."""


class FilmEncoder(_FilmCoder[Posterior]):
    """Encodes one film part by part: frames [t 3 h w] in [-1, 1] in, latents [c n h w] out.

    See `latentvid.autoencoders.protocol.Encoder`.
    """

    @abstractmethod
    def _nothing(self) -> Tensor:
        """Return no latents [c 0 h w]."""

    def _joined(self, passes: Iterator[Posterior]) -> Tensor:
        found = [mean for mean, _ in passes]
        return torch.cat(found, dim=1) if found else self._nothing()


class FilmDecoder(_FilmCoder[Tensor]):
    """Decodes one film part by part: latents [c t h w] in, frames [n 3 h w] in [-1, 1], float32, out.

    See `latentvid.autoencoders.protocol.Decoder`.
    """

    @abstractmethod
    def _nothing(self) -> Tensor:
        """Return no frames [0 3 h w]."""

    def _joined(self, passes: Iterator[Tensor]) -> Tensor:
        found = list(passes)
        return torch.cat(found) if found else self._nothing()


class BaseAutoencoder(nn.Module):
    """An autoencoder of films: frames in, latents out, and back, as streams.

    Latents are in model space: (raw - shift_factor) * scaling_factor.
    """

    encoder: nn.Module
    decoder: nn.Module
    name: str = ""
    """What to call it in records: its folder's name."""
    loaded_space: str = ""
    """The latent space of the weights on file, where they were rounded to fewer bits since."""
    max_memory: int | None = None
    """Bytes that the working set of `encode` and `decode` may take, besides the weights; None is a modest default."""
    spatial_factor: int
    """Pixels per side of one latent."""
    grid: TimeGrid = TimeGrid()
    """Which frames a latent stands for."""
    latent_channels: int

    @property
    def force_upcast(self) -> bool:
        """Whether the network overflows in fp16."""
        return False

    @property
    def scaling_factor(self) -> Factor:
        raise NotImplementedError

    @property
    def shift_factor(self) -> Factor:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    @property
    def is_gaussian(self) -> bool:
        """Whether the encoder gives a distribution (mean and log variance) or one value."""
        raise NotImplementedError

    @property
    def weights(self) -> nn.Module:
        """The module whose state dict is what is on file."""
        return self

    def num_latents(self, num_frames: int) -> int:
        """Return how many latents that many frames become, with what a network takes besides."""
        return self.grid.latents(num_frames)

    def latent_shape(self, video: VideoShape) -> LatentShape:
        padded, factor = video.padded_to(self.spatial_factor), self.spatial_factor
        frames = self.num_latents(video.frames)
        return LatentShape(video.batch, self.latent_channels, frames, padded.height // factor, padded.width // factor)

    def encode(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Turn chunks [t 3 h w] in [-1, 1], of any size, into float32 latents [c t h w] in model space."""
        for mean, _ in self.encode_posterior(frames):
            yield mean

    def encode_posterior(self, frames: Iterable[Tensor]) -> Iterator[Posterior]:
        """Like `encode`, giving log variances [c t h w] too where the encoder has them."""
        return self.film_encoder().run(frames)

    def decode(self, latents: Iterable[Tensor], *, size: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """Turn the latents of a film [c t h w], in chunks of any length, into float32 frames [t 3 h w] in [-1, 1].

        Args:
            size: height and width before padding.
        """
        return self.film_decoder(size=size).run(latents)

    def film_encoder(self, state: Mapping[str, Tensor] | None = None) -> FilmEncoder:
        """Return an encoder at a film's start, or where `state` was saved.

        Raises:
            CheckpointError: the state is damaged, or belongs to another kind of autoencoder.
            ResourceError: the film was begun in tiles of another size than `max_memory` asks for now.
        """
        raise NotImplementedError

    def film_decoder(
        self, state: Mapping[str, Tensor] | None = None, *, size: tuple[int, int] | None = None
    ) -> FilmDecoder:
        """Return a decoder at a film's start, or where `state` was saved; raises as `film_encoder` does.

        Args:
            size: height and width of frames before padding.
        """
        raise NotImplementedError

    def frames_per_encode(self, height: int, width: int) -> int:
        """Return how many frames of this size `encode` sends through the network at once within `max_memory`.

        Raises:
            ResourceError: not even one fits.
        """
        raise NotImplementedError

    def frames_per_decode(self, height: int, width: int) -> int:
        """Return the same for `decode`."""
        raise NotImplementedError

    def tiles_per_frame(self, height: int, width: int) -> int:
        """Return into how many tiles `decode` cuts frames of this size, to stay within `max_memory`; 1 is exact."""
        return 1

    def check_latents(self, latents: Tensor) -> None:
        """Refuse to decode what is no number.

        Raises:
            CheckpointError: a value is not finite.
        """
        if not torch.isfinite(latents).all():
            raise CheckpointError(
                "the latents that were to be decoded hold values that are no numbers: the denoiser (the U-Net) "
                "overflows, or its weights are damaged; try --dtype fp32."
            )

    def check_values(self, values: Tensor, part: str) -> None:
        """Refuse what a part of the network made of finite values.

        Args:
            part: "encoder" or "decoder".

        Raises:
            CheckpointError: a value is not finite; the sentence says which --dtype to try.
        """
        if not torch.isfinite(values).all():
            short = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(self.dtype)
            why = f"it overflows in {short}; try --dtype fp32" if short else "its weights are damaged; --dtype is fp32"
            raise CheckpointError(
                f"the {part} of {self.name or 'this autoencoder'} gave values that are no numbers: {why}."
            )

    def latent_space(self) -> str:
        """Return a hash of what gives latents their meaning: the encoder's weights, scaling and shift.

        Equal for an image autoencoder and every temporal decoder made for it.
        """
        if self.loaded_space:
            return self.loaded_space
        weights = {k: v for k, v in self.weights.state_dict().items() if k.startswith(("encoder.", "quant_conv."))}
        return hash_weights(weights, *numbers(self.scaling_factor), *numbers(self.shift_factor))


def first_frames(chunks: Iterable[Tensor], num_frames: int) -> Iterator[Tensor]:
    """Yield chunks [t 3 h w] up to that many frames: what was added to a film's end is cut off."""
    left = num_frames
    for chunk in chunks:
        if left > 0:
            yield chunk[:left]
        left -= len(chunk)


def numbers(factor: Factor) -> tuple[float, ...]:
    """Return a factor's numbers.

    >>> numbers(0.5), numbers((1.0, 2.0))
    ((0.5,), (1.0, 2.0))
    """
    return factor if isinstance(factor, tuple) else (factor,)


def hash_weights(weights: Mapping[str, Tensor], *about: float) -> str:
    """Return a hex SHA-256 of tensors and numbers; how floats were stored does not enter it."""
    digest = hashlib.sha256(repr([float(number) for number in about]).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def plain(config: Any) -> Any:
    """Return lists for tuples, as JSON has them."""
    return list(config) if isinstance(config, tuple) else config
