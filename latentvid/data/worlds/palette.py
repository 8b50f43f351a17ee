"""Colours of the sky world by time of day, in display RGB, 0 to 1."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from latentvid.data.worlds.fields import Array

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Palette:
    """One light: the sky from zenith to horizon, the disc in it, and what the light does to clouds and ground."""

    zenith: Color
    middle: Color
    horizon: Color
    disc: Color
    glow: Color
    cloud_lit: Color
    cloud_shadow: Color
    ambient: Color
    """What ground colours are multiplied by."""
    glow_strength: float


PALETTES = {
    "dawn": Palette(
        zenith=(0.45, 0.60, 0.84),
        middle=(0.88, 0.74, 0.82),
        horizon=(1.00, 0.80, 0.70),
        disc=(1.00, 0.96, 0.84),
        glow=(1.00, 0.72, 0.56),
        cloud_lit=(1.00, 0.86, 0.82),
        cloud_shadow=(0.70, 0.58, 0.72),
        ambient=(0.96, 0.80, 0.80),
        glow_strength=0.55,
    ),
    "day": Palette(
        zenith=(0.16, 0.42, 0.82),
        middle=(0.38, 0.66, 0.94),
        horizon=(0.76, 0.89, 0.97),
        disc=(1.00, 1.00, 0.92),
        glow=(1.00, 0.97, 0.84),
        cloud_lit=(1.00, 1.00, 1.00),
        cloud_shadow=(0.64, 0.71, 0.81),
        ambient=(1.00, 1.00, 0.98),
        glow_strength=0.40,
    ),
    "dusk": Palette(
        zenith=(0.16, 0.13, 0.36),
        middle=(0.58, 0.25, 0.45),
        horizon=(1.00, 0.52, 0.20),
        disc=(1.00, 0.84, 0.52),
        glow=(1.00, 0.50, 0.18),
        cloud_lit=(1.00, 0.56, 0.34),
        cloud_shadow=(0.30, 0.17, 0.36),
        ambient=(0.66, 0.44, 0.46),
        glow_strength=0.60,
    ),
    "night": Palette(
        zenith=(0.02, 0.03, 0.10),
        middle=(0.05, 0.08, 0.21),
        horizon=(0.12, 0.18, 0.34),
        disc=(0.97, 0.96, 0.88),
        glow=(0.50, 0.58, 0.78),
        cloud_lit=(0.42, 0.48, 0.62),
        cloud_shadow=(0.10, 0.12, 0.22),
        ambient=(0.26, 0.31, 0.46),
        glow_strength=0.38,
    ),
}


def shift_hue(color: Color, turns: float) -> Array:
    """Return the colour with its hue turned (1 is a full circle), float32 [3]."""
    h, s, v = colorsys.rgb_to_hsv(*color)
    return np.array(colorsys.hsv_to_rgb((h + turns) % 1.0, s, v), np.float32)


def mix(a: Array, b: Array, share: float | Array) -> Array:
    """Return `a` where share is 0, `b` where it is 1."""
    return np.asarray(a + (b - a) * np.float32(share) if isinstance(share, float) else a + (b - a) * share, np.float32)
