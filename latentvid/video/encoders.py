"""The encoders behind the video writer: one picture in, bytes out; libav for films and GIFs, Pillow for stills."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol, cast

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from latentvid.core.errors import UsageError, did_you_mean
from latentvid.video.color import FromRgb
from latentvid.video.planes import Planes
from latentvid.video.sound import Sound, copied_sound, decode_time

# The number of encoder threads changes the bytes, so it is the same on every machine.
_THREADS = 4


class Encoder(Protocol):
    """Where the writer's pictures go."""

    def add(self, picture: np.ndarray | VideoFrame, time_s: Fraction) -> None:
        """Take uint8 [h w 3], or a picture as it is to be stored, shown from `time_s` on."""

    def finish(self) -> None:
        """Flush everything and close the file."""

    def abort(self) -> None:
        """Close the file; what it holds no longer matters."""


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """What the writer was asked for."""

    width: int
    height: int
    fps: Fraction
    codec: str
    crf: float
    preset: str
    pix_fmt: str | None
    time_base: Fraction | None
    color: Literal["bt709", "bt601"]
    frame_step: Fraction
    parameter_set: int = 0
    sample_aspect_ratio: Fraction = Fraction(1)
    sound: Sound | None = None
    planes: Planes | None = None
    """How pictures are stored, where that is not for the codec to choose; these have its size, colours and shape."""


_SUFFIXES = {
    "h264": (".mp4", ".m4v", ".mov", ".mkv"),
    "h264-lossless": (".mp4", ".m4v", ".mov", ".mkv"),
    "ffv1": (".mkv",),
    "gif": (".gif",),
    "still": (".png", ".jpg", ".jpeg", ".webp"),
}


def choose_codec(path: Path, codec: str | None, *, is_film: bool = False) -> str:
    """Return the codec for an output: the one asked for if the suffix can hold it, else the suffix's own.

    Args:
        is_film: the codec was chosen for this kind of file by how pictures are stored (`Planes.lossless_codec`).

    Raises:
        UsageError: the suffix or the codec is unknown, or they do not go together.
    """
    suffix = path.suffix.lower()
    fitting = [name for name, suffixes in _SUFFIXES.items() if suffix in suffixes]
    if not fitting:
        known = sorted({s for suffixes in _SUFFIXES.values() for s in suffixes})
        raise UsageError(
            f"{path}: cannot write files called {suffix or 'without a suffix'}; known: {', '.join(known)}."
        )
    if codec is None:
        return fitting[0]
    if codec not in _SUFFIXES:
        raise UsageError(f"video codec {codec!r} is not known{did_you_mean(codec, _SUFFIXES)}.")
    if codec not in fitting and not is_film:
        raise UsageError(f"{path}: {codec} does not go into {suffix}; use {', '.join(_SUFFIXES[codec])}.")
    return codec


def open_encoder(target: Path, settings: EncoderSettings) -> Encoder:
    """Start an encoder that writes to `target`."""
    if settings.codec == "still":
        return StillEncoder(target)
    return AvEncoder(target, settings)


