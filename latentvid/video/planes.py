"""Pictures as a clip stores them, in its own pixel format, colours, pixel shape and turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.codec import Codec
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from latentvid.core.errors import InputError
from latentvid.video.color import ColorReading, FromRgb, default_tags, has_alpha, is_rgb_format
from latentvid.video.container import decoded, open_container, reason, video_stream
from latentvid.video.orientation import Orientation
from latentvid.video.reader import PyAVReader

# Each on the right holds the same values in another order.
_SAME_VALUES = {
    "nv12": "yuv420p", "nv21": "yuv420p", "nv16": "yuv422p", "nv24": "yuv444p", "nv42": "yuv444p",
    "yuyv422": "yuv422p", "uyvy422": "yuv422p", "yvyu422": "yuv422p", "p010le": "yuv420p10le",
    "p210le": "yuv422p10le", "p410le": "yuv444p10le", "rgb24": "rgb24", "bgr24": "rgb24", "rgb0": "rgb24",
    "bgr0": "rgb24", "0rgb": "rgb24", "0bgr": "rgb24", "gbrp": "rgb24", "pal8": "bgra", "rgba": "bgra",
    "argb": "bgra", "abgr": "bgra", "gbrap": "bgra", "monow": "gray", "monob": "gray",
}  # fmt: skip
_H264 = frozenset({
    "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv420p10le", "yuv422p10le", "yuv444p10le",
    "gray", "gray10le", "rgb24",
})  # fmt: skip
_FFV1_SUFFIXES = (".mkv", ".mp4")
_INTERLACED = range(2, 6)
"""Of libavcodec's AVFieldOrder; 0 is not said, 1 is whole pictures."""


