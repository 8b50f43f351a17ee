"""The arithmetic between the frames and the latents of a film."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TimeGrid:
    """Which frames of a film each of its latents stands for.

    (1, 1) for image autoencoders and Stable Video Diffusion, (1, 4) for Wan, CogVideoX and HunyuanVideo, (1, 8) for
    LTX-Video. The spans of latents 0, 1, 2, ... lie end to end and leave no frame out.
    """

    first: int = 1
    """Frames of a film's first latent."""
    step: int = 1
    """Frames of every further latent."""

    def __post_init__(self) -> None:
        if self.first < 1 or self.step < 1:
            raise ValueError(f"a latent holds at least one frame, not {min(self.first, self.step)}")

    def frames(self, latents: int) -> int:
        """Return how many frames a film's first `latents` latents are decoded to.

        >>> TimeGrid(1, 4).frames(3)
        9
        """
        return 0 if latents <= 0 else self.first + (latents - 1) * self.step

    def latents(self, frames: int) -> int:
        """Return how many latents a film's first `frames` frames become, the last one filled up: rounded up.

        >>> TimeGrid(1, 4).latents(6)
        3
        """
        return 0 if frames <= 0 else 1 + max(0, -(-(frames - self.first) // self.step))

    def whole_latents(self, frames: int) -> int:
        """Return how many latents a film's first `frames` frames fill completely: rounded down.

        >>> TimeGrid(1, 4).whole_latents(6)
        2
        """
        return max(0, 1 + (frames - self.first) // self.step)

    def padding(self, frames: int) -> int:
        """Return how many frames are missing until `frames` frames fill their last latent.

        >>> TimeGrid(1, 4).padding(6)
        3
        """
        return self.frames(self.latents(frames)) - max(0, frames)

    def span(self, latent: int) -> range:
        """Return the numbers of the frames that a latent stands for; both count from 0.

        >>> TimeGrid(1, 4).span(2)
        range(5, 9)
        """
        return range(self.frames(latent), self.frames(latent + 1))
