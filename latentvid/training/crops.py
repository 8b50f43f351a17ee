"""Random crops of footage at its own resolution, which is what a decoder will be used at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from kornia.enhance import adjust_gamma, adjust_hue, adjust_saturation
from torch import Tensor

from latentvid.core.rng import Rng
from latentvid.data.footage import ClipInfo, DecodedClips

GAMMA, LEVELS, SATURATION, HUE = 0.25, 0.2, 0.4, 0.3
"""How far `varied` changes light and colour at most: the logarithm of the exponent; what becomes black and white, in
shares of the range; the logarithm of the factor; radians."""


class NativeCrops:
    """Numbered crops, never resized. Crop i is a function of (files, seed, i); each file gives equally many.

    Args:
        clips: files that are long and large enough.
        num_clips: crops to draw.
        num_frames: frames of each.
        size: height and width in pixels.
        strides: every n-th frame; one of these at random, among those for which the file is long enough.
        vary: turn and mirror them, run them backwards and change their light and colour (see `varied`).
        name: of the stream of chance, so that two sets of crops of one seed differ.
    """

    def __init__(
        self,
        clips: Sequence[ClipInfo],
        *,
        num_clips: int,
        num_frames: int,
        size: int,
        strides: Sequence[int] = (1,),
        vary: bool = False,
        seed: int = 0,
        name: str = "crops",
        cache_bytes: int = 1 << 30,
    ) -> None:
        small = [c for c in clips if c.num_frames < num_frames or min(c.height, c.width) < size]
        if small or not clips:
            raise ValueError(
                f"{small[0].path if small else 'no clip'}: not {num_frames} frames of {size}x{size} pixels"
            )
        self.clips, self.num_clips, self.num_frames, self.size = tuple(clips), num_clips, num_frames, size
        self.strides, self.vary = tuple(strides), vary
        self._rng = Rng(seed).child(name)
        self._decoded = DecodedClips(cache_bytes)

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, index: int) -> tuple[Tensor, list[str]]:
        """Return crop number `index`, uint8 [t 3 h w], and no captions.

        Raises:
            InputError: the file cannot be decoded.
        """
        rng, info = self._rng.child(index), self.clips[index % len(self.clips)]
        fitting = [n for n in self.strides if (self.num_frames - 1) * n < info.num_frames] or [1]
        stride = fitting[_below(rng.child("stride"), len(fitting))]
        span = (self.num_frames - 1) * stride + 1
        start = _below(rng.child("start"), info.num_frames - span + 1)
        frames = self._decoded.frames(info, start, start + span)[::stride]
        if len(frames) < self.num_frames:  # the file is shorter than it says
            frames = frames[[min(i, len(frames) - 1) for i in range(self.num_frames)]]
        top = _below(rng.child("top"), info.height - self.size + 1)
        left = _below(rng.child("left"), info.width - self.size + 1)
        crop = frames[..., top : top + self.size, left : left + self.size]
        return (varied(crop, rng.child("vary")) if self.vary else crop).contiguous(), []


def varied(crop: Tensor, rng: Rng) -> Tensor:
    """Return a crop, uint8 [t 3 s s], in one of its eight positions, in either order of time, in another light.

    The same for all its frames. A few clips are soon known by heart; these are others as far as textures go. Black and
    white move too, so that plain black and plain white, which a film may lack, are seen.
    """
    crop = torch.rot90(crop, _below(rng.child("turns"), 4), (-2, -1))
    flipped = [dim for dim, name in ((-1, "mirror"), (0, "backwards")) if _below(rng.child(name), 2)]
    light, colour, hue, black, white = (2 * rng.child("light").uniform(5)[0] - 1).tolist()
    pixels = adjust_gamma(crop.flip(flipped).float() / 255, math.exp(GAMMA * light))
    low, high = LEVELS * black, 1 + LEVELS * white
    pixels = ((pixels - low) / (high - low)).clamp(0, 1)
    pixels = adjust_hue(adjust_saturation(pixels, math.exp(SATURATION * colour)), HUE * hue)
    return (255 * pixels).round().clamp(0, 255).to(torch.uint8)


def _below(rng: Rng, bound: int) -> int:
    return int(rng.integers(0, max(1, bound), 1))
