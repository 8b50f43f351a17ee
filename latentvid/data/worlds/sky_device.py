"""The sky world's frames for many scenes at once, in PyTorch on any device: those of `sky.render` but for rounding.

The host draws what scenes are made of (lattices of noise, places of peaks, trees and stars) and the device does all
that is per pixel, for scenes of any mix together. b counts scenes, t frames.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentvid.data.worlds.fields_device import (
    Lattices,
    ScrollingFields,
    device_smoothstep,
    grid,
    real_dtype,
    upload,
)
from latentvid.data.worlds.grounds import OVERSAMPLING, Light
from latentvid.data.worlds.grounds_device import draw_grounds
from latentvid.data.worlds.palette import PALETTES
from latentvid.data.worlds.sky import CloudLayer, SkyScene, cloud_layers, light_of, scene_color

# Bytes of temporary tensors at a time.
_MEMORY = 3 * 2**30


def render_on_device(
    scenes: Sequence[SkyScene],
    num_frames: int,
    height: int = 128,
    width: int = 128,
    *,
    start_frames: Sequence[int] | None = None,
    device: str | torch.device = "cuda",
    chunk: int = 32,
    lattices: Literal["host", "device"] = "host",
) -> Tensor:
    """Return `num_frames` frames of each scene from its start frame on, uint8 [b t 3 h w] on the device.

    Frames are those of `sky.render`, at most one level of 255 off but for a few pixels at edges. Scenes are rendered
    `chunk` at a time, or fewer where their temporary tensors would take more than about 3 GB.

    The noise of clouds, water and grounds is drawn by as many threads of the host as there are cores (up to eight), or
    with `lattices` "device" on the device: that is faster where cores are few, and shows other clouds of the same kind
    (still a function of scene and frame number alone, on one kind of device).
    """
    starts = [0] * len(scenes) if start_frames is None else list(start_frames)
    if min(num_frames, height, width, chunk) < 1 or min(starts, default=0) < 0 or len(starts) != len(scenes):
        raise ValueError(
            f"cannot render {num_frames} frames of {height}x{width} of {len(scenes)} scenes from frames {starts}"
        )
    clips = torch.empty(len(scenes), num_frames, 3, height, width, dtype=torch.uint8, device=device)
    place = clips.device
    # What the stage holds per scene while the ground is drawn, and per frame while clouds are laid over it.
    still = 4 * (110 * height * width * OVERSAMPLING**2 // 4 + 8000 * height)
    moving = 4 * (12 * height * width + 400 * (height + width))
    chunk = max(1, min(chunk, len(scenes), _MEMORY // (2 * still)))
    frames = max(1, _MEMORY // (2 * moving * chunk))
    workers = min(8, os.cpu_count() or 1)
    # Half precision, which the caller may have allowed for networks, would move clouds by pixels.
    full = torch.autocast(place.type, enabled=False) if torch.amp.is_autocast_available(place.type) else nullcontext()
    with torch.no_grad(), full, ThreadPoolExecutor(workers) as pool:
        drawing = Lattices(place, pool if lattices == "host" else None)
        for first in range(0, len(scenes), chunk):
            part = slice(first, first + chunk)
            stage = _Stage(scenes[part], height, width, drawing)
            for begin in range(0, num_frames, frames):
                count = min(frames, num_frames - begin)
                index = np.array(starts[part], np.float64)[:, None] + np.arange(begin, begin + count)
                clips[part, begin : begin + count] = stage.frames(upload(index, place))
    return clips


class _Stage:
    """What stands still in a batch of scenes at one size, and what moves, ready to be drawn."""

    def __init__(self, scenes: Sequence[SkyScene], height: int, width: int, lattices: Lattices) -> None:
        self.scenes, self.lattices, self.device = scenes, lattices, lattices.device
        self.height, self.width, self.aspect = height, width, width / height
        self.grid = grid(height, width, 1, self.device)
        self.x, self.y = self.grid.x, self.grid.y[:, None]
        self.lights = [light_of(scene, self.aspect) for scene in scenes]
        self.horizon = self.numbers([scene.horizon for scene in scenes])
        self.light_x = self.numbers([light.x for light in self.lights])
        self.backdrop, self.glow = self._backdrop()
        layers = [[None, *cloud_layers(scene)][-2:] for scene in scenes]  # behind, in front; there may be none behind
        self.clouds = [_Clouds(self, list(own)) for own in zip(*layers, strict=True) if any(own)]
        nights = [scene.time_of_day == "night" for scene in scenes]
        self.stars = _Stars(self) if any(nights) else None
        self._draw_grounds()
        seas = [i for i, scene in enumerate(scenes) if scene.ground == "sea"]
        self.sea = _Sea(self, seas) if seas else None

    def numbers(self, values: Sequence[float]) -> Tensor:
        """Return a number of each scene, [b 1 1]."""
        return upload(np.array(values, np.float32)[:, None, None], self.device)

    def colors(self, name: str) -> Tensor:
        """Return a colour of each scene's palette, [b 3 1 1]."""
        return self.rgb([scene_color(scene, name) for scene in self.scenes])

    def rgb(self, colors: Sequence[np.ndarray]) -> Tensor:
        """Return a colour of each scene, [b 3 1 1]."""
        return upload(np.stack(colors).astype(np.float32)[:, :, None, None], self.device)

    def frames(self, index: Tensor) -> Tensor:
        """Return the frames of these numbers [b t], uint8 [b t 3 h w]."""
        sky = self.backdrop[:, None].repeat(1, index.shape[1], 1, 1, 1)
        if self.stars:
            sky += self.stars.at(index)
        for layer in self.clouds:
            layer.over(sky, index, self.glow)
        sky *= self.sky_share[:, None]
        sky += self.ground[:, None]
        if self.sea:
            self.sea.under(sky, index)
        return sky.mul_(255).add_(0.5).clamp_(0, 255).to(torch.uint8)

    def _backdrop(self) -> tuple[Tensor, Tensor]:
        """Return the sky without clouds [b 3 h w], and how strongly the disc shines on each place [b h w]."""
        scenes = self.scenes
        down = (self.y / self.horizon).clamp(0, 1)  # [b h 1]
        rgb = _mix(self.colors("zenith"), self.colors("middle"), device_smoothstep(0, 0.62, down))
        rgb = _mix(rgb, self.colors("horizon"), device_smoothstep(0.45, 1.0, down))
        light_y = self.numbers([s.horizon * (1 - s.light_height) for s in scenes])
        dx, dy = self.x - self.light_x, self.y - light_y
        distance = (dx**2 + dy**2).sqrt()
        glow = torch.exp(-distance / 0.10) * 0.7 + torch.exp(-((dx / 0.55) ** 2) - (dy / 0.26) ** 2) * 0.5
        strength = self.numbers([PALETTES[s.time_of_day].glow_strength for s in scenes])
        rgb = _mix(rgb, self.colors("glow"), glow * strength)
        night = self.numbers([float(s.time_of_day == "night") for s in scenes])
        radius = 0.05 - 0.005 * night
        soft = max(0.006, 1.0 / self.height)
        disc = device_smoothstep(radius + soft, radius - soft, distance)
        shade = 0.16 * night * torch.exp(-(((dx - 0.012) / 0.016) ** 2) - ((dy + 0.008) / 0.02) ** 2)
        face = self.colors("disc") * (1 - shade)[:, None]
        corona = (0.55 - 0.275 * night) * torch.exp(-(distance - radius).clamp(min=0) / 0.022)
        rgb = _mix(rgb, self.colors("disc"), corona)
        return _mix(rgb, face, disc), glow

    def _draw_grounds(self) -> None:
        """Draw the grounds that stand still, a kind at a time: `ground` [b 3 h w] and `sky_share` [b 1 h w]."""
        self.ground = torch.zeros(len(self.scenes), 3, self.height, self.width, device=self.device)
        self.sky_share = torch.ones(len(self.scenes), 1, self.height, self.width, device=self.device)
        fine = grid(self.height, self.width, OVERSAMPLING, self.device)
        for kind in sorted({scene.ground for scene in self.scenes} - {"sea"}):
            own = [i for i, scene in enumerate(self.scenes) if scene.ground == kind]
            seeds = [self.scenes[i].seed + 1000 for i in own]
            horizons = [self.scenes[i].horizon for i in own]
            rgb, coverage = draw_grounds(kind, fine, self.lattices, seeds, [self.lights[i] for i in own], horizons)
            at = upload(np.array(own), self.device)
            self.ground[at], self.sky_share[at] = rgb, 1 - coverage


