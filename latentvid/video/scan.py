"""The first look at a video file: its frame times without decoding, its first frame, and the facts that follow."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentvid.core.errors import InputError
from latentvid.video.clock import Finder, Stamp, Timeline, filled, runs_backwards, timeline
from latentvid.video.color import ColorReading, bit_depth, read_color
from latentvid.video.container import (
    WHOLE,
    BrokenStream,
    Pieces,
    check_size,
    decoded,
    open_container,
    reason,
    video_stream,
)
from latentvid.video.meta import VideoMeta
from latentvid.video.orientation import Orientation, orientation_of
from latentvid.video.picture import exif_orientation
from latentvid.video.rate import is_variable, typical_rate
from latentvid.video.truncation import missing_bytes

# One packet is one shown frame in these (VP8 and VP9 have hidden frames, MPEG-4 ASP packs and drops them).
_ONE_TO_ONE = {
    "h264", "hevc", "av1", "libdav1d", "mjpeg", "ffv1", "png", "prores", "dnxhd", "gif", "webp", "rawvideo", "huffyuv",
    "ffvhuff", "utvideo", "qtrle", "bmp", "tiff", "vvc", "cfhd", "jpeg2000", "apng",
}  # fmt: skip
DEFAULT_FPS = Fraction(25)
_WITHOUT_CLOCK = {"h264", "hevc", "h263", "m4v", "mpegvideo", "mjpeg", "mjpeg_2000", "vc1", "obu", "avs", "cavsvideo"}
"""Formats that are a codec's bare stream: times and rate are the codec's, or the library's guess."""
_MAY_JUMP = {"mpegts", "mpeg"}
_MAX_PROBED_PIXELS = 256_000_000
"""So much is decoded, a second or so, to find out what the packets of an odd file cannot tell."""
INTERLACED = "its pictures are interlaced: two fields, taken one after the other, make combs where things move"
DEINTERLACED = "its interlaced pictures are deinterlaced (bwdif)"
PROGRESSIVE = "its pictures are not marked as interlaced, and are left as they are"
_USUAL_STEPS = 10
FEW_PACKETS = 8
"""So few are decoded by one thread: several gain nothing there, and sometimes miss that a frame is damaged."""
_MAX_RATE = 1000
"""Frames per second that a codec's header may state; MPEG-4 often states the ticks of its clock instead."""


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """Times of the shown frames, as the packets state them and as they are."""

    pts: Sequence[int]
    """Increasing, in ticks of the stream's time base; a range where nothing states times."""
    is_exact: bool
    """Whether these are the frames' times, one each, so that a frame can be found by seeking."""
    last_duration: int
    """Ticks; 0 where not stated."""
    num_hidden: int = 0
    """Packets that an edit list or the container marks as not to be shown."""
    notes: tuple[str, ...] = ()
    stated: Sequence[int] | None = None
    """What the decoder states of each frame, where that is not its time."""
    is_by_number: bool = False
    """Whether what the decoder states says nothing: the frames, as they come, have the times one after the other."""
    is_counted: bool = False
    """Whether every frame was seen decoded."""
    pieces: Pieces = WHOLE
    """Where the stream begins anew, or without a key frame."""
    num_led: int = 0
    """First frames that no time is stated of, in front of the others."""

    def moves(self) -> list[int]:
        """Return by how many ticks each piece of a clock that starts anew, or leaps, was moved to be joined on."""
        if self.stated is None:
            return [0]
        moves: list[int] = []
        usual = statistics.median_low([b - a for a, b in itertools.pairwise(self.pts)] or [1])
        for (_, before), (time, stated) in itertools.pairwise([(0, 0), *zip(self.pts, self.stated, strict=True)]):
            # Frames of one time that were laid out evenly are moved by less than a step or two.
            if not moves or stated < before or moves[-1] - (time - stated) > _USUAL_STEPS * usual:
                moves.append(time - stated)
        return moves


@dataclass(frozen=True, slots=True)
class Scan:
    """All that a reader needs to go on."""

    meta: VideoMeta
    index: PacketIndex
    color: ColorReading
    orientation: Orientation
    stored_size: tuple[int, int]
    """(width, height) before turning; later frames of another size are scaled to it."""
    interlaced: Literal["interlaced", "all"] | None = None
    """Which pictures are: those that are marked, or, where the file as a whole is marked, all; None for none."""


