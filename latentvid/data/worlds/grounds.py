"""Grounds of the sky world: hills, mountains, desert and forest as still pictures with a soft edge against the sky.

Each is drawn at twice the size and averaged down, from the farthest ridge to the nearest, with haze by distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentvid.data.worlds.fields import Array, noise_1d, noise_2d, smoothstep
from latentvid.data.worlds.palette import mix

OVERSAMPLING = 2
# What lies behind one another, from the farthest: colour, haze and, in parts of the picture's height, how tall.
HILLS = [((0.40, 0.60, 0.34), 0.50), ((0.36, 0.60, 0.24), 0.22), ((0.30, 0.54, 0.16), 0.0)]
PEAKS = [((0.50, 0.54, 0.64), 0.42, 0.22), ((0.40, 0.42, 0.48), 0.06, 0.25)]
DUNES = [0.42, 0.16, 0.0]
TREES = [((0.20, 0.40, 0.30), 0.40, 0.060), ((0.13, 0.33, 0.20), 0.16, 0.10), ((0.06, 0.21, 0.11), 0.0, 0.15)]
ICE = (0.95, 0.97, 1.02)
MEADOW = (0.29, 0.33, 0.33)
SAND = (0.93, 0.70, 0.40)


@dataclass(frozen=True)
class Light:
    """What a ground needs to know of the sky above it."""

    ambient: Array
    """[3], multiplies colours."""
    haze: Array
    """[3], what distance fades to."""
    glow: Array
    """[3], colour of the disc's light."""
    x: float
    """Place of the disc along the picture, in heights."""


@dataclass(frozen=True)
class Canvas:
    """Pixel centres of a picture, in heights: x grows to the right, y downwards from 0 to 1."""

    x: Array
    y: Array

    @classmethod
    def of(cls, height: int, width: int, oversampling: int = 1) -> Canvas:
        h, w = height * oversampling, width * oversampling
        return cls(((np.arange(w) + 0.5) / h).astype(np.float32), ((np.arange(h) + 0.5) / h).astype(np.float32))


