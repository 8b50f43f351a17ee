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
    """Part of a picture with the aspect of the clip."""

    x: float
    y: float
    """Place in the room that the window leaves: 0 is at the left or top, 1 at the right or bottom."""
    scale: float
    """Size in shares of the largest window of the clip's aspect that fits into the picture, 0 (excluded) to 1."""


@dataclass(frozen=True, slots=True)
class Camera:
    """Bounds of a path."""

    min_scale: float
    """The narrowest view, in shares of the widest."""
    max_pan: float
    """The farthest way, along x and along y, in shares of the room that the view leaves."""
    max_zoom: float
    """The strongest zoom, in or out."""


def draw_path(rng: Rng, camera: Camera) -> tuple[Window, Window]:
    """Return the first and the last window of a path; it begins anywhere."""
    x, y, width, right, down, closer = (float(v) for v in rng.child("path").uniform(6)[0])
    first = Window(x, y, camera.min_scale + (1 - camera.min_scale) * width)
    last_x, last_y = (
        min(max(begin + camera.max_pan * (2 * way - 1), 0.0), 1.0) for begin, way in ((x, right), (y, down))
    )
    scale = first.scale * camera.max_zoom ** (2 * closer - 1)
    return first, Window(last_x, last_y, min(max(scale, camera.min_scale), 1.0))


def pan_and_zoom(image: Tensor, num_frames: int, height: int, width: int, path: tuple[Window, Window]) -> Tensor:
    """Return a clip, uint8 [t 3 h w], whose window moves from the first to the second of `path`.

    Speed rises and falls as a half cosine; zoom is even to the eye (geometric). Windows are read at sub-pixel
    places and antialiased, so that slow paths do not jitter.

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
    ends = (_view(path[0], cover), _view(path[1], cover))
    frames = [_read(source, _between(ends, _ease(i, num_frames)), cover, height, width) for i in range(num_frames)]
    return torch.cat(frames).round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, slots=True)
class _View:
    """A window as it is read: its centre and size in shares of the picture."""

    x: float
    y: float
    scale: float


def _view(window: Window, cover: tuple[float, float]) -> _View:
    height, width = cover[0] * window.scale, cover[1] * window.scale
    return _View(width / 2 + window.x * (1 - width), height / 2 + window.y * (1 - height), window.scale)


def _between(ends: tuple[_View, _View], share: float) -> _View:
    first, last = ends
    scale = math.exp((1 - share) * math.log(first.scale) + share * math.log(last.scale))
    return _View(first.x + (last.x - first.x) * share, first.y + (last.y - first.y) * share, scale)


def _ease(index: int, count: int) -> float:
    return 0.0 if count == 1 else 0.5 - 0.5 * math.cos(math.pi * index / (count - 1))


def _shrunk(source: Tensor, height: int, width: int, cover: tuple[float, float], scale: float) -> Tensor:
    """Bring a large picture down until its smallest window has about the pixels of the clip."""
    target = (math.ceil(height / (cover[0] * scale)), math.ceil(width / (cover[1] * scale)))
    if target[0] >= source.shape[2] or target[1] >= source.shape[3]:
        return source
    return F.interpolate(source, target, mode="bicubic", antialias=True, align_corners=False)


def _read(source: Tensor, view: _View, cover: tuple[float, float], height: int, width: int) -> Tensor:
    half_y, half_x = cover[0] * view.scale / 2, cover[1] * view.scale / 2
    theta = torch.tensor([[[2 * half_x, 0, 2 * view.x - 1], [0, 2 * half_y, 2 * view.y - 1]]], dtype=torch.float32)
    grid = F.affine_grid(theta, [1, 3, height, width], align_corners=False)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)


class PseudoVideos:
    """Endless clips of still pictures, each picture as often as the others. Item i is the same in every run.

    Args:
        paths: pictures, folders of them, patterns; videos among them are passed over.
        camera: how the view moves.
        num_frames: frames of an item; one makes a crop.
        size: height and width of an item in pixels.

    Raises:
        InputError: there is no picture that can be read; the sentence holds the first reason.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        camera: Camera,
        num_frames: int = 16,
        size: int = 128,
        seed: int = 0,
        *,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self.num_frames, self.size, self.camera = num_frames, size, camera
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
        path = draw_path(self._rng.child(index), self.camera)
        image = self._decoded.frames(clip, 0, 1)[0]
        return pan_and_zoom(image, self.num_frames, self.size, self.size, path), clip