class _Clouds:
    """One layer of clouds of each scene, drifting and slowly changing shape; scenes may lack it."""

    def __init__(self, stage: _Stage, layers: Sequence[CloudLayer | None]) -> None:
        some = next(layer for layer in layers if layer)
        # A scene without the layer gets another's with nothing in it.
        own = [layer or some for layer in layers]
        self.opacity = stage.numbers([layer.opacity if layer else 0 for layer in layers])[:, None]
        self.threshold = stage.numbers([layer.threshold for layer in own])[:, None]
        self.softness = stage.numbers([layer.softness for layer in own])[:, None]
        lit, shadow = stage.rgb([layer.lit for layer in own]), stage.rgb([layer.shadow for layer in own])
        self.shadow, self.contrast = shadow[:, None], (lit - shadow)[:, None]
        pairs = zip(stage.scenes, own, strict=True)
        real = real_dtype(stage.device)
        per_frame = [scene.wind * layer.speed * stage.aspect for scene, layer in pairs]
        self.per_frame = upload(np.array(per_frame), stage.device)[:, None, None]
        self.x = stage.x.to(real)
        seeds = [scene.seed + layer.seed if layer else None for scene, layer in zip(stage.scenes, layers, strict=True)]
        lattices = stage.lattices.fields(seeds, octaves=5)
        # Rows crowd together towards the horizon, as a ceiling of clouds does.
        y = stage.y / stage.horizon  # [b h 1]
        rows = (y * (0.55 + 0.35 * y) * stage.horizon)[..., 0]
        frequency = np.array([layer.frequency for layer in own])
        self.field = ScrollingFields(lattices, rows, frequency, octaves=5, gain=0.52, turn=0.008)
        # The same field a step nearer to the light: thicker there means shadow here.
        light_x = upload(np.array([light.x for light in stage.lights]), stage.device)[:, None, None]
        self.reach = ((light_x - self.x) / 0.5).clamp(-1, 1) * 0.035  # [b 1 w]
        self.toward = ScrollingFields(lattices, rows - 0.028, frequency, octaves=4, gain=0.52, turn=0.008)
        # Far clouds thin out into the haze.
        self.fade = (1 - 0.55 * device_smoothstep(0.75, 1.0, y))[:, None] * self.opacity
        self.span = stage.aspect + 0.07

    def over(self, sky: Tensor, index: Tensor, glow: Tensor) -> None:
        """Lay the layer over `sky` [b t 3 h w] of frames `index` [b t], in place."""
        x = self.x - self.per_frame * index[..., None]  # [b t w]
        thickness = self.field.at(x, index, self.span)  # [b t h w]
        light = thickness - self.toward.at(x + self.reach, index, self.span)
        thickness -= self.threshold
        light.mul_(0.42).sub_(thickness, alpha=0.16).add_((glow * 0.45 + 0.80)[:, None]).clamp_(0, 1.1)
        t = thickness.mul_(1 / self.softness).clamp_(0, 1)
        alpha = (3 - 2 * t).mul_(t).mul_(t).mul_(self.fade)
        cloud = self.contrast * light[:, :, None]
        cloud.add_(self.shadow).sub_(sky).mul_(alpha[:, :, None])
        sky += cloud


