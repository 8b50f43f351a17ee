"""Sizes as values: what a clip measures in pixels and in latents, and the arithmetic between them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class VideoShape:
    """A batch of clips in pixels, [b t 3 h w]."""

    batch: int
    frames: int
    height: int
    width: int

    def padded_to(self, multiple: int) -> VideoShape:
        """Return the shape with height and width grown to multiples of `multiple`.

        >>> VideoShape(1, 5, 66, 90).padded_to(8)
        VideoShape(batch=1, frames=5, height=72, width=96)
        """
        up = lambda n: -(-n // multiple) * multiple  # noqa: E731
        return replace(self, height=up(self.height), width=up(self.width))


@dataclass(frozen=True, slots=True)
class LatentShape:
    """A batch of clips in latents, [b c t h w]."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    @property
    def dims(self) -> tuple[int, int, int, int, int]:
        """(b, c, t, h, w), as tensors want it."""
        return (self.batch, self.channels, self.frames, self.height, self.width)

    def with_frames(self, frames: int) -> LatentShape:
        return replace(self, frames=frames)

    @property
    def num_bytes(self) -> int:
        """Size in float32.

        >>> LatentShape(1, 4, 16, 12, 12).num_bytes
        36864
        """
        b, c, t, h, w = self.dims
        return 4 * b * c * t * h * w
