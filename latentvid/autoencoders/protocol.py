"""Coding a film as an object whose state can be saved: pushed part by part, resumed in another process, the same film.

`Encoder` and `Decoder` are what callers see of a film. `Coder` is what a network has to bring for it: one film, or one
tile of a film, on the network's own tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from latentvid.core.time import TimeGrid
from latentvid.temporal.context import StreamState

PerPass = Callable[[int, int], int]
"""Height and width of frames, pixels -> how many of them one pass may take."""


class Encoder(Protocol):
    """Encodes one film."""

    def push(self, frames: Tensor) -> Tensor:
        """Take the film's next frames [t 3 h w] in [-1, 1]; return the latents that are ready, [c n h w]."""
        ...

    def finish(self) -> Tensor:
        """End the film; return the latents [c n h w] that were held back."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what an encoder needs to go on from here exactly, as copies on the CPU that safetensors takes."""
        ...


class Decoder(Protocol):
    """Decodes one film."""

    def push(self, latents: Tensor) -> Tensor:
        """Take the film's next latents [c t h w]; return the frames that are ready, [n 3 h w] in [-1, 1]."""
        ...

    def finish(self) -> Tensor:
        """End the film; return the frames [n 3 h w] that were held back."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a decoder needs to go on from here exactly, as copies on the CPU that safetensors takes."""
        ...


class Autoencoder(Protocol):
    """Turns films into latents and back.

    `encoder` and `decoder` are the names of the networks in every checkpoint, hence the longer names of what they do.
    """

    grid: TimeGrid

    def film_encoder(self, state: Mapping[str, Tensor] | None = None) -> Encoder:
        """Return an encoder at a film's start, or where `state` was saved."""
        ...

    def film_decoder(
        self, state: Mapping[str, Tensor] | None = None, *, size: tuple[int, int] | None = None
    ) -> Decoder:
        """Return a decoder at a film's start, or where `state` was saved; `size` is that of frames before padding."""
        ...


class Coder(ABC):
    """Encodes or decodes one film, or one tile of a film, in a network.

    Args:
        autoencoder: whose network it is.
        state: where the film stands; all that is kept from one part to the next is in it.
        per_pass: gives the frames that one pass may take; asked only by networks that take any number.
    """

    def __init__(self, autoencoder: Any, state: StreamState, per_pass: PerPass) -> None:
        self.autoencoder, self.state, self._per_pass = autoencoder, state, per_pass

    @abstractmethod
    def push(self, part: Tensor) -> Iterator[Tensor]:
        """Take the next part of the film [1 c t h w] and yield the passes that are ready.

        The state is complete once all of them are taken.
        """

    def finish(self) -> Iterator[Tensor]:
        """End the film and yield the passes that were held back."""
        return iter(())

    def run(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the passes of a film whose last part is the last of `parts`."""
        for part in parts:
            yield from self.push(part)
        yield from self.finish()

    def frames_per_pass(self, height: int, width: int) -> int:
        """Return how many frames of this size a pass takes: as at the film's start, or fewer if no more fit by now."""
        return self.state.limit_pass(self._per_pass(height, width))