class StillEncoder:
    """Writes the one picture of a clip of one frame."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._count = 0

    def add(self, picture: np.ndarray | VideoFrame, time_s: Fraction) -> None:
        assert isinstance(picture, np.ndarray)
        self._count += 1
        if self._count > 1:
            raise UsageError(f"a {self._target.suffix} file holds one picture; name a video file for more frames.")
        options = {".png": {}, ".webp": {"lossless": True}}.get(self._target.suffix.lower(), {"quality": 95})
        Image.fromarray(picture).save(self._target, **options)

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass


class AvEncoder:
    """Writes films. Equal pictures, times and settings give equal bytes."""

    def __init__(self, target: Path, settings: EncoderSettings) -> None:
        self._settings = settings
        self._last: int | None = None
        name, options, pix_fmt, convert = _plan(settings)
        self._convert = convert
        container_options = {"fflags": "+bitexact"}
        if target.suffix.lower() in (".mp4", ".m4v", ".mov"):
            container_options["movflags"] = "+faststart"
        self._stack = ExitStack()
        self._container = av.open(f"file:{target}", "w", container_options=container_options)
        self._stack.callback(self._container.close)
        try:
            stream = cast(VideoStream, self._container.add_stream(name, rate=settings.fps, options=options))
            planes = self._planes = settings.planes
            stream.width, stream.height = (planes or settings).width, (planes or settings).height
            stream.pix_fmt = pix_fmt
            self._tick = _tick(settings)
            stream.time_base = self._tick
            context = stream.codec_context
            context.time_base = self._tick
            context.thread_count = _THREADS
            ratio = (planes or settings).sample_aspect_ratio
            if ratio != 1:
                context.sample_aspect_ratio = ratio
            if planes is not None and planes.display_matrix is not None:
                stream.set_display_matrix(planes.display_matrix)
            if isinstance(convert, FromRgb) and settings.codec != "gif":
                convert.tag(context)
            self._stream = stream
            self._step = max(1, round(settings.frame_step / self._tick))
            self._sound = self._open_sound(settings.sound)
            self._due = next(self._sound, None)
        except BaseException:
            self._stack.close()
            raise

    def add(self, picture: np.ndarray | VideoFrame, time_s: Fraction) -> None:
        frame = picture if isinstance(picture, VideoFrame) else self._stored(picture)
        frame.pts = round(time_s / self._tick)
        if self._last is not None and frame.pts <= self._last:
            if self._settings.codec != "gif":
                raise ValueError(
                    f"frame times must increase by at least {self._tick} s; at {float(time_s)} s they do not"
                )
            frame.pts = self._last + 1  # a GIF's clock cannot resolve more than 100 frames a second
        self._last = frame.pts
        frame.time_base = self._tick
        frame.duration = self._step
        self._mux(self._stream.encode(frame))

    def _stored(self, rgb: np.ndarray) -> VideoFrame:
        return self._convert(rgb if self._planes is None else self._planes.turned_back(rgb))

    def finish(self) -> None:
        self._mux(self._stream.encode(None))
        self._mux_sound(None)
        self._stack.close()

    def abort(self) -> None:
        self._stack.close()

    def _open_sound(self, sound: Sound | None) -> Iterator[Packet]:
        if sound is None:
            return iter(())
        return self._stack.enter_context(copied_sound(sound, self._container))

    def _mux(self, packets: list[Packet]) -> None:
        for packet in packets:
            self._mux_sound(decode_time(packet))
            self._container.mux_one(packet)

    def _mux_sound(self, until_s: Fraction | None) -> None:
        while self._due is not None and (until_s is None or decode_time(self._due) <= until_s):
            self._container.mux_one(self._due)
            self._due = next(self._sound, None)


def _tick(settings: EncoderSettings) -> Fraction:
    if settings.codec == "gif":
        return Fraction(1, 100)
    return settings.time_base or 1 / settings.fps


def _plan(settings: EncoderSettings) -> tuple[str, dict[str, str], str, Callable[[np.ndarray], VideoFrame]]:
    """Return (encoder, options, pixel format, conversion)."""
    if settings.codec == "gif":
        return "gif", {}, "pal8", _to_palette
    planes = settings.planes
    if settings.codec == "ffv1":
        options = {"level": "3", "slicecrc": "1"}
        if planes is not None:  # whose size may not be one that can be cut into four
            return "ffv1", options, planes.pix_fmt, planes.converter()
        return "ffv1", {**options, "slices": "4"}, "bgr0", FromRgb("bgr0")
    if settings.codec == "h264-lossless":
        options = {"qp": "0", "preset": settings.preset}
        if planes is None or planes.pix_fmt == "rgb24":
            return "libx264rgb", options, "rgb24", FromRgb("rgb24")
        return "libx264", options, planes.pix_fmt, planes.converter()
    # H.264 can crop 4:2:0 pictures by even numbers only, so an odd size keeps its size as 4:4:4.
    is_odd = settings.width % 2 or settings.height % 2
    pix_fmt = planes.pix_fmt if planes else settings.pix_fmt or ("yuv444p" if is_odd else "yuv420p")
    if is_odd and pix_fmt in ("yuv420p", "yuvj420p", "nv12"):
        raise UsageError(f"{pix_fmt} cannot hold odd sizes such as {settings.width}x{settings.height}; use yuv444p.")
    # x264's macroblock tree reads memory that it never wrote, and its bytes then depend on what ran before.
    x264 = "open-gop=0:mbtree=0"
    if settings.parameter_set:
        # Stored in the order shown, so that a segment's clock cannot cross that of the file it is appended to.
        x264 += f":sps-id={settings.parameter_set}:bframes=0"
    options = {"crf": f"{settings.crf:g}", "preset": settings.preset, "g": "48", "x264-params": x264}
    name = "libx264rgb" if pix_fmt == "rgb24" else "libx264"
    return name, options, pix_fmt, planes.converter() if planes else FromRgb(pix_fmt, settings.color)


def _to_palette(rgb: np.ndarray) -> VideoFrame:
    """Give a picture its own 256 colours."""
    picture = Image.fromarray(rgb).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    palette = np.zeros((256, 4), np.uint8)
    colors = np.asarray(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette[: len(colors), 1:] = colors
    palette[:, 0] = 255
    return VideoFrame.from_ndarray((np.ascontiguousarray(picture), palette), format="pal8")  # type: ignore[arg-type]
