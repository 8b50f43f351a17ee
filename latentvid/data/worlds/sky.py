"""The sky world: clouds drifting over changing grounds, by time of day, with sun, moon and stars.

A scene is drawn from a seed; every frame is a function of the scene and its number, at any size. Distances are in
picture heights, so that one scene looks the same in 64 and in 512 pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentvid.core.rng import Rng
from latentvid.data.worlds import sky_captions
from latentvid.data.worlds.fields import Array, ScrollingField, smoothstep
from latentvid.data.worlds.grounds import Canvas, Light, draw_ground
from latentvid.data.worlds.palette import PALETTES, mix, shift_hue
from latentvid.data.worlds.sky_captions import COVERS, DIRECTIONS, GROUNDS, SPEEDS, TIMES

FPS = 12
# Widths per frame.
_WIND = {"slow": (0.0075, 0.0105), "fast": (0.0210, 0.0290)}
_HORIZON = {
    "hills": (0.60, 0.66),
    "mountains": (0.56, 0.61),
    "sea": (0.60, 0.68),
    "desert": (0.64, 0.70),
    "forest": (0.58, 0.64),
}


@dataclass(frozen=True, slots=True)
class SkyScene:
    """Everything that was drawn for one scene."""

    time_of_day: str
    ground: str
    wind_direction: str
    wind_speed: str
    cloud_cover: str
    wind: float
    """Widths per frame that the near clouds move, positive to the right."""
    cover: float
    """Where in the range of its cloud cover this scene lies, 0 to 1."""
    light_x: float
    """Place of sun or moon across the picture, 0 to 1."""
    light_height: float
    """Height of sun or moon between the horizon (0) and the top (1)."""
    horizon: float
    """Heights from the top."""
    hue: float
    """Turn of all sky colours, in circles."""
    seed: int
    """Of clouds, ground and stars."""


class SkyWorld:
    """The sky as a world."""

    fps = FPS

    def sample_scene(self, rng: Rng | int) -> SkyScene:
        return sample_scene(rng)

    def turned_round(self, scene: SkyScene) -> SkyScene:
        other = DIRECTIONS[1 - DIRECTIONS.index(scene.wind_direction)]
        return replace(scene, wind_direction=other, wind=-scene.wind)

    def render(
        self, scene: SkyScene, num_frames: int, height: int = 128, width: int = 128, *, start_frame: int = 0
    ) -> NDArray[np.uint8]:
        return render(scene, num_frames, height, width, start_frame=start_frame)

    def caption(self, scene: SkyScene, rng: Rng | int) -> str:
        return sky_captions.caption(scene, rng)

    def canonical_caption(self, scene: SkyScene) -> str:
        return sky_captions.canonical_caption(scene)

    def caption_corpus(self, num_captions: int = 4000) -> Iterator[str]:
        scenes = (sample_scene(Rng(0).child(f"corpus/{i}")) for i in itertools.count())
        return sky_captions.caption_corpus(scenes, num_captions)


def sample_scene(rng: Rng | int) -> SkyScene:
    """Draw a scene: every attribute evenly, everything else within what looks right for it."""
    draw = np.random.default_rng(rng if isinstance(rng, int) else rng.seed_of("sky"))

    def pick(options: tuple[str, ...]) -> str:
        return options[int(draw.integers(len(options)))]

    time, ground, direction, speed, cover = (pick(o) for o in (TIMES, GROUNDS, DIRECTIONS, SPEEDS, COVERS))
    wind = float(draw.uniform(*_WIND[speed]))
    low = time in ("dawn", "dusk")
    return SkyScene(
        time_of_day=time,
        ground=ground,
        wind_direction=direction,
        wind_speed=speed,
        cloud_cover=cover,
        wind=wind if direction == "right" else -wind,
        cover=float(draw.uniform()),
        light_x=float(draw.uniform(0.15, 0.85)),
        light_height=float(draw.uniform(0.10, 0.30) if low else draw.uniform(0.50, 0.85)),
        horizon=float(draw.uniform(*_HORIZON[ground])),
        hue=float(draw.uniform(-0.015, 0.015)),
        seed=int(draw.integers(2**31)),
    )


def render(
    scene: SkyScene, num_frames: int, height: int = 128, width: int = 128, *, start_frame: int = 0
) -> NDArray[np.uint8]:
    """Return frames start_frame .. start_frame + num_frames - 1 of the scene, [t 3 h w], at 12 frames per second.

    A frame does not depend on which others are rendered with it.
    """
    if min(num_frames, height, width) < 1 or start_frame < 0:
        raise ValueError(f"cannot render {num_frames} frames of {height}x{width} from frame {start_frame}")
    stage = _Stage(scene, height, width)
    clip = np.empty((num_frames, 3, height, width), np.uint8)
    for i in range(num_frames):
        frame = stage.frame(start_frame + i)
        frame *= 255
        frame += 0.5
        clip[i] = np.clip(frame, 0, 255, out=frame)
    return clip


@dataclass(frozen=True, slots=True)
class CloudLayer:
    """How one layer of a scene's clouds looks and moves."""

    seed: int
    """Added to the scene's."""
    frequency: tuple[float, float]
    threshold: float
    """Thickness above which there is cloud."""
    softness: float
    """How much thicker a cloud is where it hides all it can."""
    opacity: float
    speed: float
    """Times the scene's wind."""
    lit: Array
    shadow: Array


