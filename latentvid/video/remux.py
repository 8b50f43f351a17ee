"""Joining encoded segments without re-encoding them: packets are copied and their times moved, nothing else."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from latentvid.core.errors import InputError, UsageError
from latentvid.core.files import atomic_path, resource_errors
from latentvid.video.companions import DISK_ERRORS, Account, Companions, container_options
from latentvid.video.container import open_container, reason, video_stream
from latentvid.video.sound import Sound, copied_sound, decode_time, picture_start


@dataclass(frozen=True, slots=True)
class _Segment:
    """What must agree between segments, and where one ends."""

    path: Path
    codec: str
    parameters: bytes
    size: tuple[int, int]
    time_base: Fraction
    first: int
    """Earliest presentation time, ticks."""
    length: int
    """Ticks from there to the end of the last frame."""
    delay: int
    """Ticks by which decoding must run ahead of showing, for frames that are stored out of order."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A clip whose companions are carried into a film."""

    path: Path
    start_s: Fraction
    """The time in the clip that becomes the film's 0."""
    moves_s: tuple[Fraction, ...] = (Fraction(0),)
    """By how much each piece of the clip's clock is moved, where that starts anew."""


def concat_segments(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    audio_from: str | Path | None = None,
    beside: Beside | None = None,
    fps: Fraction | None = None,
    overwrite: bool = True,
) -> Account:
    """Write one file that shows the segments one after another, frame for frame what each decodes to alone.

    Segments must come from one writer's settings (same codec parameters, size and clock) and begin with a key frame.
    Equal segments give equal bytes. Memory does not grow with their number or length.

    Args:
        audio_from: a file whose sound is copied along, from its first picture on and to the end of the film; a file
            without sound adds none.
        beside: a clip all of whose sound, subtitles, chapters and so on are carried along.
        fps: the rate that the file states, where it states one besides its frames' times.

    Returns what became of these.

    Raises:
        InputError: a segment is missing, damaged, or of other settings than the first.
        UsageError: nothing was given, `out` exists (without `overwrite`), or the sound does not fit into its container.
    """
    if not paths:
        raise UsageError(f"{out}: there are no segments to join.")
    segments = [_examine(Path(path)) for path in paths]
    for segment in segments[1:]:
        _check_alike(segments[0], segment)
    with atomic_path(out, overwrite=overwrite) as written, resource_errors(Path(out)):
        options = container_options(written, beside.path if beside else None)
        try:
            with av.open(f"file:{written}", "w", container_options=options) as target:
                return _copy(segments, target, None if audio_from is None else Path(audio_from), beside, fps)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and (not isinstance(error, av.FFmpegError) or error.errno in DISK_ERRORS):
                raise
            raise UsageError(
                f"{out}: the segments cannot be joined into this kind of file ({reason(error)})."
            ) from error


def _copy(
    segments: Sequence[_Segment],
    target: OutputContainer,
    audio_from: Path | None,
    beside: Beside | None,
    fps: Fraction | None,
) -> Account:
    with open_container(segments[0].path) as template_file:
        template = video_stream(segments[0].path, template_file)
        video: VideoStream = target.add_stream_from_template(template)
        video.time_base = segments[0].time_base
        ratio = template.sample_aspect_ratio
        if ratio and ratio != 1:  # which only some codecs state themselves
            video.codec_context.sample_aspect_ratio = ratio
        if fps is not None:
            video.codec_context.framerate = fps
        if beside is not None:
            with open_container(beside.path) as source:
                companions = Companions(beside.path, source, target, video, beside.start_s, beside.moves_s)
                _mux(target, heapq.merge(_film(segments, video), _carried(source, companions), key=decode_time))
                return companions.account
        if audio_from is None:
            _mux(target, _film(segments, video))
            return Account()
        end_s = sum((s.length * s.time_base for s in segments), Fraction(0))
        with copied_sound(Sound(audio_from, picture_start(audio_from), end_s), target) as sound:
            _mux(target, heapq.merge(_film(segments, video), sound, key=decode_time))
        return Account()


def _carried(source: InputContainer, companions: Companions) -> Iterator[Packet]:
    if companions.streams:
        for packet in source.demux(*companions.streams):
            yield from companions.packets(packet)


def _mux(target: OutputContainer, packets: Iterator[Packet]) -> None:
    for packet in packets:
        target.mux_one(packet)


def _film(segments: Sequence[_Segment], stream: VideoStream) -> Iterator[Packet]:
    """Yield the packets of all segments on one clock.

    Decode times are made anew from the show times in order, less one delay for the whole film: encoders start segments
    of different lengths with different delays, and those would cross where segments meet.
    """
    offset = 0
    delay = max(segment.delay for segment in segments)
    for segment in segments:
        shift = offset - segment.first
        shown = sorted(time for _, time in _packets(segment.path))
        for (packet, time), dts in zip(_packets(segment.path), shown, strict=True):
            packet.pts = time + shift
            packet.dts = dts + shift - delay
            packet.stream = stream
            yield packet
        offset += segment.length


def _packets(path: Path) -> Iterator[tuple[Packet, int]]:
    """Yield a segment's packets in decode order, each with its show time in ticks."""
    with open_container(path) as container:
        stream = video_stream(path, container)
        try:
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue
                if packet.pts is None or packet.dts is None or packet.is_corrupt:
                    raise InputError(f"{path}: damaged, or its packets carry no times.")
                yield packet, packet.pts
        except av.FFmpegError as error:
            raise InputError(f"{path}: damaged ({reason(error)}).") from error


def _examine(path: Path) -> _Segment:
    stored: list[int] = []
    end = 0
    for packet, time in _packets(path):
        if not stored and not packet.is_keyframe:
            raise InputError(f"{path}: does not begin with a key frame.")
        if packet.is_discard:
            raise InputError(f"{path}: hides frames by an edit list; such a file cannot be joined without re-encoding.")
        stored.append(time)
        end = max(end, time + max(1, packet.duration or 0))
    if not stored:
        raise InputError(f"{path}: holds no frames.")
    shown = sorted(stored)
    if any(a == b for a, b in itertools.pairwise(shown)):
        raise InputError(f"{path}: two frames share one time.")
    delay = max(in_order - time for in_order, time in zip(shown, stored, strict=True))
    with open_container(path) as container:
        stream = video_stream(path, container)
        context = stream.codec_context
        parameters = bytes(context.extradata or b"")
        size = (context.width, context.height)
        return _Segment(
            path, context.name, parameters, size, stream.time_base or Fraction(1), shown[0], end - shown[0], delay
        )


def _check_alike(first: _Segment, other: _Segment) -> None:
    for name in ("codec", "size", "time_base", "parameters"):
        if getattr(first, name) != getattr(other, name):
            what = {"parameters": "encoder settings", "time_base": "clock"}.get(name, name)
            raise InputError(f"{other.path}: its {what} differs from that of {first.path}; they cannot be joined.")
