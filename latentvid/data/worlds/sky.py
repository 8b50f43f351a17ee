"""A procedural world of skies: drifting clouds over changing ground, endless, seeded, captioned, measurable.

Every scene is a handful of named attributes and a seed. Frame n of a scene is a function of (scene, n, size), so a
clip can be rendered from anywhere and is part of any longer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latentvid.core.rng import Rng

TIMES = ("dawn", "day", "dusk", "night")
GROUNDS = ("hills", "mountains", "sea", "desert", "forest")
WINDS = ("left", "right")
SPEEDS = ("slow", "fast")
COVERS = ("wispy", "scattered", "heavy")

FPS = 12
"""Frames per second at which the drift looks like a time lapse."""

# Colours in [0, 1]: zenith and horizon of the sky, lit and shaded cloud, light on the ground, disc and its glow.
PALETTE: dict[str, dict[str, tuple[float, float, float]]] = {
    "dawn": {
        "zenith": (0.45, 0.55, 0.82),
        "horizon": (1.0, 0.80, 0.74),
        "lit": (1.0, 0.86, 0.84),
        "shade": (0.62, 0.56, 0.72),
        "ground": (0.72, 0.62, 0.66),
        "disc": (1.0, 0.95, 0.80),
        "glow": (0.55, 0.30, 0.18),
    },
    "day": {
        "zenith": (0.16, 0.42, 0.84),
        "horizon": (0.70, 0.86, 0.98),
        "lit": (1.0, 1.0, 1.0),
        "shade": (0.68, 0.73, 0.80),
        "ground": (1.0, 1.0, 0.98),
        "disc": (1.0, 1.0, 0.92),
        "glow": (0.35, 0.32, 0.22),
    },
    "dusk": {
        "zenith": (0.22, 0.16, 0.40),
        "horizon": (0.98, 0.46, 0.16),
        "lit": (0.98, 0.52, 0.30),
        "shade": (0.34, 0.20, 0.36),
        "ground": (0.44, 0.28, 0.26),
        "disc": (1.0, 0.78, 0.40),
        "glow": (0.60, 0.26, 0.06),
    },
    "night": {
        "zenith": (0.015, 0.025, 0.085),
        "horizon": (0.07, 0.11, 0.24),
        "lit": (0.27, 0.31, 0.42),
        "shade": (0.07, 0.09, 0.16),
        "ground": (0.13, 0.15, 0.25),
        "disc": (0.94, 0.95, 0.90),
        "glow": (0.16, 0.18, 0.24),
    },
}

GROUND_COLOURS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    # far, near
    "hills": ((0.45, 0.62, 0.35), (0.27, 0.50, 0.16)),
    "mountains": ((0.58, 0.60, 0.68), (0.36, 0.36, 0.42)),
    "sea": ((0.30, 0.52, 0.66), (0.05, 0.24, 0.42)),
    "desert": ((0.93, 0.77, 0.52), (0.82, 0.56, 0.28)),
    "forest": ((0.20, 0.34, 0.24), (0.05, 0.15, 0.09)),
}


@dataclass(frozen=True)
class SkyScene:
    """What a clip shows. The words are what captions say; the numbers are jitter around them."""

    time_of_day: str
    ground: str
    wind_direction: str
    wind_speed: str
    cloud_cover: str
    drift: float
    """Clouds' movement, in widths per frame, positive to the right."""
    light: tuple[float, float]
    """Place of the sun or moon: x in widths, height above the horizon in heights."""
    horizon: float
    """Height of the ground, in heights from the top."""
    tint: tuple[float, float, float]
    seed: int


def sample_scene(rng: Rng) -> SkyScene:
    """Draw a scene; equal streams give equal scenes."""
    rand = np.random.default_rng(rng.seed_of("sky"))
    pick = lambda words: words[int(rand.integers(len(words)))]  # noqa: E731
    time, ground, wind, speed = pick(TIMES), pick(GROUNDS), pick(WINDS), pick(SPEEDS)
    cover = COVERS[int(rand.choice(3, p=(0.25, 0.45, 0.30)))]
    pace = rand.uniform(0.005, 0.009) if speed == "slow" else rand.uniform(0.016, 0.024)
    low = time in ("dawn", "dusk")
    return SkyScene(
        time,
        ground,
        wind,
        speed,
        cover,
        drift=float(pace if wind == "right" else -pace),
        light=(float(rand.uniform(0.12, 0.88)), float(rand.uniform(0.04, 0.14) if low else rand.uniform(0.28, 0.52))),
        horizon=float(rand.uniform(0.64, 0.74)),
        tint=tuple(float(v) for v in rand.normal(0, 0.018, 3)),  # type: ignore[arg-type]
        seed=int(rand.integers(1 << 40)),
    )