def scene_color(scene: SkyScene, name: str) -> Array:
    """Return a colour of the palette of the scene's time of day with the scene's hue, [3]."""
    return shift_hue(getattr(PALETTES[scene.time_of_day], name), scene.hue)


def light_of(scene: SkyScene, aspect: float) -> Light:
    """Return the light that falls on the scene's ground in a picture `aspect` heights wide."""
    ambient = np.asarray(PALETTES[scene.time_of_day].ambient, np.float32)
    haze = scene_color(scene, "horizon")
    if scene.cloud_cover == "overcast":
        ambient = ambient * np.float32(0.82)
        haze = mix(haze, scene_color(scene, "cloud_shadow"), 0.45)
    return Light(ambient, haze, scene_color(scene, "glow"), scene.light_x * aspect)


def cloud_layers(scene: SkyScene) -> list[CloudLayer]:
    """Return the scene's layers of clouds, from back to front."""
    lit, shadow = scene_color(scene, "cloud_lit"), scene_color(scene, "cloud_shadow")
    if scene.cloud_cover == "clear":
        return [
            CloudLayer(seed=1, frequency=(1.6, 9.0), threshold=0.35 - 0.2 * scene.cover, softness=1.7, opacity=0.62,
                       speed=1.0, lit=lit, shadow=mix(lit, shadow, 0.35)),
        ]  # fmt: skip
    if scene.cloud_cover == "scattered":
        return [
            CloudLayer(seed=2, frequency=(2.2, 9.0), threshold=0.75, softness=1.5, opacity=0.45, speed=0.8, lit=lit,
                       shadow=mix(lit, shadow, 0.5)),
            CloudLayer(seed=1, frequency=(2.0, 5.2), threshold=0.50 - 0.35 * scene.cover, softness=0.75, opacity=0.97,
                       speed=1.0, lit=lit, shadow=shadow),
        ]  # fmt: skip
    dim = mix(lit, shadow, 0.42)
    return [
        CloudLayer(seed=2, frequency=(1.6, 6.5), threshold=-2.4, softness=1.0, opacity=1.0, speed=0.8, lit=dim,
                   shadow=mix(dim, shadow, 0.75)),
        CloudLayer(seed=1, frequency=(1.8, 5.2), threshold=-0.7 - 0.3 * scene.cover, softness=1.3, opacity=0.92,
                   speed=1.0, lit=dim, shadow=shadow * np.float32(0.88)),
    ]  # fmt: skip


