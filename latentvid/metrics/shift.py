"""Shifts: how far the colour, contrast and sharpness of some frames lie from those of others, as shares of these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from latentvid.metrics.metric import mean

SHIFTS = {
    "luma": ("luma_mean", 16.0),
    "contrast": ("luma_spread", 8.0),
    "saturation": ("saturation", 8.0),
    "sharpness": ("sharpness", 4.0),
}
"""Name -> the curve of `latentvid.metrics.drift`, and the least value that counts as a whole, so that nearly black or
grey pictures do not turn rounding into a shift. Sharpness is the standard deviation of the Laplacian."""


def shifts(curves: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return (now - reference) / reference for each of `SHIFTS`, of the means over the frames.

    Args:
        curves, reference: values per frame, by the names of `latentvid.metrics.drift.CURVES`.
    """
    found = {}
    for name, (curve, least) in SHIFTS.items():
        now, then = _level(name, curves[curve]), _level(name, reference[curve])
        found[name] = (now - then) / max(then, least)
    return found


def beyond(found: Mapping[str, float], limit: float) -> dict[str, float]:
    """Return the shifts whose size exceeds a limit."""
    return {name: shift for name, shift in found.items() if abs(shift) > limit}


def in_words(found: Mapping[str, float]) -> str:
    """Return shifts as a person reads them.

    >>> in_words({"luma": -0.031, "saturation": 0.4})
    'luma -3 %, saturation +40 %'
    """
    return ", ".join(f"{name} {round(100 * shift):+d} %" for name, shift in found.items())


def _level(name: str, values: Sequence[float]) -> float:
    return mean([math.sqrt(value) for value in values]) if name == "sharpness" else mean(list(values))
