"""Appending new frames to a user's H.264 file without touching its own: packets are copied, none is re-encoded.

Two encoders' streams fit into one track if their parameter sets (SPS, PPS; H.264 7.4.1.2.1) have different numbers:
the track's header then holds both, and every picture names its own. The new segments are encoded with a number that
the file does not use (`VideoWriter(parameter_set=...)`), and in the file's own pixel format, colours, shape and turn.
What follows from a file's packets is found out by trying: a caller joins it to a segment and asks `kept_frames`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import torch
from av.container import OutputContainer
from av.packet import Packet

from latentvid.core.errors import InputError
from latentvid.core.files import atomic_path, resource_errors
from latentvid.video.color import default_tags
from latentvid.video.companions import DISK_ERRORS, Account, Companions, container_options
from latentvid.video.container import open_container, reason, video_stream
from latentvid.video.h264 import BadHeader, PacketForm, ParameterSets, parameter_sets, units_of
from latentvid.video.meta import VideoMeta
from latentvid.video.planes import Planes, planes_of, same_planes, stored_frames
from latentvid.video.reader import AS_STATED, PyAVReader, Reading

TOLERANCE_S = Fraction(2, 1000)
"""The clock of some containers ticks in milliseconds."""
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
_OWN_CLOCK = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Formats whose clock begins with the film; others' times are moved to begin at 0."""
_USUAL_TAGS = (0, 1, 2, 5, 6)
"""Numbers of BT.709 and BT.601, and of nothing said."""


class NotAppendable(Exception):
    """The file's packets cannot be kept; the text says why, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class Joint:
    """How segments must be encoded to be appended to a file."""

    header: ParameterSets
    """The file's own."""
    decode_times: tuple[int, ...] | None
    """Of its packets, ticks, where it does not state them all."""
    parameter_set: int
    planes: Planes
    start_s: Fraction | None
    """The time in the file that becomes 0; None where its times stay."""
    end_s: Fraction
    """When the file's last frame ends in the film: the first new one is shown then."""


def joint_of(clip: str | Path, out: str | Path) -> Joint:
    """Return what segments to append to `clip` must be like.

    Raises:
        NotAppendable: it cannot be appended to in `out`'s kind of file.
        InputError: it cannot be read.
    """
    clip, out = Path(clip), Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise NotAppendable(f"{out.suffix} files are made of other packets")
    reader = PyAVReader(clip)
    meta, index = reader.meta, reader.scan.index
    if meta.codec != "h264":
        raise NotAppendable(f"{_codec_in_words(meta)}, and new frames are H.264")
    planes = planes_of(clip)
    if not planes.fits_h264():
        raise NotAppendable(f"new frames cannot be encoded with pixels of {planes.pix_fmt}")
    if isinstance(index.pts, range) or index.is_by_number or index.num_led:
        raise NotAppendable("its packets do not say when its frames are shown")
    if index.stated is not None:
        raise NotAppendable("its packets do not state the right times of its frames")
    start = None if meta.container in _OWN_CLOCK else next(reader.frames(0, 1)).time_s
    end = index.pts[-1] * meta.time_base + (index.last_duration * meta.time_base or 1 / meta.fps)
    found = _survey(clip)
    try:
        number = found.header.free_number(found.inside)
    except BadHeader as error:
        raise NotAppendable(str(error)) from error
    planes = replace(planes, tags=_tags_of_new(planes))
    return Joint(found.header, found.decode_times(), number, planes, start, end - (start or 0))


def append_segments(
    clip: str | Path, segments: Sequence[str | Path], out: str | Path, *, joint: Joint, fps: Fraction,
    overwrite: bool = True,
) -> Account:  # fmt: skip
    """Write the clip, sound and all, followed by the segments' frames at `fps`. Memory does not grow with either.

    Args:
        segments: written with the joint's parameter set and planes.

    Returns what became of all that the clip holds beside its pictures.

    Raises:
        NotAppendable: the container does not take it.
        UsageError: it does not take the clip's sound.
    """
    clip = Path(clip)
    with atomic_path(out, overwrite=overwrite) as beside, resource_errors(Path(out)):
        try:
            with av.open(f"file:{beside}", "w", container_options=container_options(beside, clip)) as target:
                return _copy(clip, [Path(s) for s in segments], target, joint, fps)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and (not isinstance(error, av.FFmpegError) or error.errno in DISK_ERRORS):
                raise
            raise NotAppendable(f"the file cannot hold it ({reason(error)})") from error


