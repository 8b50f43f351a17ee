"""One picture of a clip with the exact time at which it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame, upright, in display order."""

    pixels: Tensor
    """RGB, uint8 [3 h w], sRGB-like values as a player would show them."""
    time_s: Fraction
    """Presentation time in seconds, exactly as the file states it (its first frame need not be at 0)."""
    index: int
    """Position among the frames that a player shows, from 0."""
