"""Fractal noise of `fields`, many fields at a time in PyTorch on any device, from the same lattices.

Lattices are drawn on the host by the generators and in the order of `fields`, so that both make the same pictures (or
on the device: other pictures of the same law); everything per pixel runs on the device. b counts scenes, t frames, S
lattice columns over all octaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentvid.data.worlds.fields import SPLINE_VARIANCE, lattice_shapes, rms, spline_weights
from latentvid.data.worlds.grounds import Canvas


def upload(values: NDArray[np.generic] | Sequence[float], device: torch.device) -> Tensor:
    """Return the numbers on the device, in their own type (float64 as float32 where a device lacks it)."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    if host.dtype == torch.float64:
        host = host.to(real_dtype(device))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def real_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of places in a lattice, which a film's later frames put far from its origin."""
    return torch.float32 if device.type == "mps" else torch.float64


class Lattices:
    """Draws normals for many seeds at once, by the threads of a pool or, without one, on the device itself.

    Those of the pool are those of `fields`; those of the device are others.
    """

    def __init__(self, device: torch.device, pool: Executor | None) -> None:
        self.device, self.pool = device, pool

    def normals(self, seeds: Sequence[int | None], count: int) -> Tensor:
        """Return the first `count` float32 normals of each seed's generator, zeros for None, [len(seeds), count]."""
        if self.pool is None:
            drawn = torch.zeros(len(seeds), count, device=self.device)
            generator = torch.Generator(self.device)
            for seed, row in zip(seeds, drawn, strict=True):
                if seed is not None:
                    row.normal_(generator=generator.manual_seed(seed))
            return drawn
        host = torch.empty(len(seeds), count, device="cpu", pin_memory=self.device.type == "cuda")

        def draw(seed: int | None, row: NDArray[np.float32]) -> None:
            if seed is None:
                row[:] = 0
            else:
                np.random.default_rng(seed).standard_normal(dtype=np.float32, out=row)

        # NumPy lets other threads run while it fills an array.
        list(self.pool.map(draw, seeds, host.numpy()))
        return host.to(self.device, non_blocking=True)

    def fields(self, seeds: Sequence[int | None], octaves: int) -> Tensor:
        """Return the lattices of scrolling fields of these seeds, all octaves in a row."""
        return self.normals(seeds, sum(2 * columns * rows for columns, rows in lattice_shapes(octaves)))

    def lines(self, seeds: Sequence[int], octaves: int) -> Tensor:
        """Return the lattices of noise along a line of these seeds, [len(seeds), 64 octaves]."""
        drawn = [np.random.default_rng(seed).standard_normal(64 * octaves).astype(np.float32) for seed in seeds]
        return upload(np.stack(drawn), self.device)


class Grid:
    """Pixel centres of a picture on a device, with the weights that read lattices at them, each made once."""

    def __init__(self, height: int, width: int, oversampling: int, device: torch.device) -> None:
        self.canvas = Canvas.of(height, width, oversampling)
        self.device = device
        self.x, self.y = torch.from_numpy(self.canvas.x).to(device), torch.from_numpy(self.canvas.y).to(device)
        self._weights: dict[tuple[object, ...], list[Tensor]] = {}

    def noise_1d(self, lattices: Tensor, axis: str, frequency: float, octaves: int, gain: float) -> Tensor:
        """Return what `fields.noise_1d` makes of the lattices [b, 64 octaves] along "x" or "y", [b, n]."""

        def weights() -> list[NDArray[np.float32]]:
            places = getattr(self.canvas, axis)
            scale = 1 / (rms(octaves, gain) * SPLINE_VARIANCE**0.5)
            parts = [
                spline_weights(places * frequency * 2**k + 17.3 * k, 64) * (scale * gain**k) for k in range(octaves)
            ]
            return [np.concatenate(parts)]

        return lattices @ self._made_once((axis, frequency, octaves, gain), weights)[0]

    def noise_2d(self, lattices: Tensor, frequency: tuple[float, float], octaves: int, gain: float) -> Tensor:
        """Return what `fields.noise_2d` makes of the lattices of fields [b, *], [b, h, w]."""
        shapes = lattice_shapes(octaves)

        def weights() -> list[NDArray[np.float32]]:
            x, y = self.canvas.x, self.canvas.y
            scale = 1 / (rms(octaves, gain) * SPLINE_VARIANCE)
            across = [spline_weights(x * (frequency[0] * 2**k) + 3.1 * k, n) for k, (n, _) in enumerate(shapes)]
            down = [
                spline_weights(y * frequency[1] * 2**k + 9.7 * k, n) * (scale * gain**k)
                for k, (_, n) in enumerate(shapes)
            ]
            return [np.concatenate(across), *down]

        across, *down = self._made_once(("plane", frequency, octaves, gain), weights)
        parts, offset = [], 0
        for (columns, rows), weight in zip(shapes, down, strict=True):
            lattice = lattices[:, offset : offset + columns * rows].reshape(-1, columns, rows)
            parts.append(lattice @ weight)
            offset += 2 * columns * rows  # the second half is what a field turns into with time
        return torch.cat(parts, dim=1).transpose(1, 2) @ across

    def _made_once(self, key: tuple[object, ...], weights: Callable[[], list[NDArray[np.float32]]]) -> list[Tensor]:
        if key not in self._weights:
            made = [torch.from_numpy(np.asarray(w, np.float32)).to(self.device) for w in weights()]
            self._weights[key] = made
        return self._weights[key]