def kept_frames(
    out: str | Path,
    clip: str | Path,
    segments: Sequence[str | Path] = (),
    *,
    in_rgb: bool = False,
    reading: Reading = AS_STATED,
    start: int = 0,
    stop: int | None = None,
) -> int | None:
    """Return how many frames a clip has, if `out` shows all of them first, bit for bit and at their times, and then
    those of the segments and no others; else None. Without segments, anything may follow.

    Args:
        in_rgb: compare colours, where `out` does not store them as the clip does; else the stored values.
        reading: how the clip is opened; stored values are those before any deinterlacing.
        start, stop: compare only the clip's frames start .. stop - 1, which are counted then.

    Raises:
        InputError: the clip is damaged.
    """
    is_same: Callable[[Any, Any], bool] = torch.equal if in_rgb else same_planes
    theirs = _until_damage(_pictures(out, in_rgb=in_rgb, start=start))
    shift: Fraction | None = None
    count = 0
    pix_fmt = None if in_rgb else planes_of(clip).pix_fmt
    for time_s, mine in _pictures(clip, reading, in_rgb=in_rgb, pix_fmt=pix_fmt, start=start, stop=stop):
        at, other = next(theirs, (Fraction(0), None))
        if other is None or not is_same(other, mine):
            return None
        shift = at - time_s if shift is None else shift
        if abs(at - time_s - shift) > TOLERANCE_S:
            return None
        count += 1
    if segments:
        new = (picture for segment in segments for _, picture in _pictures(segment, in_rgb=in_rgb))
        for picture, meant in zip_longest((picture for _, picture in theirs), new):
            if picture is None or meant is None or not is_same(picture, meant):
                return None
    return count


def begins_with(out: str | Path, clip: str | Path, reading: Reading = AS_STATED) -> bool:
    """Whether `out` shows every frame of `clip` first, bit for bit and at its time."""
    return kept_frames(out, clip, in_rgb=True, reading=reading) is not None


