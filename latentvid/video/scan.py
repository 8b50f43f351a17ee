"""The first look at a video file: its frame times without decoding, its first frame, and the facts that follow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentvid.core.errors import InputError
from latentvid.video.color import ColorReading, bit_depth, read_color
from latentvid.video.container import BrokenStream, check_size, decoded, open_container, reason, video_stream
from latentvid.video.meta import VideoMeta
from latentvid.video.orientation import Orientation, orientation_of
from latentvid.video.truncation import missing_bytes

# One packet is one shown frame in these (VP8 and VP9 have hidden frames, MPEG-4 ASP packs and drops them).
_ONE_TO_ONE = {
    "h264", "hevc", "av1", "libdav1d", "mjpeg", "ffv1", "png", "prores", "dnxhd", "gif", "webp", "rawvideo", "huffyuv",
    "ffvhuff", "utvideo", "qtrle", "bmp", "tiff", "vvc", "cfhd", "jpeg2000", "apng",
}  # fmt: skip
DEFAULT_FPS = Fraction(25)


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """Times of the shown frames as the packets state them."""

    pts: Sequence[int]
    """Sorted, in ticks of the stream's time base."""
    is_exact: bool
    """Whether these are the frames' times, one each, so that a frame can be found by seeking."""
    last_duration: int
    """Ticks; 0 where not stated."""
    num_hidden: int = 0
    """Packets that an edit list or the container marks as not to be shown."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scan:
    """All that a reader needs to go on."""

    meta: VideoMeta
    index: PacketIndex
    color: ColorReading
    orientation: Orientation
    stored_size: tuple[int, int]
    """(width, height) before turning; later frames of another size are scaled to it."""


def scan(path: Path) -> Scan:
    """Look at a file: one pass over its packets, one decoded frame.

    Raises:
        InputError: it cannot be opened, holds no video, or not even its first frame can be decoded.
    """
    with open_container(path) as container:
        stream = video_stream(path, container)
        missing = missing_bytes(path, container.format.name)
        index = _index(container, stream)
    # Some formats cannot be rewound, so the first frame is decoded from a fresh start.
    with open_container(path) as container:
        stream = video_stream(path, container)
        frame = _first_frame(path, container, stream)
        color = read_color(frame, tagged_range=int(stream.codec_context.color_range))
        if color.matrix in ("ycgco", "bt2020-constant"):
            raise InputError(f"{path}: its colour matrix ({color.matrix}) is not supported; convert it to BT.709.")
        orientation = orientation_of(frame)
        meta = _describe(path, container, stream, frame, index, color, orientation, missing)
    return Scan(meta, index, color, orientation, (frame.width, frame.height))


def _index(container: InputContainer, stream: VideoStream) -> PacketIndex:
    pts: list[int] = []
    notes: list[str] = []
    num_packets = num_untimed = num_hidden = last_duration = latest = 0
    starts_at_key = True
    was_damaged = False
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            starts_at_key = packet.is_keyframe if num_packets == 0 else starts_at_key
            num_packets += 1
            was_damaged |= packet.is_corrupt
            if packet.is_discard:
                num_hidden += 1
                continue
            if packet.pts is None:
                num_untimed += 1
                continue
            if not pts or packet.pts > latest:
                latest, last_duration = packet.pts, packet.duration or 0
            pts.append(packet.pts)
    except (av.FFmpegError, UnicodeError) as error:
        was_damaged = True
        notes.append(f"its packets cannot all be read ({reason(error)})")
    ordered = sorted(set(pts))
    context = stream.codec_context
    is_exact = (
        not num_untimed
        and not was_damaged
        and starts_at_key
        and len(ordered) == len(pts) > 0
        and context.name in _ONE_TO_ONE
        and context.field_order in (0, 1)
    )
    if num_untimed:
        ordered = []
        notes.append("frames carry no times; a constant rate is assumed")
    return PacketIndex(ordered or range(num_untimed), is_exact, last_duration, num_hidden, tuple(notes))


def _first_frame(path: Path, container: InputContainer, stream: VideoStream) -> VideoFrame:
    try:
        for frame in decoded(container, stream):
            check_size(path, frame.width, frame.height)
            if frame.width < 1 or frame.height < 1:
                raise InputError(f"{path}: its pictures have no size.")
            return frame
    except BrokenStream as error:
        raise InputError(f"{path}: its video cannot be decoded, not even the first frame ({error}).") from error
    raise InputError(f"{path}: the video stream holds no frames.")


def _describe(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    frame: VideoFrame,
    index: PacketIndex,
    color: ColorReading,
    orientation: Orientation,
    missing: int,
) -> VideoMeta:
    is_timed = isinstance(index.pts, list)
    tick = stream.time_base or Fraction(1, 1000)
    fps, is_assumed = _average_rate(stream, index, tick)
    is_assumed |= container.format.name.endswith("_pipe")  # a still has no rate
    width, height = orientation.size(frame.width, frame.height)
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if orientation.is_transposed:
        ratio = 1 / ratio
    num_frames = max(1, len(index.pts))
    start_s = index.pts[0] * tick if is_timed and index.pts else Fraction(0)
    assumed = color.assumed + (("fps",) if is_assumed else ())
    notes = list(color.notes) + list(index.notes)
    if not orientation.is_exact:
        notes.append("its display matrix is no quarter turn and is not applied")
    if orientation.is_mirrored:
        notes.append("its display matrix mirrors the picture, and so does the reader")
    if missing:
        notes.append(f"the file is cut short: {missing} bytes are missing")
    if ratio != 1:
        notes.append(f"pixels are not square ({ratio}); sizes are as stored")
    return VideoMeta(
        path=str(path),
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        width=width,
        height=height,
        fps=fps,
        num_frames=num_frames,
        num_frames_source="counted" if index.is_exact and not missing else "claimed",
        duration_s=float(_duration(index, tick, fps, is_timed)),
        start_s=start_s,
        time_base=tick,
        is_variable_rate=is_timed and _is_variable(index.pts),
        rotation=orientation.rotation,
        pix_fmt=frame.format.name,
        bit_depth=bit_depth(frame),
        color_range=color.range,
        color_matrix=color.matrix,
        color_transfer=color.transfer,
        color_primaries=color.primaries,
        sample_aspect_ratio=ratio,
        has_audio=bool(container.streams.audio),
        is_truncated=bool(missing),
        assumed=assumed,
        notes=tuple(notes),
    )


def _average_rate(stream: VideoStream, index: PacketIndex, tick: Fraction) -> tuple[Fraction, bool]:
    """Return (fps, whether it is a guess).

    The container's average is kept where the frame times agree with it: equal steps to a tick, unequal ones to half a
    percent. Otherwise the times win (a last frame that is shown for shorter or longer skews the container's average).
    """
    average = stream.average_rate or stream.guessed_rate
    if isinstance(index.pts, list) and len(index.pts) > 1:
        step = Fraction(index.pts[-1] - index.pts[0], len(index.pts) - 1) * tick
        if not average:
            return _sane(1 / step)
        if not _is_variable(index.pts):
            return _sane(1 / step if abs(1 / average - step) > tick else Fraction(average))
        by_times = len(index.pts) / _duration(index, tick, 1 / step, is_timed=True)
        return _sane(by_times if abs(by_times / average - 1) > Fraction(1, 200) else Fraction(average))
    return _sane(Fraction(average)) if average and stream.average_rate else (DEFAULT_FPS, True)


def _sane(fps: Fraction) -> tuple[Fraction, bool]:
    return (fps, False) if Fraction(1, 10_000) < fps <= 10_000 else (DEFAULT_FPS, True)


def _is_variable(pts: Sequence[int]) -> bool:
    """Whether steps differ by more than the rounding to ticks."""
    steps = [b - a for a, b in itertools.pairwise(pts)]
    return bool(steps) and max(steps) - min(steps) > 1


def _duration(index: PacketIndex, tick: Fraction, fps: Fraction, is_timed: bool) -> Fraction:
    if not is_timed or not index.pts:
        return len(index.pts) / fps
    last = index.last_duration * tick or 1 / fps
    return (index.pts[-1] - index.pts[0]) * tick + last
