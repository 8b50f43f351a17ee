"""Clips from still pictures: a window that pans and zooms over them (pseudo-videos of VidRD, arXiv 2309.03549)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from latentvid.core.errors import InputError
from latentvid.core.rng import Rng
from latentvid.data.footage import ClipInfo, DecodedClips, scan
from latentvid.video.footage import STILL_SUFFIXES, find_videos


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a picture with the aspect of the clip. Centre in shares of the picture, 0 to 1."""

    x: float
    y: float
    scale: float
    """Size in shares of the largest window of the clip's aspect that fits into the picture, 0 (excluded) to 1."""


def draw_path(rng: Rng, *, min_scale: float = 0.6) -> tuple[Window, Window]:
    """Return the first and the last window of a path; both lie anywhere and `min_scale` to 1 large."""
    numbers = [float(v) for v in rng.child("path").uniform(6)[0]]
    ends = [Window(x, y, min_scale + (1 - min_scale) * s) for x, y, s in (numbers[:3], numbers[3:])]
    return ends[0], ends[1]


def pan_and_zoom(image: Tensor, num_frames: int, height: int, width: int, path: tuple[Window, Window]) -> Tensor:
    """Return a clip, uint8 [t 3 h w], whose window moves from the first to the second of `path`.

    Speed rises and falls as a half cosine; zoom is even to the eye (geometric). Both ends are moved inside the picture,
    windows read at sub-pixel places and antialiased, so that slow paths do not jitter.

    Args:
        image: uint8 [3 h w], at least 2x2.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or min(image.shape[1:]) < 2:
        raise ValueError(f"pan_and_zoom needs a picture uint8 [3 h w], not {image.dtype} {list(image.shape)}")
    if min(num_frames, height, width) < 1:
        raise ValueError(f"cannot make {num_frames} frames of {height}x{width}")
    source = image.float()[None]
    rows = (height / image.shape[1], width / image.shape[2])
    # Share of the picture that a window of scale 1 covers, along y and x: the larger one is whole.
    cover = (rows[0] / max(rows), rows[1] / max(rows))
    source = _shrunk(source, height, width, cover, min(path[0].scale, path[1].scale))
    ends = (_inside(path[0], cover), _inside(path[1], cover))
    frames = [_read(source, _between(ends, _ease(i, num_frames)), cover, height, width) for i in range(num_frames)]
    return torch.cat(frames).round_().clamp_(0, 255).to(torch.uint8)


def _inside(window: Window, cover: tuple[float, float]) -> Window:
    half_y, half_x = cover[0] * window.scale / 2, cover[1] * window.scale / 2
    return Window(min(max(window.x, half_x), 1 - half_x), min(max(window.y, half_y), 1 - half_y), window.scale)


def _between(path: tuple[Window, Window], share: float) -> Window:
    first, last = path
    scale = math.exp((1 - share) * math.log(first.scale) + share * math.log(last.scale))
    return Window(first.x + (last.x - first.x) * share, first.y + (last.y - first.y) * share, scale)


def _ease(index: int, count: int) -> float:
    return 0.0 if count == 1 else 0.5 - 0.5 * math.cos(math.pi * index / (count - 1))


def _shrunk(source: Tensor, height: int, width: int, cover: tuple[float, float], scale: float) -> Tensor:
    """Bring a large picture down until its smallest window has about the pixels of the clip."""
    target = (math.ceil(height / (cover[0] * scale)), math.ceil(width / (cover[1] * scale)))
    if target[0] >= source.shape[2] or target[1] >= source.shape[3]:
        return source
    return F.interpolate(source, target, mode="bicubic", antialias=True, align_corners=False)


def _read(source: Tensor, window: Window, cover: tuple[float, float], height: int, width: int) -> Tensor:
    half_y, half_x = cover[0] * window.scale / 2, cover[1] * window.scale / 2
    theta = torch.tensor([[[2 * half_x, 0, 2 * window.x - 1], [0, 2 * half_y, 2 * window.y - 1]]], dtype=torch.float32)
    grid = F.affine_grid(theta, [1, 3, height, width], align_corners=False)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)


class PseudoVideos:
    """Endless clips of still pictures, each picture as often as the others. Item i is the same in every run.

    Args:
        paths: pictures, folders of them, patterns; videos among them are passed over.
        num_frames: frames of an item; one makes a crop.
        size: height and width of an item in pixels.
        min_scale: the narrowest view, in shares of the widest that fits into the picture.

    Raises:
        InputError: there is no picture that can be read; the sentence holds the first reason.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        num_frames: int = 16,
        size: int = 128,
        min_scale: float = 0.6,
        seed: int = 0,
        *,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.num_frames, self.size, self.min_scale = num_frames, size, min_scale
        pictures = [path for path in find_videos(paths, stills=True) if path.suffix.lower() in STILL_SUFFIXES]
        self.clips, self.skipped = scan(pictures) if pictures else ([], [])
        self.clips = [clip for clip in self.clips if min(clip.height, clip.width) >= 2]
        if not self.clips:
            why = f" The first: {self.skipped[0][1]}" if self.skipped else ""
            raise InputError(f"{', '.join(map(str, paths))}: there is no picture that can be used.{why}")
        self._rng = Rng(seed).child("stills")
        self._decoded = DecodedClips(cache_bytes)

    def item(self, index: int) -> tuple[Tensor, ClipInfo]:
        """Return clip number `index`, uint8 [t 3 h w], and the picture that it is of.

        Raises:
            InputError: the picture cannot be decoded.
        """
        clip = self.clips[index % len(self.clips)]
        path = draw_path(self._rng.child(index), min_scale=self.min_scale)
        image = self._decoded.frames(clip, 0, 1)[0]
        return pan_and_zoom(image, self.num_frames, self.size, self.size, path), clip