class _Stage:
    """All of a scene that stands still at one size, and what moves, ready to be drawn."""

    def __init__(self, scene: SkyScene, height: int, width: int) -> None:
        self.scene = scene
        self.canvas = Canvas.of(height, width)
        self.aspect = width / height
        self.palette = PALETTES[scene.time_of_day]
        self.light_x = scene.light_x * self.aspect
        self.light_y = scene.horizon * (1 - scene.light_height)
        rows = len(self.canvas.y)
        self.backdrop, self.glow = self._backdrop()
        self.clouds = [_Clouds(scene, self, layer) for layer in cloud_layers(scene)]
        self.stars = _Stars(scene, self.canvas) if scene.time_of_day == "night" else None
        light = light_of(scene, self.aspect)
        self.sea: _Sea | None = None
        if scene.ground == "sea":
            self.sea = _Sea(scene, self.canvas, light, self._color("zenith"), self._color("disc"))
            self.sky_rows = self.sea.first_row + 1
        else:
            rgb, coverage = draw_ground(scene.ground, scene.seed + 1000, light, height, width, scene.horizon)
            covered = np.flatnonzero(coverage.min(1) >= 1)
            self.sky_rows = int(covered[0]) if len(covered) else rows
            self.ground_rgb, self.sky_share = rgb, 1 - coverage[: self.sky_rows]
        self.sky_rows = min(max(self.sky_rows, 1), rows)

    def frame(self, index: int) -> Array:
        """Return frame number `index`, [3 h w], about 0 to 1."""
        n = self.sky_rows
        sky = self.backdrop[:, :n].copy()
        if self.stars:
            sky += self.stars.at(index)[:n]
        for layer in self.clouds:
            layer.over(sky, index, self.glow[:n])
        frame = np.empty_like(self.backdrop)
        if self.sea:
            frame[:, :n] = sky
            self.sea.over(frame, index)
            return frame
        frame[:, n:] = self.ground_rgb[:, n:]
        sky *= self.sky_share
        sky += self.ground_rgb[:, :n]
        frame[:, :n] = sky
        return frame

    def _color(self, name: str) -> Array:
        return scene_color(self.scene, name)

    def _backdrop(self) -> tuple[Array, Array]:
        """Return the sky without clouds [3 h w], and how strongly the disc shines on each place [h w]."""
        down = np.clip(self.canvas.y / self.scene.horizon, 0, 1)
        zenith, middle, horizon = (self._color(n)[:, None] for n in ("zenith", "middle", "horizon"))
        first, second = smoothstep(0, 0.62, down), smoothstep(0.45, 1.0, down)
        rgb = mix(mix(zenith, middle, first), horizon, second)[:, :, None]
        dx, dy = self.canvas.x - self.light_x, (self.canvas.y - self.light_y)[:, None]
        distance = np.sqrt(dx**2 + dy**2)
        glow = np.exp(-distance / 0.10) * 0.7 + np.exp(-((dx / 0.55) ** 2) - (dy / 0.26) ** 2) * 0.5
        rgb = mix(rgb, self._color("glow")[:, None, None], (glow * self.palette.glow_strength).astype(np.float32))
        radius = 0.045 if self.scene.time_of_day == "night" else 0.05
        soft = max(0.006, 1.0 / len(self.canvas.y))
        disc = smoothstep(radius + soft, radius - soft, distance)
        face = self._color("disc")[:, None, None] * np.ones_like(disc)
        if self.scene.time_of_day == "night":
            face = face * (1 - 0.16 * np.exp(-(((dx - 0.012) / 0.016) ** 2) - ((dy + 0.008) / 0.02) ** 2))
        corona = 0.55 * np.exp(-np.maximum(distance - radius, 0) / 0.022)
        if self.scene.time_of_day == "night":
            corona = 0.5 * corona
        rgb = mix(rgb, self._color("disc")[:, None, None], corona.astype(np.float32))
        return mix(rgb, face, disc), glow.astype(np.float32)


class _Clouds:
    """A layer of clouds that drifts as one and slowly changes shape."""

    def __init__(self, scene: SkyScene, stage: _Stage, layer: CloudLayer) -> None:
        self.x = stage.canvas.x.astype(np.float64)
        self.threshold, self.softness, self.opacity = layer.threshold, layer.softness, layer.opacity
        self.per_frame = scene.wind * layer.speed * stage.aspect
        self.lit, self.shadow = layer.lit[:, None, None], layer.shadow[:, None, None]
        # Rows crowd together towards the horizon, as a ceiling of clouds does.
        y = stage.canvas.y / scene.horizon
        rows = y * (0.55 + 0.35 * y) * scene.horizon
        seed, frequency = scene.seed + layer.seed, layer.frequency
        self.field = ScrollingField.make(seed, rows, frequency, octaves=5, gain=0.52, turn=0.008)
        # The same field a step nearer to the light: thicker there means shadow here.
        self.reach = np.clip((stage.light_x - self.x) / 0.5, -1, 1) * 0.035
        self.toward = ScrollingField.make(seed, rows - 0.028, frequency, octaves=4, gain=0.52, turn=0.008)
        # Far clouds thin out into the haze.
        self.fade = (1 - 0.55 * smoothstep(0.75, 1.0, y.astype(np.float32)))[:, None]

    def over(self, sky: Array, index: int, glow: Array) -> None:
        """Lay the layer over `sky` [3 h w], in place."""
        n = sky.shape[1]
        x = self.x - self.per_frame * index
        thickness = self.field.at(x, float(index), n)
        toward = self.toward.at(x + self.reach, float(index), n)
        alpha = smoothstep(self.threshold, self.threshold + self.softness, thickness)
        alpha *= self.fade[:n]
        alpha *= np.float32(self.opacity)
        light = (thickness - toward) * np.float32(0.42)
        light -= (thickness - np.float32(self.threshold)) * np.float32(0.16)
        light += glow * np.float32(0.45) + np.float32(0.80)
        np.clip(light, 0, 1.1, out=light)
        cloud = self.shadow + (self.lit - self.shadow) * light
        cloud -= sky
        cloud *= alpha
        sky += cloud