class _Picture:
    """Layers laid over one another, premultiplied RGB [3 h w] and coverage [h w]."""

    def __init__(self, canvas: Canvas) -> None:
        self.canvas = canvas
        self.coverage = np.zeros((len(canvas.y), len(canvas.x)), np.float32)
        self.rgb = np.zeros((3, *self.coverage.shape), np.float32)

    def add(self, ridge: NDArray[np.floating], color: Array) -> None:
        """Lay `color` [3 h w] over everything below the line `ridge` [w]."""
        first = max(0, int(ridge.min() * len(self.canvas.y)) - 1)
        mask = np.clip((self.canvas.y[first:, None] - ridge) * len(self.canvas.y) + 0.5, 0, 1)
        rgb, coverage = self.rgb[:, first:], self.coverage[first:]
        rgb += (color[:, first:] - rgb) * mask
        coverage += (1 - coverage) * mask

    def reduced(self, factor: int) -> tuple[Array, Array]:
        h, w = (n // factor for n in self.coverage.shape)
        rgb = self.rgb.reshape(3, h, factor, w, factor).mean((2, 4))
        return rgb, self.coverage.reshape(h, factor, w, factor).mean((1, 3))


def draw_ground(kind: str, seed: int, light: Light, height: int, width: int, horizon: float) -> tuple[Array, Array]:
    """Return (premultiplied RGB [3 h w], coverage [h w]) of a still ground; `horizon` in heights from the top."""
    picture = _Picture(Canvas.of(height, width, OVERSAMPLING))
    _DRAW[kind](picture, seed, light, horizon)
    return picture.reduced(OVERSAMPLING)


def _hills(picture: _Picture, seed: int, light: Light, horizon: float) -> None:
    x, y = picture.canvas.x, picture.canvas.y
    for i, (green, haze) in enumerate(HILLS):
        ridge = horizon + 0.10 * i + 0.035 * noise_1d(seed + i, x, 1.9 - 0.35 * i, 2, 0.3)
        depth = np.clip((y[:, None] - ridge) * 7, 0, 1)
        meadow = noise_2d(seed + 10 + i, x, y, (5, 16), 3, 0.6)
        bright = 1.16 - 0.34 * depth + 0.055 * meadow + 0.10 * _towards(light, x)
        picture.add(ridge, _lit(green, bright, light, haze))


def _mountains(picture: _Picture, seed: int, light: Light, horizon: float) -> None:
    x, y = picture.canvas.x, picture.canvas.y
    rng = np.random.default_rng(seed)
    rough, crag = noise_1d(seed + 1, x, 11, 4, 0.5), noise_1d(seed + 2, y, 9, 3, 0.6)
    texture = noise_2d(seed + 3, x, y, (16, 16), 3, 0.6)
    for i, (rock, haze, tall) in enumerate(PEAKS):
        foot = horizon + 0.05 + 0.09 * i
        spacing = 0.27 + 0.05 * i
        places = (np.arange(int(x[-1] / spacing) + 3) - 1 + rng.uniform(-0.3, 0.3, int(x[-1] / spacing) + 3)) * spacing
        rng.shuffle(places)  # the order is that from back to front
        tops = (foot - tall * rng.uniform(0.55, 1.0, len(places)) + 0.02 * i).astype(np.float32)
        places, slopes = places.astype(np.float32), rng.uniform(0.85, 1.25, len(places)).astype(np.float32)
        lines = tops[:, None] + slopes[:, None] * np.abs(x - places[:, None]) + 0.010 * rough
        front = np.zeros((len(y), len(x)), np.int64)
        for peak, line in enumerate(lines):
            front[y[:, None] >= line] = peak
        # A crest wanders down from each summit and parts the face in the light from the one in the shade.
        down = y[:, None] - tops[front]
        side = (x - places[front]) * np.sign(light.x - places[front]) + 0.030 * crag[:, None] * np.minimum(down * 12, 1)
        face = smoothstep(-0.008, 0.008, side)
        snow = smoothstep(0.012, -0.012, down - 0.45 * (foot - tops[front]) - 0.018 * rough - 0.012 * texture)
        stone = _lit(rock, 0.72 + 0.34 * face + 0.08 * texture - 0.25 * np.clip(down, 0, 1), light, haze)
        ice = _lit(ICE, 0.76 + 0.26 * face + 0.03 * texture, light, haze * 0.6)
        picture.add(lines.min(0), mix(stone, ice, snow))
    ridge = horizon + 0.19 + 0.012 * noise_1d(seed + 30, x, 3, 3)
    meadow = noise_2d(seed + 31, x, y, (8, 20), 3, 0.6)
    bright = 1.05 - 0.9 * np.clip(y[:, None] - ridge, 0, 1) + 0.07 * meadow
    picture.add(ridge, _lit(MEADOW, bright, light, 0.04))


def _desert(picture: _Picture, seed: int, light: Light, horizon: float) -> None:
    x, y = picture.canvas.x, picture.canvas.y
    rng = np.random.default_rng(seed)
    for i, haze in enumerate(DUNES):
        # A dune is a skewed wave with a sharp crest; the crest line wanders down its near side.
        phase = x * (1.5 - 0.3 * i) + rng.uniform() + 0.10 * noise_1d(seed + i, x, 2.0, 1)
        part = (phase - np.floor(phase)).astype(np.float32)
        skew = 0.62
        wave = np.where(part < skew, part / skew, (1 - part) / (1 - skew)) ** 1.15
        ridge = horizon + 0.115 * i + 0.03 - (0.055 + 0.03 * i) * wave
        below = np.clip(y[:, None] - ridge, 0, 1)
        lee = phase[None] + below * (0.9 - 0.1 * i) + 0.025 * noise_2d(seed + 3 + i, x, y, (3, 5), 2)
        lee = lee - np.floor(lee)
        shaded = smoothstep(skew - 0.015, skew + 0.015, lee) * smoothstep(1.0, 0.93, lee)
        ripples = np.sin(320 * (y[:, None] + 0.03 * noise_2d(seed + 6 + i, x, y, (5, 9), 2)) / (1 + 0.6 * i))
        bright = 1.06 - 0.30 * shaded - 0.25 * below + 0.018 * ripples * (i > 0) + 0.06 * _towards(light, x)
        picture.add(ridge, _lit(SAND, bright, light, haze))


def _forest(picture: _Picture, seed: int, light: Light, horizon: float) -> None:
    x, y = picture.canvas.x, picture.canvas.y
    rng = np.random.default_rng(seed)
    for i, (green, haze, tall) in enumerate(TREES):
        ground = horizon + 0.05 + 0.11 * i + 0.02 * noise_1d(seed + i, x, 2.2, 2)
        spacing = tall * 0.30
        places = np.arange(-2, int(x[-1] / spacing) + 3) * spacing
        places = (places + rng.uniform(-0.4, 0.4, len(places)) * spacing).astype(np.float32)
        heights = (tall * rng.uniform(0.55, 1.05, len(places))).astype(np.float32)
        across = np.abs(x - places[:, None]) / (0.26 * heights[:, None])
        tiers = 0.05 * np.abs(((across * 4) % 1) - 0.5) * 2
        trees = (heights[:, None] * np.clip(1 - across - tiers, 0, 1)).max(0)
        ridge = ground - trees
        needles = noise_2d(seed + 40 + i, x, y, (26 - 6 * i, 16 - 3 * i), 2, 0.7)
        below = np.clip((y[:, None] - ridge) / tall, 0, 1.5)
        bright = 1.22 - 0.36 * below + 0.13 * needles + 0.08 * _towards(light, x)
        picture.add(ridge, _lit(green, bright, light, haze))


_DRAW: dict[str, Callable[[_Picture, int, Light, float], None]] = {
    "hills": _hills,
    "mountains": _mountains,
    "desert": _desert,
    "forest": _forest,
}


def _towards(light: Light, x: Array) -> Array:
    return np.asarray(np.exp(-(((x - light.x) / 0.35) ** 2)), np.float32)


def _lit(color: tuple[float, float, float], bright: Array, light: Light, haze: float) -> Array:
    rgb = (np.asarray(color, np.float32) * light.ambient)[:, None, None] * bright
    return mix(rgb, light.haze[:, None, None], float(haze))