class _Stars:
    """Stars that twinkle, each a soft point; none where it is not night."""

    def __init__(self, stage: _Stage) -> None:
        right = float(stage.grid.canvas.x[-1])
        count = int(70 * max(1.0, right))
        drawn = np.zeros((5, len(stage.scenes), count))
        for i, scene in enumerate(stage.scenes):
            if scene.time_of_day == "night":
                draw = np.random.default_rng(scene.seed + 77)
                x, y = draw.uniform(0, right, count), draw.uniform(0, scene.horizon, count)
                bright = 0.25 + 0.75 * draw.uniform(size=count) ** 3
                drawn[:, i] = x, y, bright, draw.uniform(0, 2 * np.pi, count), draw.uniform(0.15, 0.5, count)
        x, y, bright, self.phase, self.rate = upload(drawn[:, :, None], stage.device)  # each [b 1 n]
        self.bright = bright.float()
        radius = max(0.0045, 0.55 / stage.height) * (0.7 + 0.6 * self.bright)
        across = (stage.x[:, None] - x.float()) / radius  # [b w n]
        down = (stage.y - y.float()) / radius  # [b h n]
        self.across = torch.exp(-(across**2)).transpose(1, 2)[:, None]  # [b 1 n w]
        self.down = torch.exp(-(down**2)) * device_smoothstep(1.0, 0.6, stage.y / stage.horizon)

    def at(self, index: Tensor) -> Tensor:
        """Return what the stars add to the sky of frames `index` [b t], [b t 1 h w]."""
        twinkle = self.bright * (0.75 + 0.25 * torch.sin(self.phase + self.rate * index[..., None])).float()  # [b t n]
        return (self.down[:, None] @ (self.across * twinkle[..., None]))[:, :, None]


