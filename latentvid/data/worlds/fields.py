"""Fractal noise that can be evaluated anywhere: lattices of normals under cubic B-splines, summed over octaves.

Splines make the field a product of two thin matrices with a lattice between them, so a field that scrolls by any
fraction of a pixel costs one matrix product per frame and is never blurred by resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
# Mean of the sum of squared weights of a cubic B-spline: the variance left of unit normals on the lattice.
SPLINE_VARIANCE = 0.4794


def spline_weights(at: NDArray[np.floating], size: int) -> Array:
    """Return the matrix [size, n] that reads a periodic lattice of `size` points at the places `at` [n]."""
    base = np.floor(at)
    f = (at - base).astype(np.float32)
    g = 1 - f
    taps = np.stack([g * g * g, (3 * f - 6) * f * f + 4, (3 * g - 6) * g * g + 4, f * f * f]) / np.float32(6)
    rows = (base.astype(np.int64) + np.arange(-1, 3)[:, None]) % size
    weights = np.zeros((size, len(at)), np.float32)
    weights[rows, np.arange(len(at))] = taps
    return weights


def noise_1d(seed: int, x: NDArray[np.floating], frequency: float, octaves: int = 4, gain: float = 0.5) -> Array:
    """Return unit-variance fractal noise along x [n] (any unit); `frequency` lattice points per unit."""
    rng = np.random.default_rng(seed)
    total = np.zeros(len(x), np.float32)
    for k in range(octaves):
        lattice = rng.standard_normal(64).astype(np.float32)
        total += gain**k * (lattice @ spline_weights(x * frequency * 2**k + 17.3 * k, 64))
    return total / np.float32(rms(octaves, gain) * SPLINE_VARIANCE**0.5)


def noise_2d(
    seed: int,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    frequency: tuple[float, float],
    octaves: int = 4,
    gain: float = 0.5,
) -> Array:
    """Return unit-variance fractal noise [len(y), len(x)]; `frequency` is lattice points per unit along x and y."""
    field = ScrollingField.make(seed, y, frequency, octaves, gain)
    return field.at(x, 0.0)


@dataclass(frozen=True)
class ScrollingField:
    """Fractal noise with fixed rows that is read along x at any place and turns slowly into other noise.

    Octaves have unlike periods, so the sum does not repeat in any film one would watch.
    """

    first: Array
    """All octaves' lattice columns, already read at the rows, [columns, h]."""
    second: Array
    """The fields that the first ones turn into."""
    sizes: tuple[int, ...]
    """Columns per octave."""
    frequency: tuple[float, ...]
    """Columns per unit of x, per octave."""
    turn: tuple[float, ...]
    """Radians per unit of time, per octave."""

    @classmethod
    def make(
        cls,
        seed: int,
        y: NDArray[np.floating],
        frequency: tuple[float, float],
        octaves: int,
        gain: float = 0.5,
        turn: float = 0.0,
    ) -> ScrollingField:
        """Fix the rows `y` [h]. `turn` is the slowest octave's rate; finer ones turn faster."""
        rng = np.random.default_rng(seed)
        scale = 1 / (rms(octaves, gain) * SPLINE_VARIANCE)
        shapes = lattice_shapes(octaves)
        parts = []
        for k, (size, rows) in enumerate(shapes):
            lattice = rng.standard_normal((2, size, rows), dtype=np.float32)
            parts.append(lattice @ (spline_weights(y * frequency[1] * 2**k + 9.7 * k, rows) * (scale * gain**k)))
        first, second = np.concatenate(parts, axis=1).astype(np.float32)
        rates = (turn * 1.5**k for k in range(octaves))
        sizes = tuple(size for size, _ in shapes)
        return cls(first, second, sizes, tuple(frequency[0] * 2**k for k in range(octaves)), tuple(rates))

    def at(self, x: NDArray[np.floating], time: float, num_rows: int | None = None) -> Array:
        """Return the first `num_rows` rows (all of them) of the field at places `x` and `time`, [h, len(x)]."""
        low, high = float(x.min()), float(x.max())
        columns, weights, turned = [], [], []
        offset = 0
        for k, (size, f, turn) in enumerate(zip(self.sizes, self.frequency, self.turn, strict=True)):
            start = int(np.floor(low * f + 3.1 * k)) - 1
            count = int(np.floor(high * f + 3.1 * k)) + 3 - start
            columns.append(offset + np.arange(start, start + count) % size)
            weights.append(spline_weights(x * f + 3.1 * k - start, count))
            turned.append(np.full(count, turn * time))
            offset += size
        at, angle = np.concatenate(columns), np.concatenate(turned)[:, None]
        left = self.first[at, :num_rows] * np.cos(angle).astype(np.float32)
        left += self.second[at, :num_rows] * np.sin(angle).astype(np.float32)
        return np.asarray(left.T @ np.concatenate(weights), dtype=np.float32)


def smoothstep(low: float, high: float, x: Array) -> Array:
    """Return 0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return t * t * (3 - 2 * t)


def lattice_shapes(octaves: int) -> list[tuple[int, int]]:
    """Return the columns and rows of a scrolling field's lattice per octave."""
    return [(24 * 2**k + 5 * k, 28 + 5 * k) for k in range(octaves)]


def rms(octaves: int, gain: float) -> float:
    """Return the root of the sum of squares of the octaves' amplitudes."""
    return float(np.sqrt(sum(gain ** (2 * k) for k in range(octaves))))