def scan(path: Path, *, given_fps: Fraction | None = None) -> Scan:
    """Look at a file: one pass over its packets, one decoded frame, and some more of files that packets tell little of.

    Args:
        given_fps: the rate, where the file states none.

    Raises:
        InputError: it cannot be opened, holds no video, or not even its first frame can be decoded.
    """
    with open_container(path) as container:
        stream = video_stream(path, container)
        missing = missing_bytes(path, container.format.name)
        packets = _read_packets(container, stream)
    # Some formats cannot be rewound, so frames are decoded from a fresh start.
    with open_container(path) as container:
        stream = video_stream(path, container, single_thread=packets.num_shown <= FEW_PACKETS)
        frame, shown = _look(path, container, stream, packets)
        index = _index(packets, shown)
        fps, is_assumed = _rate(container.format.name, stream, index)
        if is_assumed and given_fps is not None:
            fps, is_assumed = given_fps, False
            index = replace(index, pts=range(len(index.pts)), stated=None, is_by_number=True, is_exact=False)
        color = read_color(frame, tagged_range=int(stream.codec_context.color_range))
        if color.matrix in ("ycgco", "bt2020-constant"):
            raise InputError(f"{path}: its colour matrix ({color.matrix}) is not supported; convert it to BT.709.")
        is_still = container.format.name.endswith("_pipe")
        orientation = (exif_orientation(path) if is_still else None) or orientation_of(frame)
        meta = _describe(path, container, stream, frame, index, color, orientation, missing, fps)
        if is_assumed:
            meta = replace(meta, assumed=(*meta.assumed, "fps"))
        interlaced = _interlaced(stream, frame)
        if interlaced:
            meta = replace(meta, notes=(*meta.notes, INTERLACED))
    return Scan(meta, index, color, orientation, (frame.width, frame.height), interlaced)


def _interlaced(stream: VideoStream, first: VideoFrame) -> Literal["interlaced", "all"] | None:
    if first.interlaced_frame:
        return "interlaced"
    return "all" if stream.codec_context.field_order > 1 else None  # 0 is not known, 1 progressive


@dataclass(frozen=True, slots=True)
class _Packets:
    """What one pass over the packets told."""

    stamps: list[Stamp]
    """Of the shown packets that have a time, in the order of decoding."""
    times: Timeline
    num_shown: int
    num_hidden: int
    last_duration: int
    starts_at_key: bool
    pieces: Pieces
    was_damaged: bool
    is_one_to_one: bool
    """Whether the codec is one whose packets are frames."""
    has_fields: bool
    """Whether the stream is marked as interlaced: then two packets may be one frame."""
    may_reorder: bool
    container: str
    notes: tuple[str, ...]

    @property
    def is_untimed(self) -> bool:
        """Whether most packets lack a time; single ones do where a clip was cut out of an open GOP."""
        return 2 * len(self.stamps) < self.num_shown

    @property
    def is_doubtful(self) -> bool:
        """Whether the times may be those of decoding: they are all in that order, or the container states no others."""
        if not self.may_reorder or self.times.num_restarts:
            return False
        return self.container == "avi" or all(a.pts < b.pts for a, b in itertools.pairwise(self.stamps))

    @property
    def is_plain(self) -> bool:
        return (
            self.starts_at_key
            and len(self.stamps) == self.num_shown > 0
            and self.times.stated is None
            and self.container not in _WITHOUT_CLOCK
        )


def _read_packets(container: InputContainer, stream: VideoStream) -> _Packets:
    stamps: list[Stamp] = []
    notes: list[str] = []
    num_packets = num_shown = num_hidden = last_duration = latest = 0
    keys: list[int] = []
    was_damaged = False
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.is_keyframe:
                keys.append(num_packets)
            num_packets += 1
            was_damaged |= packet.is_corrupt
            if packet.is_discard:
                num_hidden += 1
                continue
            num_shown += 1
            if packet.pts is None:
                continue
            if not stamps or packet.pts > latest:
                latest, last_duration = packet.pts, packet.duration or 0
            stamps.append(Stamp(packet.pts, packet.dts, packet.is_keyframe, num_packets - 1))
    except (av.FFmpegError, UnicodeError) as error:
        was_damaged = True
        notes.append(f"its packets cannot all be read ({reason(error)})")
    name, context = container.format.name, stream.codec_context
    # Matroska states no decoding times; those that the library makes up follow the times of showing.
    own_order, tick = "matroska" not in name, stream.time_base or Fraction(1, 1000)
    times = timeline(stamps, tick, has_own_order=own_order, may_jump=name in _MAY_JUMP)
    starts_at_key = not num_packets or keys[:1] == [0]
    return _Packets(
        stamps,
        times,
        num_shown,
        num_hidden,
        last_duration,
        starts_at_key,
        _pieces(times.breaks, keys, num_packets),
        was_damaged,
        context.name in _ONE_TO_ONE,
        context.field_order not in (0, 1),  # not known, progressive
        bool(context.has_b_frames),
        name,
        tuple(notes),
    )