class _Sea:
    """Water that mirrors the colours above it, with waves that shimmer and a path of light under the disc."""

    def __init__(self, stage: _Stage, own: Sequence[int]) -> None:
        """Take the scenes of the stage whose numbers are in `own`, n of them."""
        scenes, lights = [stage.scenes[i] for i in own], [stage.lights[i] for i in own]
        self.own = upload(np.array(own), stage.device)
        rows = stage.height
        horizon = stage.horizon[self.own]
        below = (stage.y - horizon).clamp(min=0) + 0.004  # [n h 1]
        depth = (below / (1 - horizon)).clamp(0, 1)
        far, near = _water_colors(stage, scenes, lights)
        self.base = _mix(far, near, device_smoothstep(0.0, 0.85, depth))[:, None]  # [n 1 3 h 1]
        # Waves are even on the water, hence ever finer towards the horizon; there they blur into one another.
        lattices = stage.lattices.fields([scene.seed + 500 for scene in scenes], octaves=3)
        places = -0.30 * torch.log(below + 0.05)[..., 0]
        frequency = np.tile([4.0, 22.0], (len(scenes), 1))
        self.waves = ScrollingFields(lattices, places, frequency, octaves=3, gain=0.65, turn=0.10)
        self.x = stage.x.to(real_dtype(stage.device)).expand(len(scenes), 1, -1)
        self.span = stage.aspect
        bright = stage.numbers([0.35 + 0.65 * float(light.ambient.mean()) for light in lights])
        self.strength = (0.02 + 0.10 * depth.sqrt())[:, None] * bright[:, None]  # [n 1 h 1]
        shine = {"clear": 1.0, "scattered": 0.75, "overcast": 0.28}
        shines = stage.numbers([shine[scene.cloud_cover] for scene in scenes])
        path = torch.exp(-(((stage.x - stage.light_x[self.own]) / (0.035 + 0.16 * depth)) ** 2))
        self.path = (path * (1 - 0.55 * depth) * shines)[:, None]  # [n 1 h w]
        disc = stage.colors("disc")[self.own]
        self.disc = _mix(disc, stage.rgb([light.glow for light in lights]), 0.45)[:, None]
        edges = stage.numbers([scene.horizon * rows for scene in scenes])
        numbers = torch.arange(rows, device=stage.device)[:, None]
        self.share = (1 + numbers - edges).clamp(0, 1)[:, None, None]  # of water in each row, [n 1 1 h 1]

    def under(self, sky: Tensor, index: Tensor) -> None:
        """Draw the water into the rows below the horizon of `sky` [b t 3 h w] of frames `index` [b t], in place."""
        wave = self.waves.at(self.x, index[self.own], self.span)  # [n t h w]
        water = self.base * (1 + wave * self.strength)[:, :, None]
        glitter = device_smoothstep(-0.3, 1.5, wave) * self.path
        water += (self.disc - water) * glitter[:, :, None]
        above = sky[self.own]
        sky[self.own] = above + (water - above) * self.share


def _water_colors(stage: _Stage, scenes: Sequence[SkyScene], lights: Sequence[Light]) -> tuple[Tensor, Tensor]:
    """Return the water's colours at the horizon and at our feet, each [n 3 1 1]."""
    far, near = [], []
    for scene, light in zip(scenes, lights, strict=True):
        water = np.array([0.08, 0.36, 0.50], np.float32) * light.ambient
        far.append(light.haze + (water - light.haze) * 0.45)
        zenith = scene_color(scene, "zenith")
        near.append((zenith + (water - zenith) * 0.62) * 0.80)
    return stage.rgb(far), stage.rgb(near)


def _mix(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """Return `a` [b 3 ..] where share (a plane [b ..] or a number) is 0, `b` where it is 1."""
    return a + (b - a) * (share[:, None] if isinstance(share, Tensor) else share)