def _pictures(
    path: str | Path,
    reading: Reading = AS_STATED,
    *,
    in_rgb: bool,
    pix_fmt: str | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[tuple[Fraction, Any]]:
    """Yield the frames start .. stop - 1 of a file with their times, as RGB tensors or as they are stored."""
    if in_rgb:
        with reading.open(path) as reader:
            yield from ((frame.time_s, frame.pixels) for frame in reader.frames(start, stop))
    else:
        stored = stored_frames(path, pix_fmt, fps=reading.fps, start=start, stop=stop)
        yield from ((frame.time_s, frame.picture) for frame in stored)


def _until_damage(pictures: Iterator[tuple[Fraction, Any]]) -> Iterator[tuple[Fraction, Any]]:
    with suppress(InputError):
        yield from pictures


def _codec_in_words(meta: VideoMeta) -> str:
    kind = meta.container.split(",")[0].removesuffix("_pipe")
    if meta.container in _OWN_CLOCK:
        return f"its codec is {meta.codec}"
    file = f"it is {'an' if kind[0] in 'aeio' else 'a'} {kind} file"
    return file if meta.codec == kind else f"{file} of {meta.codec}"


def _tags_of_new(planes: Planes) -> tuple[int, int, int, int]:
    """Return what new frames' parameter sets say of their colours: what the clip says, or what it is read as."""
    usual = default_tags(planes.color.matrix) if planes.color.matrix in ("bt709", "bt601") else planes.tags
    if planes.color.range == "limited" and all(tag in _USUAL_TAGS for tag in planes.tags):
        return usual
    matrix, _, transfer, primaries = (
        instead if tag in (0, 2) else tag for tag, instead in zip(planes.tags, usual, strict=True)
    )
    return matrix, 2 if planes.color.range == "full" else 1, transfer, primaries


def _copy(clip: Path, segments: list[Path], target: OutputContainer, joint: Joint, fps: Fraction) -> Account:
    with open_container(clip) as source:
        own = video_stream(clip, source)
        form = PacketForm.of(bytes(own.codec_context.extradata or b""))
        video = target.add_stream_from_template(own)
        video.codec_context.extradata = joint.header.joined(_header_of(segments[0])).to_bytes()
        if joint.planes.sample_aspect_ratio != 1:
            video.codec_context.sample_aspect_ratio = joint.planes.sample_aspect_ratio
        tick = own.time_base or Fraction(1, 90_000)
        video.time_base = tick
        companions = Companions(clip, source, target, video, joint.start_s)
        shift, is_begun, decoded_until = round((joint.start_s or 0) / tick), False, 0
        decode_times = iter(joint.decode_times or ())
        for packet in source.demux(own, *companions.streams):
            if packet.stream.index != own.index:
                for other in companions.packets(packet):
                    target.mux_one(other)
                continue
            is_begun |= packet.is_keyframe
            # What lies in front of the first key frame cannot be shown, nor what a cut has left without a time.
            if packet.size == 0 or not is_begun or packet.pts is None:
                continue
            dts = packet.dts if joint.decode_times is None else next(decode_times)
            if dts is None:
                raise NotAppendable("its packets carry no times")
            copy = packet if form.is_usual else _in_usual_form(packet, form)
            copy.pts, copy.dts = packet.pts - shift, dts - shift
            copy.stream = video
            decoded_until = copy.dts + (packet.duration or round(1 / fps / tick))
            target.mux_one(copy)
        # New frames are decoded as early as the clip's, so that the steps in between are even.
        ahead = max(0, round(joint.end_s / tick) - decoded_until)
        for n, packet in enumerate(_packets(segments)):
            start, end = (round((joint.end_s + k / fps) / tick) for k in (n, n + 1))
            packet.stream = video
            packet.time_base = tick
            packet.pts, packet.dts = start, start - ahead
            packet.duration = end - start
            target.mux_one(packet)
        return companions.account


def _in_usual_form(packet: Packet, form: PacketForm) -> Packet:
    copy = Packet(form.usual(bytes(packet)))
    copy.time_base, copy.duration, copy.is_keyframe = packet.time_base, packet.duration, packet.is_keyframe
    return copy


def _packets(segments: list[Path]) -> Iterator[Packet]:
    for path in segments:
        with open_container(path) as container:
            for packet in container.demux(video_stream(path, container)):
                if packet.size:
                    yield packet


def _header_of(path: Path) -> ParameterSets:
    with open_container(path) as container:
        return ParameterSets.read(bytes(video_stream(path, container).codec_context.extradata or b""))


@dataclass(frozen=True, slots=True)
class _Survey:
    """What all packets of a file say."""

    header: ParameterSets
    inside: list[bytes]
    """Parameter sets that packets carry."""
    shown: list[int]
    """When each packet from the first key frame on is shown, in the order of decoding, ticks; those that say it."""
    is_timed: bool
    """Whether all of them say when they are decoded."""

    def decode_times(self) -> tuple[int, ...] | None:
        """Return decode times where the file does not state them: the show times in order, early enough for all."""
        if self.is_timed or not self.shown:
            return None
        ordered = sorted(self.shown)
        delay = max(due - time for due, time in zip(ordered, self.shown, strict=True))
        return tuple(time - delay for time in ordered)


def _survey(path: Path) -> _Survey:
    """Read all packets of a file once.

    Raises:
        NotAppendable: its parameter sets cannot be read.
    """
    inside: dict[bytes, None] = {}
    shown: list[int] = []
    is_timed, is_begun = True, False
    with open_container(path) as container:
        stream = video_stream(path, container)
        header = bytes(stream.codec_context.extradata or b"")
        form = PacketForm.of(header)
        try:
            for packet in container.demux(stream):
                is_begun |= packet.is_keyframe
                if packet.size == 0:
                    continue
                inside.update(dict.fromkeys(parameter_sets(form.units(bytes(packet)))))
                if is_begun and packet.pts is not None:
                    shown.append(packet.pts)
                    is_timed &= packet.dts is not None
        except av.FFmpegError as error:
            raise NotAppendable(f"its packets cannot all be read ({reason(error)})") from error
    try:
        sets = ParameterSets.read(header) if form.length_size else ParameterSets.of_units([*units_of(header), *inside])
    except BadHeader as error:
        raise NotAppendable(str(error)) from error
    return _Survey(sets, list(inside), shown, is_timed)
