"""From the colours a file stores to RGB and back: which matrix, which range, and the conversion itself.

Rules where a file says nothing: YUV is limited range (except the `yuvj` formats and grey, which are full);
the matrix is BT.709 from 1280 pixels of width or 577 lines upwards, BT.601 below, as players decide it.
Alpha is ignored. More than 8 bits are rounded to 8. HDR transfers (PQ, HLG) are tone-mapped and wide gamuts (BT.2020,
Display P3) converted to BT.709, see `latentvid.video.tone`, and the clip's notes say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from latentvid.video import tone

# Full chroma interpolation with exact rounding stays within half a level of the closed form; the default is off by 3.
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
_EXACT_INPUT = _EXACT | Interpolation.FULL_CHR_H_INP

_MATRIX_OF_TAG = {
    1: "bt709",
    4: "fcc",
    5: "bt601",
    6: "bt601",
    7: "smpte240m",
    8: "ycgco",
    9: "bt2020",
    10: "bt2020-constant",
}
_SWS_MATRIX = {
    "bt709": Colorspace.ITU709,
    "bt601": Colorspace.ITU601,
    "bt2020": Colorspace.BT2020,
    "smpte240m": Colorspace.SMPTE240M,
    "fcc": Colorspace.FCC,
}
_TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    13: "srgb",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "pq",
    18: "hlg",
}
_PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    11: "dci-p3",
    12: "display-p3",
    22: "ebu3213",
}


@dataclass(frozen=True, slots=True)
class ColorReading:
    """How the stored values of a clip are to be read."""

    matrix: str
    range: Literal["limited", "full"]
    transfer: str | None
    primaries: str | None
    assumed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def gamut(self) -> str:
        """The primaries to convert from; "bt709" where there is nothing to convert, or no rule for it."""
        gamut = _gamut(self.primaries, self.matrix)
        return gamut if gamut in tone.WIDE else "bt709"

    @property
    def is_converted(self) -> bool:
        """Whether its light has to be computed anew, besides the matrix."""
        return self.transfer in ("pq", "hlg") or self.gamut != "bt709"


def read_color(frame: VideoFrame, *, tagged_range: int = 0) -> ColorReading:
    """Decide how to read a frame's colours from its tags and, where there are none, by the rules above.

    `tagged_range` is the stream's range tag, used where the frame has none.
    """
    name = frame.format.name
    assumed, notes = [], []
    if frame.format.is_rgb or name.startswith("pal8"):
        matrix = "rgb"
    else:
        matrix = _MATRIX_OF_TAG.get(int(frame.colorspace), "")
        if not matrix:
            matrix = "bt709" if frame.width >= 1280 or frame.height > 576 else "bt601"
            assumed.append("color_matrix")
    tag = int(frame.color_range) or tagged_range
    is_full = matrix == "rgb" or name.startswith(("yuvj", "gray", "ya")) or tag == int(ColorRange.JPEG)
    if not tag and matrix != "rgb" and not name.startswith("yuvj"):
        assumed.append("color_range")
    transfer = _TRANSFERS.get(int(frame.color_trc))
    primaries = _PRIMARIES.get(int(frame.color_primaries))
    gamut = _gamut(primaries, matrix)
    if transfer in ("pq", "hlg"):
        notes.append(
            f"HDR ({transfer.upper()}) is tone-mapped to BT.709: {tone.PEAK:.0f} cd/m2 rolled off to {tone.WHITE:.0f}"
        )
    elif gamut in tone.WIDE:
        notes.append(f"colours of the {gamut} gamut are converted to BT.709, and clipped where it ends")
    elif gamut == "dci-p3":
        notes.append("colours of the dci-p3 gamut are shown as if they were BT.709")
    depth = bit_depth(frame)
    if depth > 8:
        notes.append(f"{depth} bits are rounded to 8")
    if has_alpha(name):
        notes.append("transparency is ignored")
    return ColorReading(matrix, "full" if is_full else "limited", transfer, primaries, tuple(assumed), tuple(notes))


def _gamut(primaries: str | None, matrix: str) -> str:
    """Return the primaries, those of the matrix where the file does not say."""
    return primaries or ("bt2020" if matrix == "bt2020" else "bt709")


def bit_depth(frame: VideoFrame) -> int:
    """Bits per colour component (8 for palettes)."""
    if frame.format.name == "pal8":
        return 8
    return max((component.bits for component in frame.format.components), default=8)


def has_alpha(pix_fmt: str) -> bool:
    """Whether a pixel format carries transparency."""
    return pix_fmt.startswith(("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya", "pal8", "ayuv", "vuya"))


class ToRgb:
    """Converts decoded frames to RGB of one size, keeping the scaler between frames."""

    def __init__(self, reading: ColorReading) -> None:
        if reading.matrix != "rgb" and reading.matrix not in _SWS_MATRIX:
            raise ValueError(f"the colour matrix {reading.matrix} is not supported")
        self._reading = reading
        self._scaler = VideoReformatter()

    def __call__(self, frame: VideoFrame, width: int, height: int) -> np.ndarray:
        """Return uint8 [h w 3] RGB of the stored (unrotated) picture, scaled to width x height if it differs."""
        reading = self._reading
        pix_fmt = tone.PIX_FMT if reading.is_converted else "rgb24"
        if reading.matrix == "rgb":
            rgb = self._scaler.reformat(frame, width, height, pix_fmt, interpolation=_EXACT)
        else:
            rgb = self._scaler.reformat(
                frame,
                width,
                height,
                pix_fmt,
                src_colorspace=_SWS_MATRIX[reading.matrix],
                src_color_range=ColorRange.JPEG if reading.range == "full" else ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
                interpolation=_EXACT,
            )
        values = rgb.to_ndarray()
        if reading.is_converted:
            return tone.to_sdr(values.astype(np.uint16, copy=False), transfer=reading.transfer, primaries=reading.gamut)
        return values


class FromRgb:
    """Converts RGB pictures to a pixel format for encoders; the inverse of `ToRgb` to rounding.

    Args:
        pix_fmt: of the pictures to make, YUV or RGB.
        matrix: of YUV.
        is_full: whether YUV takes the full range; grey always does, as `read_color` reads it.
        transfer, gamut: the curve and the primaries to code the light in, where these are HDR's or wide (see
            `latentvid.video.tone`); pictures are in BT.709.
        tags: what the file says of its values, as numbers of ITU-T H.273: matrix, range (1 limited, 2 full), transfer
            and primaries. By default those of the matrix, limited.
    """

    def __init__(
        self,
        pix_fmt: str,
        matrix: str = "bt709",
        *,
        is_full: bool = False,
        transfer: str | None = None,
        gamut: str = "bt709",
        tags: tuple[int, int, int, int] | None = None,
    ) -> None:
        self._pix_fmt = pix_fmt
        self._matrix = matrix
        self._is_rgb = is_rgb_format(pix_fmt)
        self._is_full = is_full or pix_fmt.startswith(("gray", "ya8"))
        self._transfer, self._gamut = transfer, gamut
        self._is_coded_anew = not self._is_rgb and (transfer in ("pq", "hlg") or gamut != "bt709")
        self._tags = tags
        self._scaler = VideoReformatter()

    def __call__(self, rgb: np.ndarray) -> VideoFrame:
        """Convert uint8 [h w 3]."""
        if self._is_coded_anew:
            coded = tone.from_sdr(rgb, transfer=self._transfer, primaries=self._gamut)
            frame = VideoFrame.from_ndarray(coded, format=tone.PIX_FMT)
        else:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        if self._is_rgb:
            return self._scaler.reformat(frame, format=self._pix_fmt, interpolation=_EXACT)
        return self._scaler.reformat(
            frame,
            format=self._pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=_SWS_MATRIX[self._matrix],
            dst_color_range=ColorRange.JPEG if self._is_full else ColorRange.MPEG,
            interpolation=_EXACT_INPUT,
        )

    def tag(self, context: object) -> None:
        """Write onto an encoder's context what the values mean."""
        tags = self._tags or default_tags("rgb" if self._is_rgb else self._matrix)
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = tags  # type: ignore[attr-defined]


def default_tags(matrix: str) -> tuple[int, int, int, int]:
    """Return what a file of ours says of limited-range values, as numbers of ITU-T H.273."""
    return {"rgb": (0, 2, 13, 1), "bt709": (1, 1, 1, 1)}.get(matrix, (6, 1, 6, 6))


def is_rgb_format(pix_fmt: str) -> bool:
    """Whether a pixel format stores RGB rather than YUV."""
    return pix_fmt.startswith(("rgb", "bgr", "gbr", "0rgb", "argb", "abgr"))