def _pieces(breaks: Sequence[int], keys: Sequence[int], num_packets: int) -> Pieces:
    """Return where pieces begin, and what of each lies in front of its first key frame."""
    firsts = [next((key for key in keys if key >= start), num_packets) for start in (0, *breaks)]
    broken = (range(start, key) for start, key in zip((0, *breaks), firsts, strict=True) if start < key)
    return Pieces(frozenset(breaks), tuple(broken))


def _look(path: Path, container: InputContainer, stream: VideoStream, packets: _Packets) -> tuple[VideoFrame, _Shown]:
    """Decode the first frame, and of odd files as many more as cost little."""
    first: VideoFrame | None = None
    stated: list[int | None] = []
    is_odd = not packets.is_plain or packets.is_doubtful or (packets.has_fields and packets.is_one_to_one)
    try:
        for frame in decoded(container, stream, packets.pieces):
            if first is None:
                check_size(path, frame.width, frame.height)
                if frame.width < 1 or frame.height < 1:
                    raise InputError(f"{path}: its pictures have no size.")
                first = frame
            stated.append(frame.pts)
            if not is_odd or len(stated) * frame.width * frame.height > _MAX_PROBED_PIXELS:
                return first, _Shown(stated, is_whole=False)
    except BrokenStream as error:
        if first is None:
            raise InputError(f"{path}: its video cannot be decoded, not even the first frame ({error}).") from error
        return first, _Shown(stated, is_whole=False)
    if first is None:
        raise InputError(f"{path}: the video stream holds no frames.")
    return first, _Shown(stated, is_whole=True)


@dataclass(frozen=True, slots=True)
class _Shown:
    """Frames that were decoded while looking."""

    stated: list[int | None]
    is_whole: bool
    """Whether they are all."""


def _index(packets: _Packets, shown: _Shown) -> PacketIndex:
    """Return the times of the frames, from what packets and first frames state."""
    times, notes = packets.times, list(packets.notes)
    by_number = packets.is_doubtful and runs_backwards(shown.stated)
    ticks, stated = times.ticks, times.stated
    if packets.is_untimed:
        ticks, stated = range(packets.num_shown), None
        notes.append("frames carry no times; they follow each other at a constant rate")
    elif by_number:
        ticks, stated = _in_order(packets), None
        notes.append("the file states when frames are decoded, not when they are shown; they are shown in their order")
    elif shown.stated[0] is not None:
        ticks, stated = _from_first(ticks, stated, shown.stated[0])
    if times.num_restarts:
        notes.append(f"its clock starts anew at {times.num_restarts} places; what follows is joined on")
    if times.num_equal and not by_number:
        notes.append(f"{times.num_equal} frames are stated at the time of the one before; they are laid out evenly")
    is_frames = packets.is_one_to_one and not packets.has_fields
    is_exact = packets.is_plain and not by_number and not packets.was_damaged and is_frames
    index = PacketIndex(
        ticks,
        is_exact,
        0 if by_number else packets.last_duration,
        packets.num_hidden,
        tuple(notes),
        stated,
        by_number or packets.is_untimed,
        pieces=packets.pieces,
    )
    if shown.is_whole and not is_exact:
        index = _only_decoded(index, shown, packets)
    elif not index.is_by_number:
        index = _led(index, shown.stated)
    if packets.container in _WITHOUT_CLOCK and index.pts and index.pts[0] and not isinstance(index.pts, range):
        stated = index.pts if index.stated is None else index.stated
        index = replace(index, pts=[time - index.pts[0] for time in index.pts], stated=stated)
    lost = packets.num_shown - len(index.pts)
    if lost > 0 and is_frames:
        note = f"{lost} of its packets give no frame, as in clips that were cut out of longer ones"
        index = replace(index, notes=(*index.notes, note))
    return index


def _in_order(packets: _Packets) -> list[int]:
    """Return the times of showing of a file that states those of decoding."""
    decoding = sorted({stamp.dts for stamp in packets.stamps if stamp.dts is not None})
    # AVI states no others; what the library makes of them ends unevenly.
    is_known = packets.container == "avi" and len(decoding) == len(packets.stamps)
    keys = (k for k, stamp in enumerate(packets.stamps) if stamp.is_key)
    ticks = list(decoding if is_known else packets.times.ticks)[0 if packets.starts_at_key else next(keys, 0) :]
    if len(ticks) > 2:  # an encoder's delay may lie between its first packet and the second
        usual = statistics.median_low(b - a for a, b in itertools.pairwise(ticks))
        if ticks[1] - ticks[0] > 1.5 * usual:
            ticks[0] = ticks[1] - usual
    return ticks