def render(scene: SkyScene, num_frames: int, height: int, width: int, *, start_frame: int = 0) -> np.ndarray:
    """Return frames start_frame .. of the scene, uint8 [t 3 h w]."""
    fields = _fields(scene, height, width)
    frames = [_frame(scene, fields, start_frame + k, height, width) for k in range(num_frames)]
    return np.stack(frames)


def caption(scene: SkyScene, rng: Rng) -> str:
    """Return one of many wordings; each attribute keeps its word, and is left out in one wording of ten."""
    rand = np.random.default_rng(rng.seed_of("caption"))
    said = {name: rand.random() > 0.1 for name in ("time", "ground", "wind", "speed", "cover")}
    return _word(scene, said, int(rand.integers(len(_TEMPLATES))))


def canonical_caption(scene: SkyScene) -> str:
    """Return the wording that names every attribute.

    >>> canonical_caption(sample_scene(Rng(3))).split()[-2:]  # doctest: +SKIP
    ['at', 'dusk']
    """
    return _word(scene, dict.fromkeys(("time", "ground", "wind", "speed", "cover"), True), 0)


_TEMPLATES = (
    "{cover} clouds drifting {speed} {wind} over {ground} {time}",
    "{ground} {time}, {cover} clouds moving {speed} {wind}",
    "a timelapse of {cover} clouds {time} over {ground}, blowing {speed} {wind}",
    "a sky {time} with {cover} clouds above {ground}, drifting {speed} {wind}",
    "{cover} clouds {time}, moving {speed} {wind}, {ground} below",
)
_GROUND_WORDS = {
    "hills": "green hills",
    "mountains": "mountains",
    "sea": "the sea",
    "desert": "the desert",
    "forest": "a forest",
}
_TIME_WORDS = {"dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "at night"}
_SPEED_WORDS = {"slow": "slowly", "fast": "fast"}
_WIND_WORDS = {"left": "to the left", "right": "to the right"}


def _word(scene: SkyScene, said: dict[str, bool], template: int) -> str:
    words = {
        "time": _TIME_WORDS[scene.time_of_day],
        "ground": _GROUND_WORDS[scene.ground],
        "wind": _WIND_WORDS[scene.wind_direction],
        "speed": _SPEED_WORDS[scene.wind_speed],
        "cover": scene.cloud_cover,
    }
    text = _TEMPLATES[template].format(**{name: words[name] if said[name] else "" for name in words})
    for loose, mended in (("over  ", " "), ("over ,", ","), ("above ,", ","), (" ,", ",")):
        text = text.replace(loose, mended)
    text = " ".join(text.split()).strip(" ,")
    return text.removesuffix(" over").removesuffix(" below").strip(" ,")


@dataclass(frozen=True)
class _Fields:
    """What of a scene does not change from frame to frame."""

    sky: np.ndarray  # [3 h w], gradient, glow and disc
    low: np.ndarray  # [h n] near clouds' noise, tileable along n
    high: np.ndarray  # [h n] far, thin clouds' noise
    haze: np.ndarray  # [h 1] how much a cloud at this height fades into the sky
    stars: np.ndarray  # [h w] brightness
    star_phase: np.ndarray
    ground: np.ndarray  # [3 h w]
    cover: np.ndarray  # [h w] share of the ground in a pixel
    glitter: np.ndarray | None  # [h n] sea only


@lru_cache(maxsize=4)
def _fields(scene: SkyScene, height: int, width: int) -> _Fields:
    rand = np.random.default_rng(scene.seed)
    colours = {k: np.array(v, np.float32) for k, v in PALETTE[scene.time_of_day].items()}
    tint = np.array(scene.tint, np.float32)
    y = (np.arange(height, dtype=np.float32) + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / width
    rise = np.clip(1 - y / scene.horizon, 0, 1)  # 0 at the horizon, 1 at the top
    mix = (rise**0.75)[:, None, None]
    sky = colours["horizon"] * (1 - mix) + colours["zenith"] * mix + tint  # [h 1 3]
    sky = np.broadcast_to(sky, (height, width, 3)).transpose(2, 0, 1).copy()
    light_y = scene.horizon - scene.light[1]
    distance = np.hypot((x[None] - scene.light[0]) * width / height, y[:, None] - light_y)
    for reach, strength in ((0.40, 0.55), (0.13, 0.75)):
        sky += colours["glow"][:, None, None] * strength * np.exp(-((distance / reach) ** 2))
    radius = 0.055 if scene.time_of_day != "day" else 0.048
    disc = np.clip((radius - distance) * height * 0.9 + 0.5, 0, 1)
    if scene.time_of_day == "night":
        bite = np.hypot((x[None] - scene.light[0] - 0.028) * width / height, y[:, None] - light_y + 0.012)
        disc = disc * (1 - 0.85 * np.clip((radius * 0.92 - bite) * height * 0.9 + 0.5, 0, 1))
    sky = sky * (1 - disc) + colours["disc"][:, None, None] * disc
    columns = _columns(width)
    rows = 4.3 / (rise * 0.7 + 0.42)  # clouds grow flatter and denser towards the horizon
    low = _sample_rows(_noise(rand, 128, columns, 1.75, stretch=2.2), rows * 14)
    high = _sample_rows(_noise(rand, 128, columns, 1.5, stretch=5.0), rows * 11 + 40)
    ground, cover = _ground(scene, rand, colours, height, width, y, x)
    stars = np.zeros((height, width), np.float32)
    if scene.time_of_day == "night":
        for _ in range(46):
            sy, sx = rand.uniform(0, scene.horizon * 0.92), rand.uniform(0, 1)
            spot = ((x[None] - sx) * width) ** 2 + ((y[:, None] - sy) * height) ** 2
            stars += rand.uniform(0.25, 0.95) * np.exp(-spot / (2 * (0.0062 * height) ** 2))
    glitter = None
    if scene.ground == "sea":
        glitter = _sample_rows(_noise(rand, 128, columns, 1.0, stretch=4.0), np.arange(height) * 128.0 / height * 1.9)
    haze = np.clip(rise * 7, 0, 1)[:, None]
    return _Fields(sky, low, high, haze, stars, rand.uniform(0, 6.28, (height, width)), ground, cover, glitter)


def _frame(scene: SkyScene, fields: _Fields, n: int, height: int, width: int) -> np.ndarray:
    colours = {k: np.array(v, np.float32)[:, None, None] for k, v in PALETTE[scene.time_of_day].items()}
    drift = scene.drift * n * width
    low = _scroll(fields.low, drift, width)
    towards_light = _scroll(fields.low, drift + (3.0 if scene.light[0] < 0.5 else -3.0) * width / 128, width)
    high = _scroll(fields.high, drift * 0.7, width)
    threshold = {"wispy": 1.75, "scattered": 0.25, "heavy": -1.05}[scene.cloud_cover]
    dense = _smooth((low - threshold) / 1.25) * (0.95 if scene.cloud_cover != "wispy" else 0.7)
    thin = _smooth((high - (0.35 if scene.cloud_cover == "wispy" else 0.6)) / 1.8)
    thin = thin * (0.62 if scene.cloud_cover == "wispy" else 0.4)
    light = np.clip(0.55 + 0.35 * (low - towards_light) - 0.16 * (low - threshold), 0, 1)
    if scene.cloud_cover == "heavy":
        light = light * 0.8
    sky = fields.sky
    if scene.time_of_day == "night":
        sky = sky + fields.stars * (0.75 + 0.25 * np.sin(fields.star_phase + n * 0.9))
    sky = sky + (colours["lit"] - sky) * (thin * fields.haze)
    cloud = colours["shade"] + (colours["lit"] - colours["shade"]) * light
    sky = sky + (cloud - sky) * (dense * (0.35 + 0.65 * fields.haze))
    ground = fields.ground
    if fields.glitter is not None:
        wave = _scroll(fields.glitter, n * 0.45 * width / 128, width) + _scroll(fields.glitter[::-1], -n * 0.3, width)
        x = (np.arange(width, dtype=np.float32) + 0.5) / width
        lane = np.exp(-(((x - scene.light[0]) / 0.10) ** 2))[None]
        ground = ground * (1 + 0.10 * wave) + colours["disc"] * 0.5 * lane * _smooth((wave - 0.6) / 1.6)
    image = sky + (ground - sky) * fields.cover
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _ground(
    scene: SkyScene,
    rand: np.random.Generator,
    colours: dict[str, np.ndarray],
    height: int,
    width: int,
    y: np.ndarray,
    x: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    far, near = (np.array(c, np.float32) for c in GROUND_COLOURS[scene.ground])
    layers = {  # (base below the horizon, amplitude, roughness) from far to near
        "hills": ((0.0, 0.045, 2.6), (0.07, 0.05, 2.8), (0.16, 0.05, 3.0)),
        "mountains": ((-0.06, 0.17, 1.75), (0.05, 0.10, 1.8), (0.19, 0.05, 2.0)),
        "sea": ((0.0, 0.0, 3.0),),
        "desert": ((0.02, 0.02, 3.2), (0.10, 0.04, 3.4), (0.20, 0.05, 3.4)),
        "forest": ((0.0, 0.030, 1.2), (0.06, 0.034, 1.1), (0.14, 0.04, 1.0)),
    }[scene.ground]
    image = np.zeros((3, height, width), np.float32)
    total = np.zeros((height, width), np.float32)
    for k, (base, amplitude, roughness) in enumerate(layers):
        ridge = scene.horizon + base - amplitude * _line(rand, width, roughness)
        cover = np.clip((y[:, None] - ridge[None]) * height + 0.5, 0, 1)
        depth = k / max(1, len(layers) - 1) if len(layers) > 1 else 0.0
        colour = (far + (near - far) * depth)[:, None, None] * np.ones((1, height, width), np.float32)
        below = np.clip((y[:, None] - ridge[None]) / 0.3, 0, 1)
        if scene.ground == "sea":
            colour = far[:, None, None] + (near - far)[:, None, None] * np.sqrt(below)[None]
        elif scene.ground == "mountains" and k == 0:
            snow = _smooth((0.045 - (y[:, None] - ridge[None])) / 0.03 + 0.35 * _line(rand, width, 1.2)[None])
            colour = colour + (0.95 - colour) * snow * 0.9
        else:
            colour = colour * (1.06 - 0.35 * below)
        lit = colours["ground"][:, None, None] * colour
        haze = 0.38 * (1 - depth) if scene.ground != "sea" else 0.15
        lit = lit * (1 - haze) + colours["horizon"][:, None, None] * haze * np.exp(-below * 3)
        if scene.ground == "sea":
            lit = 0.72 * lit + 0.28 * colours["zenith"][:, None, None] * (0.6 + 0.4 * below)
        image = image * (1 - cover) + lit * cover
        total = np.maximum(total, cover)
    return image / np.maximum(total, 1e-3), total


def _columns(width: int) -> int:
    """Length of the tileable noise: several screens, so that drifting clouds do not soon come round again."""
    return 4 * width


def _noise(rand: np.random.Generator, rows: int, columns: int, slope: float, *, stretch: float) -> np.ndarray:
    """Return tileable noise with spectrum 1/f^slope, unit variance, features `stretch` times as wide as high."""
    fy = np.fft.fftfreq(rows)[:, None] * rows
    fx = np.fft.rfftfreq(columns)[None] * columns * rows * stretch / columns
    frequency = np.hypot(fy, fx)
    amplitude = np.where(frequency < 2.0, 0, np.maximum(frequency, 2.0) ** -slope) * np.exp(-((frequency / 60) ** 2))
    phase = rand.uniform(0, 2 * np.pi, amplitude.shape)
    field = np.fft.irfft2(amplitude * np.exp(1j * phase), s=(rows, columns))
    return (field / field.std()).astype(np.float32)


def _line(rand: np.random.Generator, width: int, slope: float) -> np.ndarray:
    """Return a smooth random line along x with values mostly in [-1, 1]."""
    frequency = np.arange(1, 40)
    amplitude = frequency ** (-slope / 1.0)
    phase = rand.uniform(0, 2 * np.pi, len(frequency))
    x = (np.arange(width) + 0.5) / width * 1.6
    line = (amplitude[:, None] * np.sin(2 * np.pi * frequency[:, None] * x[None] * 0.8 + phase[:, None])).sum(0)
    return (line / np.sqrt((amplitude**2).sum())).astype(np.float32)


def _sample_rows(field: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the field at fractional rows, wrapping round."""
    first = np.floor(rows).astype(int)
    part = (rows - first)[:, None].astype(np.float32)
    return field[first % len(field)] * (1 - part) + field[(first + 1) % len(field)] * part


def _scroll(field: np.ndarray, shift: float, width: int) -> np.ndarray:
    """Return `width` columns of the field moved right by `shift` pixels, wrapping round."""
    whole = int(np.floor(-shift))
    part = np.float32(-shift - whole)
    index = (np.arange(width + 1) + whole) % field.shape[1]
    window = field[:, index]
    return window[:, :-1] * (1 - part) + window[:, 1:] * part


def _smooth(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)
