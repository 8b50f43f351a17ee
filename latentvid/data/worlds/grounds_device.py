"""The still grounds of `grounds`, many of one kind at a time in PyTorch on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentvid.data.worlds.fields_device import Grid, Lattices, device_smoothstep, upload
from latentvid.data.worlds.grounds import DUNES, HILLS, ICE, MEADOW, OVERSAMPLING, PEAKS, SAND, TREES, Light


class Pictures:
    """Grounds of one kind under way: layers laid over one another, and what they are drawn from.

    Heights and lines are [b 1 w], rows [h 1], planes [b h w], colours [b 3 h w].
    """

    def __init__(
        self,
        grid: Grid,
        lattices: Lattices,
        seeds: Sequence[int],
        lights: Sequence[Light],
        horizons: Sequence[float],
    ) -> None:
        self.grid, self.lattices, self.seeds = grid, lattices, seeds
        self.x, self.y = grid.x, grid.y[:, None]
        self.lights, self.horizons = lights, horizons
        self.horizon = self.per_scene(np.array(horizons))
        self.light_x = self.per_scene(np.array([light.x for light in lights]))
        self.ambient = self.per_scene(np.stack([light.ambient for light in lights]))[..., None]
        self.haze = self.per_scene(np.stack([light.haze for light in lights]))[..., None]
        self.coverage = torch.zeros(len(seeds), len(grid.y), len(grid.x), device=grid.device)
        self.rgb = torch.zeros(len(seeds), 3, *self.coverage.shape[1:], device=grid.device)

    def per_scene(self, values: np.ndarray) -> Tensor:
        """Return numbers of each scene [b, ..] as float32 [b, .., 1, 1] ([b, .., 1] where there are two axes)."""
        values = values.astype(np.float32).reshape(len(values), -1, 1)
        return upload(values, self.grid.device)

    def noise_1d(self, seed: int, frequency: float, octaves: int = 4, gain: float = 0.5, axis: str = "x") -> Tensor:
        """Return noise along a line [b n]; `seed` is added to the scenes'."""
        drawn = self.lattices.lines([own + seed for own in self.seeds], octaves)
        return self.grid.noise_1d(drawn, axis, frequency, octaves, gain)

    def noise_2d(self, seed: int, frequency: tuple[float, float], octaves: int = 4, gain: float = 0.5) -> Tensor:
        """Return noise [b h w]; `seed` is added to the scenes'."""
        drawn = self.lattices.fields([own + seed for own in self.seeds], octaves)
        return self.grid.noise_2d(drawn, frequency, octaves, gain)

    def towards(self) -> Tensor:
        """Return how near to the light the places along x are, [b 1 w]."""
        return torch.exp(-(((self.x - self.light_x) / 0.35) ** 2))

    def lit(self, color: tuple[float, float, float], bright: Tensor, haze: float) -> Tensor:
        """Return a colour in the scenes' light [b 3 h w], `bright` [b h w] times as bright and behind haze."""
        base = torch.stack([self.ambient[:, i] * part for i, part in enumerate(color)], dim=1)
        rgb = base * bright[:, None]
        return rgb + (self.haze - rgb) * haze

    def add(self, ridge: Tensor, color: Tensor) -> None:
        """Lay `color` [b 3 h w] over everything below the line `ridge` [b 1 w]."""
        mask = ((self.y - ridge) * len(self.y) + 0.5).clamp(0, 1)
        self.rgb += (color - self.rgb) * mask[:, None]
        self.coverage += (1 - self.coverage) * mask