def _from_first(
    ticks: Sequence[int], stated: Sequence[int] | None, first: int
) -> tuple[Sequence[int], Sequence[int] | None]:
    """Leave out what lies before the first frame that can be decoded, in captures that begin inside a GOP."""
    number = Finder(ticks if stated is None else stated)(first) or 0
    return (ticks[number:], None if stated is None else stated[number:]) if number else (ticks, stated)


def _only_decoded(index: PacketIndex, shown: _Shown, packets: _Packets) -> PacketIndex:
    """Leave out the packets that gave no frame, all frames having been decoded."""
    count = len(shown.stated)
    if index.is_by_number:
        late = 0 if packets.starts_at_key else max(0, len(index.pts) - count)
        known = index.pts[late : late + count]
        return replace(index, pts=known if len(known) == count else range(count), is_counted=True)
    find = Finder(index.pts if index.stated is None else index.stated)
    numbers = [find(pts) for pts in shown.stated]
    if None in numbers:
        times = filled([None if number is None else index.pts[number] for number in numbers])
        return replace(index, pts=times, stated=None, is_by_number=True, is_counted=True)
    known = [index.pts[n] for n in numbers if n is not None]
    stated = None if index.stated is None else [index.stated[n] for n in numbers if n is not None]
    return replace(index, pts=known, stated=stated, is_counted=True)


def _led(index: PacketIndex, shown: Sequence[int | None]) -> PacketIndex:
    """Put times in front of the others for first frames that have none."""
    num_led = next((k for k, pts in enumerate(shown) if pts is not None), 0)
    if not num_led:
        return index
    times = filled([None] * num_led + list(index.pts))
    stated = None if index.stated is None else [*times[:num_led], *index.stated]
    return replace(index, pts=times, stated=stated, num_led=num_led)


def _describe(
    path: Path,
    container: InputContainer,
    stream: VideoStream,
    frame: VideoFrame,
    index: PacketIndex,
    color: ColorReading,
    orientation: Orientation,
    missing: int,
    fps: Fraction,
) -> VideoMeta:
    is_timed = not isinstance(index.pts, range)
    tick = stream.time_base or Fraction(1, 1000)
    if not is_timed and (1 / fps / tick).denominator > 1:
        tick = 1 / fps
    width, height = orientation.size(frame.width, frame.height)
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    if orientation.is_transposed:
        ratio = 1 / ratio
    num_frames = max(1, len(index.pts))
    start_s = index.pts[0] * tick if is_timed and index.pts else Fraction(0)
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
        num_frames_source="counted" if (index.is_exact or index.is_counted) and not missing else "claimed",
        duration_s=float(_duration(index, tick, fps, is_timed)),
        start_s=start_s,
        time_base=tick,
        is_variable_rate=is_timed and is_variable(index.pts),
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
        assumed=color.assumed,
        notes=tuple(notes),
    )


def _rate(kind: str, stream: VideoStream, index: PacketIndex) -> tuple[Fraction, bool]:
    """Return (frames per second, whether that is a guess)."""
    if kind.endswith("_pipe"):  # a still has no rate
        return Fraction(stream.average_rate or DEFAULT_FPS), True
    tick = stream.time_base or Fraction(1, 1000)
    average, by_codec = stream.average_rate or stream.guessed_rate, stream.codec_context.framerate
    own = Fraction(by_codec) if by_codec and by_codec <= _MAX_RATE else None
    if kind in _WITHOUT_CLOCK:
        return (own, False) if own else (DEFAULT_FPS, True)
    stated = [Fraction(rate) for rate in (average, own, stream.guessed_rate) if rate]
    if isinstance(index.pts, range):
        return _sane(stated[0]) if stated and stream.average_rate else (DEFAULT_FPS, True)
    fps = typical_rate(index.pts, tick, stated, index.last_duration)
    if fps is None:
        return _sane(Fraction(average)) if average and stream.average_rate else (DEFAULT_FPS, True)
    return _sane(fps)


def _sane(fps: Fraction) -> tuple[Fraction, bool]:
    return (fps, False) if Fraction(1, 10_000) < fps <= 10_000 else (DEFAULT_FPS, True)


def _duration(index: PacketIndex, tick: Fraction, fps: Fraction, is_timed: bool) -> Fraction:
    if not is_timed or not index.pts:
        return len(index.pts) / fps
    last = index.last_duration * tick or 1 / fps
    return (index.pts[-1] - index.pts[0]) * tick + last
