"""Reads back from pixels what a clip of the sky world shows: time of day, ground, cloud cover and wind.

Nothing of the scene is known here. Colours are compared, at 32x32 pixels so that blur does not matter, with the mean
colours of rendered scenes (`sky_prototypes.py`, fitted by a script); wind is the drift at which the changes between
frames repeat themselves (phase correlation along x, summed over rows and lags).
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from latentvid.data.worlds.fields import Array
from latentvid.data.worlds.sky_captions import COVERS, GROUNDS, TIMES

GRID = 32
# Widths per frame: slower than this is no wind; the slowest wind of the world is three times as fast.
STILL_BELOW = 0.0015
_FASTEST = 0.05
_MAX_WIDTH = 64
_FINEST_CYCLES = 8.0
_LEAST_COHERENCE = 0.15
_LAGS = (1, 2, 3, 4)


class SkyReading(TypedDict):
    """What `measure` found, in the words of the captions."""

    time_of_day: str
    ground: str
    cloud_cover: str
    wind_direction: str
    """left, right, or still."""
    wind_px_per_frame: float
    """In pixels of the clip as given, positive to the right."""


def measure(clip: NDArray[np.uint8] | Tensor) -> SkyReading:
    """Read a clip [t 3 h w], uint8. One frame has no wind."""
    from latentvid.data.worlds.sky_prototypes import GROUND, SKY

    frames = torch.as_tensor(clip)
    if frames.ndim != 4 or frames.shape[1] != 3 or not len(frames) or frames.dtype != torch.uint8:
        raise ValueError(f"measure needs frames uint8 [t 3 h w], not {frames.dtype} {list(frames.shape)}")
    sky, ground = features(frames)
    time, cover = _nearest(sky, SKY, [f"{t} {c}" for t in TIMES for c in COVERS]).split()
    under = _nearest(ground, GROUND, [f"{time} {g}" for g in GROUNDS]).split()[1]
    drift = wind(frames)
    direction = "still" if abs(drift) < STILL_BELOW else "right" if drift > 0 else "left"
    return {
        "time_of_day": time,
        "ground": under,
        "cloud_cover": cover,
        "wind_direction": direction,
        "wind_px_per_frame": drift * frames.shape[-1],
    }


def features(frames: Tensor) -> tuple[Array, Array]:
    """Return what sky and ground are told by: for the sky colours, unevenness and change; for the ground also shape."""
    few = frames[:: max(1, len(frames) // 8)].float() / 255
    small = F.interpolate(few, (GRID, GRID), mode="area").numpy()
    still = small.mean(0)  # [3 32 32]
    bands = [still[:, a:b].mean((1, 2)) for a, b in ((0, 4), (4, 9), (9, 14))]
    top = still[:, :14]
    uneven = (top - top.mean(2, keepdims=True)).std((1, 2))
    change = small[:, :, :14].std(0).mean((1, 2))
    sky = np.concatenate([*bands, np.sqrt(uneven), np.sqrt(change)])
    low = still[:, 17:]
    colors = [still[:, a:b].mean((1, 2)) for a, b in ((17, 20), (20, 23), (23, 27), (27, 32))]
    gray = low.mean(0)
    ragged = [np.sqrt(np.abs(np.diff(gray[a:b], axis=1)).mean()) for a, b in ((0, 3), (3, 6), (6, 10), (10, 15))]
    waves = np.sqrt(small[:, :, 23:].mean(1).std(0).mean())
    peaks = np.sqrt((still[:, 12:18].mean(0) - still[:, 12:18].mean((0, 2))[:, None]).std())
    ground = np.concatenate([*colors, np.array([*ragged, waves, peaks])])
    return sky.astype(np.float32), ground.astype(np.float32)


def wind(frames: Tensor) -> float:
    """Return the drift of the upper half of the picture in widths per frame, positive to the right; 0 where unclear."""
    if len(frames) < 3:
        return 0.0
    moving = _changes(frames)
    count, _, width = moving.shape
    spectrum = np.fft.rfft(moving * np.hanning(width + 2)[1:-1], 2 * width, axis=-1)
    power = (np.abs(spectrum) ** 2).mean((0, 1))
    cycles = np.fft.rfftfreq(2 * width) * width  # per width of the picture
    # Half whitening: coarse clouds outweigh fine noise, but not by all of their power.
    weight = np.exp(-((cycles / _FINEST_CYCLES) ** 2)) / np.sqrt(power + 1e-3 * power.max() + 1e-9)
    weight[0] = 0
    speeds = np.arange(-_FASTEST, _FASTEST + 1e-9, 0.00025)
    lags = [lag for lag in _LAGS if lag < count]
    score = np.zeros(len(speeds))
    for lag in lags:
        cross = (np.conj(spectrum[:-lag]) * spectrum[lag:]).mean((0, 1)) * weight
        score += (np.exp(2j * np.pi * speeds[:, None] * lag * cycles) @ cross).real
    best = int(score.argmax())
    is_clear = len(lags) > 0 and score[best] > _LEAST_COHERENCE * len(lags) * float(power @ weight)
    return float(speeds[best]) if is_clear else 0.0


def _changes(frames: Tensor) -> NDArray[np.float64]:
    """Return what changes between frames of the upper half, [t 16 w]: all that stands still is gone."""
    sky = frames[:, :, : max(1, frames.shape[-2] // 2)].float().mean(1, keepdim=True)
    height, width = sky.shape[-2:]
    if width > _MAX_WIDTH:
        sky = F.interpolate(sky, (max(1, round(height * _MAX_WIDTH / width)), _MAX_WIDTH), mode="area")
    # An opening takes away stars, whose twinkling would speak for no wind.
    sky = F.max_pool2d(-F.max_pool2d(-sky, 3, 1, 1), 3, 1, 1)
    step = 2 if len(sky) >= 6 else 1
    change = F.interpolate(sky[step:] - sky[:-step], (16, sky.shape[-1]), mode="area")[:, 0].double().numpy()
    return np.asarray(change - change.mean(-1, keepdims=True))


def _nearest(values: Array, prototypes: dict[str, tuple[int, ...]], names: list[str]) -> str:
    spread = np.asarray(prototypes["spread"])
    distances = [float((((1000 * values - np.asarray(prototypes[n])) / spread) ** 2).sum()) for n in names]
    return names[int(np.argmin(distances))]