def draw_grounds(
    kind: str,
    grid: Grid,
    lattices: Lattices,
    seeds: Sequence[int],
    lights: Sequence[Light],
    horizons: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return (premultiplied RGB [b 3 h w], coverage [b 1 h w]) of still grounds; `grid` is the oversampled one."""
    pictures = Pictures(grid, lattices, seeds, lights, horizons)
    _DRAW[kind](pictures)
    return F.avg_pool2d(pictures.rgb, OVERSAMPLING), F.avg_pool2d(pictures.coverage[:, None], OVERSAMPLING)


def _hills(p: Pictures) -> None:
    for i, (green, haze) in enumerate(HILLS):
        ridge = p.horizon + 0.10 * i + 0.035 * p.noise_1d(i, 1.9 - 0.35 * i, 2, 0.3)[:, None]
        depth = ((p.y - ridge) * 7).clamp(0, 1)
        meadow = p.noise_2d(10 + i, (5, 16), 3, 0.6)
        bright = 1.16 - 0.34 * depth + 0.055 * meadow + 0.10 * p.towards()
        p.add(ridge, p.lit(green, bright, haze))


def _mountains(p: Pictures) -> None:
    rough, crag = p.noise_1d(1, 11, 4)[:, None], p.noise_1d(2, 9, 3, 0.6, axis="y")[..., None]
    texture = p.noise_2d(3, (16, 16), 3, 0.6)
    draws = [np.random.default_rng(seed) for seed in p.seeds]
    for i, (rock, haze, tall) in enumerate(PEAKS):
        foot = p.horizon + 0.05 + 0.09 * i
        peaks = upload(_draw_peaks(p, draws, i, tall), p.grid.device)
        tops, places, slopes = peaks[..., None, None].unbind(2)  # each [b n 1 1]
        lines = tops + slopes * (p.x - places).abs() + 0.010 * rough[:, None]  # [b n 1 w]
        top, place = tops[:, 0], places[:, 0]
        for peak in range(1, lines.shape[1]):
            inside = p.y >= lines[:, peak]
            top, place = torch.where(inside, tops[:, peak], top), torch.where(inside, places[:, peak], place)
        # A crest wanders down from each summit and parts the face in the light from the one in the shade.
        down = p.y - top
        side = (p.x - place) * torch.sign(p.light_x - place) + 0.030 * crag * (down * 12).clamp(max=1)
        face = device_smoothstep(-0.008, 0.008, side)
        snow = device_smoothstep(0.012, -0.012, down - 0.45 * (foot - top) - 0.018 * rough - 0.012 * texture)
        stone = p.lit(rock, 0.72 + 0.34 * face + 0.08 * texture - 0.25 * down.clamp(0, 1), haze)
        ice = p.lit(ICE, 0.76 + 0.26 * face + 0.03 * texture, haze * 0.6)
        p.add(lines.amin(1), stone + (ice - stone) * snow[:, None])
    ridge = p.horizon + 0.19 + 0.012 * p.noise_1d(30, 3, 3)[:, None]
    meadow = p.noise_2d(31, (8, 20), 3, 0.6)
    bright = 1.05 - 0.9 * (p.y - ridge).clamp(0, 1) + 0.07 * meadow
    p.add(ridge, p.lit(MEADOW, bright, 0.04))


def _draw_peaks(p: Pictures, draws: list[np.random.Generator], i: int, tall: float) -> np.ndarray:
    """Return height of the summit, place and slope of each peak of range number `i`, [b n 3], from back to front."""
    spacing = 0.27 + 0.05 * i
    count = int(p.grid.canvas.x[-1] / spacing) + 3
    peaks = np.empty((len(draws), count, 3), np.float32)
    for own, draw, horizon in zip(peaks, draws, p.horizons, strict=True):
        places = (np.arange(count) - 1 + draw.uniform(-0.3, 0.3, count)) * spacing
        draw.shuffle(places)
        foot = horizon + 0.05 + 0.09 * i
        own[:, 0] = foot - tall * draw.uniform(0.55, 1.0, count) + 0.02 * i
        own[:, 1] = places
        own[:, 2] = draw.uniform(0.85, 1.25, count)
    return peaks


def _desert(p: Pictures) -> None:
    shifts = np.array([np.random.default_rng(seed).uniform(size=len(DUNES)) for seed in p.seeds])
    for i, haze in enumerate(DUNES):
        # A dune is a skewed wave with a sharp crest; the crest line wanders down its near side.
        phase = p.x * (1.5 - 0.3 * i) + p.per_scene(shifts[:, i]) + 0.10 * p.noise_1d(i, 2.0, 1)[:, None]
        part = phase - phase.floor()
        skew = 0.62
        wave = torch.where(part < skew, part / skew, (1 - part) / (1 - skew)) ** 1.15
        ridge = p.horizon + 0.115 * i + 0.03 - (0.055 + 0.03 * i) * wave
        below = (p.y - ridge).clamp(0, 1)
        lee = phase + below * (0.9 - 0.1 * i) + 0.025 * p.noise_2d(3 + i, (3, 5), 2)
        lee = lee - lee.floor()
        shaded = device_smoothstep(skew - 0.015, skew + 0.015, lee) * device_smoothstep(1.0, 0.93, lee)
        bright = 1.06 - 0.30 * shaded - 0.25 * below + 0.06 * p.towards()
        if i > 0:
            bright += 0.018 * torch.sin(320 * (p.y + 0.03 * p.noise_2d(6 + i, (5, 9), 2)) / (1 + 0.6 * i))
        p.add(ridge, p.lit(SAND, bright, haze))


def _forest(p: Pictures) -> None:
    draws = [np.random.default_rng(seed) for seed in p.seeds]
    for i, (green, haze, tall) in enumerate(TREES):
        ground = p.horizon + 0.05 + 0.11 * i + 0.02 * p.noise_1d(i, 2.2, 2)[:, None]
        spacing = tall * 0.30
        row = np.arange(-2, int(p.grid.canvas.x[-1] / spacing) + 3) * spacing
        drawn = [(row + d.uniform(-0.4, 0.4, len(row)) * spacing, d.uniform(0.55, 1.05, len(row))) for d in draws]
        trees = upload(np.array(drawn, np.float32), p.grid.device)[..., None]  # [b 2 n 1]
        places, heights = trees[:, 0], tall * trees[:, 1]
        across = (p.x - places).abs() / (0.26 * heights)
        tiers = 0.05 * (((across * 4) % 1) - 0.5).abs() * 2
        ridge = ground - (heights * (1 - across - tiers).clamp(min=0)).amax(1, keepdim=True)
        needles = p.noise_2d(40 + i, (26 - 6 * i, 16 - 3 * i), 2, 0.7)
        below = ((p.y - ridge) / tall).clamp(0, 1.5)
        bright = 1.22 - 0.36 * below + 0.13 * needles + 0.08 * p.towards()
        p.add(ridge, p.lit(green, bright, haze))


_DRAW: dict[str, Callable[[Pictures], None]] = {
    "hills": _hills,
    "mountains": _mountains,
    "desert": _desert,
    "forest": _forest,
}