class _Stars:
    """Stars that twinkle, each a soft point."""

    def __init__(self, scene: SkyScene, canvas: Canvas) -> None:
        draw = np.random.default_rng(scene.seed + 77)
        count = int(70 * max(1.0, float(canvas.x[-1])))
        x, y = draw.uniform(0, float(canvas.x[-1]), count), draw.uniform(0, scene.horizon, count)
        self.bright = (0.25 + 0.75 * draw.uniform(size=count) ** 3).astype(np.float32)
        self.phase, self.rate = draw.uniform(0, 2 * np.pi, count), draw.uniform(0.15, 0.5, count)
        radius = max(0.0045, 0.55 / len(canvas.y)) * (0.7 + 0.6 * self.bright)
        self.across = np.exp(-(((canvas.x - x[:, None]) / radius[:, None]) ** 2)).astype(np.float32)
        self.down = np.exp(-(((canvas.y - y[:, None]) / radius[:, None]) ** 2)).astype(np.float32)
        self.down *= smoothstep(1.0, 0.6, (canvas.y / scene.horizon).astype(np.float32))

    def at(self, index: int) -> Array:
        """Return what the stars add to the sky, [h w]."""
        twinkle = self.bright * (0.75 + 0.25 * np.sin(self.phase + self.rate * index)).astype(np.float32)
        return np.asarray(self.down.T @ (self.across * twinkle[:, None]), np.float32)


class _Sea:
    """Water that mirrors the colours above it, with waves that shimmer and a path of light under the disc."""

    def __init__(self, scene: SkyScene, canvas: Canvas, light: Light, zenith: Array, disc: Array) -> None:
        self.x = canvas.x.astype(np.float64)
        self.first_row = int(np.floor(scene.horizon * len(canvas.y)))
        below = np.clip(canvas.y[self.first_row :] - scene.horizon, 0, None) + 0.004
        depth = np.clip(below / (1 - scene.horizon), 0, 1).astype(np.float32)
        water = np.array([0.08, 0.36, 0.50], np.float32) * light.ambient
        far, near = mix(light.haze, water, 0.45), mix(zenith, water, 0.62) * np.float32(0.80)
        self.base = mix(far[:, None], near[:, None], smoothstep(0.0, 0.85, depth))[:, :, None]
        # Waves are even on the water, hence ever finer towards the horizon; there they blur into one another.
        rows = -0.30 * np.log(below + 0.05)
        self.waves = ScrollingField.make(scene.seed + 500, rows, (4.0, 22.0), octaves=3, gain=0.65, turn=0.10)
        self.strength = (0.02 + 0.10 * np.sqrt(depth))[:, None] * (0.35 + 0.65 * float(light.ambient.mean()))
        narrow = 0.035 + 0.16 * depth[:, None]
        path = np.exp(-(((canvas.x - light.x) / narrow) ** 2)) * (1 - 0.55 * depth[:, None])
        shine = {"clear": 1.0, "scattered": 0.75, "overcast": 0.28}[scene.cloud_cover]
        self.path = (path * shine).astype(np.float32)
        self.disc = mix(disc, light.glow, 0.45)[:, None, None]
        edge = scene.horizon * len(canvas.y) - self.first_row
        self.first_share = np.float32(1 - edge)

    def over(self, frame: Array, index: int) -> None:
        """Draw the water into the rows below the horizon, in place."""
        wave = self.waves.at(self.x, float(index))
        water = self.base * (1 + wave * self.strength)
        glitter = smoothstep(-0.3, 1.5, wave) * self.path
        water += (self.disc - water) * glitter
        k = self.first_row
        first = frame[:, k] + (water[:, 0] - frame[:, k]) * self.first_share
        frame[:, k:] = water
        frame[:, k] = first
