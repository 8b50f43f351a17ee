"""HDR and wide-gamut pictures as an SDR screen shows them: BT.709 primaries, 8 bits, the white of SDR at the top.

HLG and PQ (ITU-R BT.2100) become light, in cd/m2: HLG by the system gamma of a screen of 1000, PQ as it says. Light is
brought to BT.709's primaries (BT.2087), the brightest channel of a pixel is rolled off from 1000 to 203 (BT.2390,
5.4.1; 203 is HDR's reference white after BT.2408) and the others with it, so that hues stay; what BT.709 cannot show is
clipped, and the result is coded for a screen of gamma 2.4 (BT.1886). Wide gamuts without HDR only change primaries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PEAK, WHITE = 1000.0, 203.0
"""Light of the brightest HDR that is shown apart, and that of SDR's white, cd/m2."""
_GAMMA = 2.4
_ROWS = 128
PIX_FMT, FULL = "gbrp12le", 16 * 255
"""The scaler's RGB to convert from, and its code of full light. (Its packed 16 bits come out wrong from BT.2020.)"""
_STEPS = 1 << 14

# CIE 1931 xy of red, green and blue; all with the white D65.
_PRIMARIES = {
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "display-p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_D65 = (0.3127, 0.3290)
WIDE = frozenset(_PRIMARIES) - {"bt709"}

Array = NDArray[np.float32]
_Value = TypeVar("_Value", np.uint8, np.float32)


def to_sdr(rgb: NDArray[np.uint16], *, transfer: str | None, primaries: str) -> NDArray[np.uint8]:
    """Convert RGB codes of `PIX_FMT`, uint16 [h w 3], to BT.709 uint8 [h w 3].

    Args:
        transfer: "pq", "hlg", or another one, which is read as the gamma of an SDR screen.
        primaries: a key of `WIDE`, or "bt709".
    """
    out = np.empty(rgb.shape, np.uint8)
    matrix = to_bt709(primaries).astype(np.float32)
    table = _light_table(transfer)
    # A few rows at a time: the floats of a large picture would be many times its size.
    for top in range(0, len(rgb), _ROWS):
        rows = rgb[top : top + _ROWS]
        light = table[rows.reshape(-1, 3).T]
        if transfer == "hlg":
            light *= _looked_up(_hlg_gain_table(), _LUMA_2020 @ light)
        light = np.maximum(matrix @ light, 0)
        if transfer in ("pq", "hlg"):
            share = light.max(axis=0) / np.float32(PEAK)
            light *= _looked_up(_roll_off_table(), share) / np.maximum(share, 1)
        out[top : top + _ROWS] = _looked_up(_code_table(), light).T.reshape(rows.shape)
    return out


def from_sdr(rgb: NDArray[np.uint8], *, transfer: str | None, primaries: str) -> NDArray[np.uint16]:
    """Convert BT.709 uint8 [h w 3] to RGB codes of `PIX_FMT`, uint16 [h w 3]: the inverse of `to_sdr` to rounding.

    Args:
        transfer, primaries: those that the codes are to be in, as in `to_sdr`.
    """
    out = np.empty(rgb.shape, np.uint16)
    matrix = np.linalg.inv(to_bt709(primaries))
    for top in range(0, len(rgb), _ROWS):
        rows = rgb[top : top + _ROWS]
        light = (rows.reshape(-1, 3).T / 255) ** _GAMMA
        if transfer in ("pq", "hlg"):
            rolled = light.max(axis=0) * WHITE
            bright = _unrolled(rolled)
            light *= bright / np.maximum(rolled, 1e-9) * WHITE
        light = np.maximum(matrix @ light, 0)
        if transfer == "hlg":
            luma = np.maximum(_LUMA_2020.astype(np.float64) @ light / PEAK, 1e-9)
            code = hlg_code(light / PEAK * luma ** (1 / 1.2 - 1))
        else:
            code = pq_code(light) if transfer == "pq" else light ** (1 / _GAMMA)
        out[top : top + _ROWS] = np.rint(np.clip(code, 0, 1) * FULL).T.reshape(rows.shape).astype(np.uint16)
    return out


def to_bt709(primaries: str) -> NDArray[np.float64]:
    """Return the matrix [3 3] from light in some primaries to light in BT.709's."""
    return np.asarray(np.linalg.solve(_to_xyz("bt709"), _to_xyz(primaries)), np.float64)


def pq_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light, cd/m2, of PQ codes in [0, 1] (SMPTE ST 2084)."""
    root = np.power(code, 1 / _M2)
    return 10_000 * np.power(np.maximum(root - _C1, 0) / (_C2 - _C3 * root), 1 / _M1)


def pq_code(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the PQ codes of light, cd/m2."""
    root = np.power(light / 10_000, _M1)
    return np.power((_C1 + _C2 * root) / (1 + _C3 * root), _M2)


def hlg_scene(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scene light in [0, 1] of HLG codes in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def hlg_code(scene: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the HLG codes of scene light in [0, 1]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.clip(scene, 0, 1)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def roll_off(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map light of up to `PEAK` to up to `WHITE`, cd/m2: as it is where it is dark, less and less above."""
    top = pq_code(np.array(PEAK))
    code = pq_code(np.minimum(light, PEAK)) / top
    most = float(pq_code(np.array(WHITE)) / top)
    knee = 1.5 * most - 0.5
    t = np.clip((code - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_light(np.where(code < knee, code, spline) * top)


_M1, _M2, _C1, _C2, _C3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)


def _looked_up(table: NDArray[_Value], light: Array) -> NDArray[_Value]:
    """Return a table's values for light of at most 1; the table is spread by the root of light, finer in the dark."""
    steps = np.sqrt(np.minimum(light, 1)) * np.float32(_STEPS - 1) + np.float32(0.5)
    return table[steps.astype(np.uint16)]


def _steps() -> NDArray[np.float64]:
    """Return the light of every step of such a table, the first a little above 0."""
    return np.square(np.maximum(np.arange(_STEPS), 0.25) / (_STEPS - 1))


def _unrolled(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the light, cd/m2, that `roll_off` brings to this."""
    bright = pq_light(np.linspace(0, float(pq_code(np.array(PEAK))), 4096))
    return np.interp(light, roll_off(bright), bright)


@cache
def _light_table(transfer: str | None) -> Array:
    codes = np.minimum(np.arange(1 << 12) / FULL, 1)
    curves: dict[str | None, Callable[[NDArray[np.float64]], NDArray[np.float64]]]
    curves = {"pq": pq_light, "hlg": hlg_scene}
    return curves.get(transfer, lambda code: code**_GAMMA)(codes).astype(np.float32)


@cache
def _hlg_gain_table() -> Array:
    """Return, by the luminance of scene light, what it is multiplied by on a screen of 1000 cd/m2 (gamma 1.2)."""
    return (1000 * _steps() ** 0.2).astype(np.float32)


@cache
def _roll_off_table() -> Array:
    """Return, by the share of `PEAK`, what light is multiplied by to become a share of `WHITE`."""
    light = PEAK * _steps()
    return (roll_off(light) / light / WHITE).astype(np.float32)


@cache
def _code_table() -> NDArray[np.uint8]:
    return np.rint(255 * _steps() ** (1 / _GAMMA)).astype(np.uint8)


def _to_xyz(primaries: str) -> NDArray[np.float64]:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in _PRIMARIES[primaries]]).T
    x, y = _D65
    white = np.array([x / y, 1, (1 - x - y) / y])
    return columns * np.linalg.solve(columns, white)