@dataclass(frozen=True, slots=True)
class Planes:
    """How a clip stores its pictures; new ones are stored the same way."""

    width: int
    height: int
    """Pixels of the stored pictures, before they are turned."""
    pix_fmt: str
    """Of equal values, planar where there is a choice; "rgb24" for all 8-bit RGB."""
    color: ColorReading
    tags: tuple[int, int, int, int]
    """What the clip states of its colours, as `FromRgb` takes it; 2 (range: 0) where it says nothing."""
    sample_aspect_ratio: Fraction
    """Width of a stored pixel over its height."""
    orientation: Orientation
    display_matrix: tuple[int, ...] | None
    """The nine numbers of the matrix that players turn the pictures by; None where they stand upright."""
    is_interlaced: bool
    """Whether every other line is of another moment."""

    def converter(self) -> FromRgb:
        """Return what makes stored pictures of RGB ones."""
        color = self.color
        return FromRgb(
            self.pix_fmt,
            color.matrix,
            is_full=color.range == "full",
            transfer=color.transfer,
            gamut=color.gamut,
            tags=self.tags,
        )

    def turned_back(self, rgb: np.ndarray) -> np.ndarray:
        """Turn an upright picture [h w 3] to how it is stored."""
        turn = self.orientation
        rgb = rgb[:: -1 if turn.flips_y else 1, :: -1 if turn.flips_x else 1]
        return rgb.transpose(1, 0, 2) if turn.is_transposed else rgb

    def fits_h264(self) -> bool:
        """Whether H.264, as it is encoded here, holds every bit of such pictures."""
        if self.pix_fmt.startswith(("yuv420", "yuvj420")):
            return self.pix_fmt in _H264 and self.width % 2 == 0 and self.height % 2 == 0
        if self.pix_fmt.startswith(("yuv422", "yuvj422")):
            return self.pix_fmt in _H264 and self.width % 2 == 0
        return self.pix_fmt in _H264

    def lossless_codec(self, suffix: str) -> str | None:
        """Return the writer's codec that holds every bit in files of that kind; None if there is none.

        H.264 where it does, as more players know it. It marks no picture as interlaced here: x264 loses single values
        of interlaced pictures (seen in 720x576 at qp 0). FFV1 does, but Matroska files of it say no pixel shape.
        """
        names = {form.name for form in Codec("ffv1", "w").video_formats or ()}
        fits_ffv1 = self.pix_fmt in names and suffix.lower() in _FFV1_SUFFIXES
        says_shape = self.sample_aspect_ratio == 1 or suffix.lower() != ".mkv"
        if self.fits_h264() and not (self.is_interlaced and fits_ffv1 and says_shape):
            return "h264-lossless"
        return "ffv1" if fits_ffv1 else None


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A decoded picture as the file stores it, with its time."""

    picture: VideoFrame
    time_s: Fraction


def planes_of(path: str | Path) -> Planes:
    """Return how a clip stores its pictures, by its first one.

    Raises:
        InputError: it cannot be read.
    """
    path = Path(path)
    scan = PyAVReader(path).scan
    with open_container(path) as container:
        stream = video_stream(path, container)
        field_order = int(stream.codec_context.field_order)
        color_range = int(stream.codec_context.color_range)
        ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
        pictures = decoded(container, stream, scan.index.pieces)
        picture = next(pictures)
        tags = (
            int(picture.colorspace),
            int(picture.color_range) or color_range,
            int(picture.color_trc),
            int(picture.color_primaries),
        )
        matrix = _display_matrix(picture)
        name = picture.format.name
        is_interlaced = field_order in _INTERLACED or bool(picture.interlaced_frame)
        pictures.close()
    width, height = scan.stored_size
    pix_fmt = name.replace("be", "le") if name.endswith("be") else name
    pix_fmt = _SAME_VALUES.get(pix_fmt, pix_fmt)
    if is_rgb_format(pix_fmt) and not has_alpha(pix_fmt):
        tags = default_tags("rgb")
    elif pix_fmt.startswith("gray"):
        tags = (tags[0], 2, *tags[2:])  # players take grey for full range, whatever a file says
    return Planes(width, height, pix_fmt, scan.color, tags, ratio, scan.orientation, matrix, is_interlaced)


def _display_matrix(picture: VideoFrame) -> tuple[int, ...] | None:
    try:
        side = picture.side_data[Type.DISPLAYMATRIX]  # type: ignore[typeddict-item]
    except (KeyError, ValueError):
        return None
    numbers = np.frombuffer(bytes(side), dtype=np.int32)
    return tuple(int(n) for n in numbers[:9]) if numbers.size >= 9 else None


def stored_frames(
    path: str | Path,
    pix_fmt: str | None = None,
    *,
    fps: Fraction | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[StoredFrame]:
    """Yield the frames that a reader of the file yields, at their times, as they are stored.

    Args:
        pix_fmt: a format of equal values to have them in, as `Planes` names it; by default the file's own.
        fps: the rate of a file that states none.
        start, stop: numbers of the first frame, and of the one behind the last.

    Raises:
        InputError: the file is damaged.
    """
    path, scaler = Path(path), VideoReformatter()
    reader = PyAVReader(path, fps=fps)
    width, height = reader.scan.stored_size
    for picture, time_s, number in reader.stored(start, stop):
        wanted = pix_fmt or picture.format.name
        if (picture.width, picture.height, picture.format.name) != (width, height, wanted):
            try:
                picture = scaler.reformat(picture, width, height, wanted)
            except av.FFmpegError as error:
                raise InputError(f"{path}: frame {number} cannot be converted ({reason(error)}).") from error
        yield StoredFrame(picture, time_s)


def same_planes(one: VideoFrame, other: VideoFrame) -> bool:
    """Whether two pictures hold the same values; grey ones are compared with the luma of others."""
    if (one.width, one.height) != (other.width, other.height):
        return False
    names = [picture.format.name.replace("yuvj", "yuv") for picture in (one, other)]
    if any(name.startswith("gray") for name in names):
        return np.array_equal(_rows(one, 0), _rows(other, 0))
    if names[0] == names[1] and len(one.planes) > 1:
        return all(np.array_equal(_rows(one, k), _rows(other, k)) for k in range(len(one.planes)))
    if names[0] == names[1]:
        return np.array_equal(one.to_ndarray(), other.to_ndarray())
    if not (one.format.is_rgb and other.format.is_rgb):
        return False
    form = "bgra" if any(has_alpha(name) for name in names) else "rgb24"
    return np.array_equal(one.to_ndarray(format=form), other.to_ndarray(format=form))


def _rows(picture: VideoFrame, index: int) -> np.ndarray:
    """Return the bytes of one plane, [h bytes], without what pads its rows."""
    plane = picture.planes[index]
    depth = max(component.bits for component in picture.format.components)
    width = plane.width * (1 if depth <= 8 else 2 if depth <= 16 else 4)
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, :width]