@lru_cache(maxsize=8)
def grid(height: int, width: int, oversampling: int, device: torch.device) -> Grid:
    """Return the grid of a picture of this size; the last few are kept."""
    return Grid(height, width, oversampling, device)


class ScrollingFields:
    """A batch of `fields.ScrollingField`, each with its own rows and frequency."""

    def __init__(
        self, lattices: Tensor, rows: Tensor, frequency: NDArray[np.float64], octaves: int, gain: float, turn: float
    ) -> None:
        """Read the lattices [b, *] at the rows [b, h]; `frequency` [b, 2] is that along x and y."""
        across, down = upload(frequency, rows.device).unbind(1)
        scale = 1 / (rms(octaves, gain) * SPLINE_VARIANCE)
        self.octaves, self.turn, self.across = octaves, turn, across[:, None, None]
        self.highest = float(frequency[:, 0].max())
        parts, offset = [], 0
        for k, (columns, depth) in enumerate(lattice_shapes(octaves)):
            count = 2 * columns * depth
            places = rows.to(across.dtype) * (down[:, None] * 2**k) + 9.7 * k
            weights = device_spline_weights(places, depth) * (scale * gain**k)
            lattice = lattices[:, offset : offset + count].reshape(-1, 2 * columns, depth)
            parts.append((lattice @ weights).unflatten(1, (2, columns)))
            offset += count
        read = torch.cat(parts, dim=2)  # [b 2 S h]
        self.batch, _, self.columns, height = read.shape
        self.read = read.reshape(-1, height)  # [b*2*S h]

    def at(self, x: Tensor, time: Tensor, span: float) -> Tensor:
        """Return the fields at places `x` [b, t or 1, w], which lie within `span`, and times [b, t], as [b t h w]."""
        columns, weights, angles = [], [], []
        offset = 0
        for k, (size, _) in enumerate(lattice_shapes(self.octaves)):
            places = x * (self.across * 2**k) + 3.1 * k
            start = places.amin(-1, keepdim=True).floor() - 1
            # Enough columns for every scene: those that the span covers and the splines' reach to both sides.
            count = int(span * self.highest * 2**k) + 6
            window = torch.arange(count, device=x.device)
            columns.append(offset + (start.long() + window) % size)
            weights.append(device_spline_weights(places - start, count))
            angles.append((time * (self.turn * 1.5**k))[..., None].expand(-1, -1, count))
            offset += size
        first = torch.cat(columns, dim=-1)  # [b, t or 1, K]
        first = first + (torch.arange(self.batch, device=x.device) * (2 * self.columns))[:, None, None]
        angle = torch.cat(angles, dim=-1)[..., None]
        left = self.read[first] * angle.cos().float()
        left += self.read[first + self.columns] * angle.sin().float()  # [b t K h]
        return left.transpose(-1, -2) @ torch.cat(weights, dim=-2)


def device_spline_weights(at: Tensor, size: int) -> Tensor:
    """Return what `fields.spline_weights` returns for each row of places `at` [.., n], [.., size, n]."""
    base = at.floor()
    f = (at - base).float()
    g = 1 - f
    taps = torch.stack([g * g * g, (3 * f - 6) * f * f + 4, (3 * g - 6) * g * g + 4, f * f * f], dim=-2) / 6
    rows = (base.long().unsqueeze(-2) + torch.arange(-1, 3, device=at.device)[:, None]) % size
    weights = torch.zeros((*at.shape[:-1], size, at.shape[-1]), device=at.device)
    return weights.scatter_(-2, rows, taps)


def device_smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """Return 0 below `low`, 1 above `high`, smooth between."""
    t = ((x - low) * (1 / (high - low))).clamp(0, 1)
    return t * t * (3 - 2 * t)
