"""Appending new frames to a user's H.264 file without touching its own: packets are copied, none is re-encoded.

Two encoders' streams fit into one track if their parameter sets (SPS, PPS; H.264 7.4.1.2.1) have different numbers:
the track's header then holds both, and every picture names its own. The new segments are encoded with a number that
the file does not use (`VideoWriter(parameter_set=...)`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import torch
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream

from latentvid.core.files import atomic_path, resource_errors
from latentvid.video.container import open_container, reason, video_stream
from latentvid.video.reader import AS_STATED, PyAVReader, Reading

TOLERANCE_S = Fraction(2, 1000)
"""The clock of some containers ticks in milliseconds."""
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
PIXEL_FORMATS = ("yuv420p", "yuv444p")
_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class NotAppendable(Exception):
    """The file's packets cannot be kept; the text says why, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class Joint:
    """How segments must be encoded to be appended to a file."""

    parameter_set: int
    color: Literal["bt709", "bt601"]
    pix_fmt: str
    width: int
    height: int
    end_s: Fraction
    """When the file's last frame ends: the first new one is shown then."""


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
    with open_container(clip) as container:
        kind, header = container.format.name, bytes(video_stream(clip, container).codec_context.extradata or b"")
    checks = {
        f"it is a {kind.split(',')[0]} file": kind in _FORMATS,
        f"its codec is {meta.codec}": meta.codec == "h264",
        f"its pixels are {meta.pix_fmt}": meta.pix_fmt in PIXEL_FORMATS,
        "its pictures are turned": not meta.rotation and not reader.scan.orientation.is_mirrored,
        "its pixels are not square": meta.sample_aspect_ratio in (0, 1),
        f"its colours are {meta.color_range} {meta.color_matrix}": meta.color_range == "limited"
        and meta.color_matrix in ("bt709", "bt601"),
        "its sides are odd": meta.pix_fmt == "yuv444p" or (meta.width % 2 == 0 and meta.height % 2 == 0),
        "it hides frames or breaks off": index.is_exact and not index.num_hidden and not meta.is_truncated,
    }
    for why, is_met in checks.items():
        if not is_met:
            raise NotAppendable(why)
    last = index.pts[-1] * meta.time_base
    shown_for = index.last_duration * meta.time_base or 1 / meta.fps
    color: Literal["bt709", "bt601"] = "bt709" if meta.color_matrix == "bt709" else "bt601"
    return Joint(
        _ParameterSets.read(header).free_number(), color, meta.pix_fmt, meta.width, meta.height, last + shown_for
    )


def append_segments(
    clip: str | Path, segments: Sequence[str | Path], out: str | Path, *, joint: Joint, fps: Fraction,
    overwrite: bool = True,
) -> None:  # fmt: skip
    """Write the clip, sound and all, followed by the segments' frames at `fps`. Memory does not grow with either.

    Args:
        segments: written with the joint's parameter set, colour and size.

    Raises:
        NotAppendable: the container does not take it.
    """
    clip = Path(clip)
    with atomic_path(out, overwrite=overwrite) as beside, resource_errors(Path(out)):
        try:
            with av.open(f"file:{beside}", "w", container_options=_options(beside)) as target:
                _copy(clip, [Path(s) for s in segments], target, joint, fps)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
                raise
            raise NotAppendable(f"the file cannot hold it ({reason(error)})") from error


def begins_with(out: str | Path, clip: str | Path, reading: Reading = AS_STATED) -> bool:
    """Whether `out` shows every frame of `clip` first, bit for bit and at its time."""
    theirs = PyAVReader(Path(out)).frames()
    start: Fraction | None = None
    for mine in reading.open(clip).frames():
        other = next(theirs, None)
        if other is None or not torch.equal(mine.pixels, other.pixels):
            return False
        start = other.time_s - mine.time_s if start is None else start
        if abs(other.time_s - mine.time_s - start) > TOLERANCE_S:
            return False
    return True


def _options(path: Path) -> dict[str, str]:
    options = {"fflags": "+bitexact"}
    if path.suffix.lower() != ".mkv":
        options["movflags"] = "+faststart"
    return options


def _copy(clip: Path, segments: list[Path], target: OutputContainer, joint: Joint, fps: Fraction) -> None:
    with open_container(clip) as source:
        own = video_stream(clip, source)
        video = target.add_stream_from_template(own)
        both = _ParameterSets.read(bytes(own.codec_context.extradata or b""))
        both = both.joined(_header_of(segments[0]))
        video.codec_context.extradata = both.to_bytes()
        tick = own.time_base or Fraction(1, 90_000)
        video.time_base = tick
        streams: dict[int, Stream] = {own.index: video}
        for sound in source.streams.audio:
            streams[sound.index] = target.add_stream_from_template(sound)
        for packet in source.demux(own, *source.streams.audio):
            if packet.size == 0 or packet.dts is None:
                continue
            packet.stream = streams[packet.stream.index]
            target.mux_one(packet)
        for n, packet in enumerate(_packets(segments)):
            start, end = (round((joint.end_s + k / fps) / tick) for k in (n, n + 1))
            packet.stream = video
            packet.time_base = tick
            packet.pts = packet.dts = start
            packet.duration = end - start
            target.mux_one(packet)


def _packets(segments: list[Path]) -> Iterator[Packet]:
    for path in segments:
        with open_container(path) as container:
            for packet in container.demux(video_stream(path, container)):
                if packet.size:
                    yield packet


def _header_of(path: Path) -> _ParameterSets:
    with open_container(path) as container:
        return _ParameterSets.read(bytes(video_stream(path, container).codec_context.extradata or b""))


@dataclass(frozen=True, slots=True)
class _ParameterSets:
    """An AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1)."""

    front: bytes
    """Version, profile, compatibility, level and length size."""
    sequence: tuple[bytes, ...]
    picture: tuple[bytes, ...]
    rest: bytes

    @classmethod
    def read(cls, record: bytes) -> _ParameterSets:
        try:
            if len(record) < 7 or record[0] != 1 or record[4] & 3 != 3:
                raise NotAppendable("its H.264 stream is of another form")
            sequence, at = _units(record, 6, record[5] & 31)
            picture, end = _units(record, at + 1, record[at])
        except (IndexError, struct.error) as error:
            raise NotAppendable("its H.264 header is damaged") from error
        return cls(record[:5], sequence, picture, record[end:])

    def joined(self, other: _ParameterSets) -> _ParameterSets:
        return _ParameterSets(self.front, self.sequence + other.sequence, self.picture + other.picture, self.rest)

    def to_bytes(self) -> bytes:
        pack = lambda units: b"".join(struct.pack(">H", len(unit)) + unit for unit in units)  # noqa: E731
        counts = bytes([0xE0 | len(self.sequence)]), bytes([len(self.picture)])
        return self.front + counts[0] + pack(self.sequence) + counts[1] + pack(self.picture) + self.rest

    def free_number(self) -> int:
        """Return a number that neither the sequence nor the picture parameter sets have."""
        # An SPS has three bytes of profile and level in front of its number.
        used = {_exp_golomb(unit[4:]) for unit in self.sequence} | {_exp_golomb(unit[1:]) for unit in self.picture}
        free = [number for number in range(1, 32) if number not in used]
        if not free:
            raise NotAppendable("all its parameter sets are taken")
        return free[0]


def _units(record: bytes, at: int, count: int) -> tuple[tuple[bytes, ...], int]:
    units = []
    for _ in range(count):
        (length,) = struct.unpack(">H", record[at : at + 2])
        units.append(record[at + 2 : at + 2 + length])
        at += 2 + length
    return tuple(units), at


def _exp_golomb(data: bytes) -> int:
    """Return the ue(v) at the start of some bytes.

    >>> _exp_golomb(bytes([0b10000000])), _exp_golomb(bytes([0b01000000])), _exp_golomb(bytes([0b00101000]))
    (0, 1, 4)
    """
    bits = "".join(f"{byte:08b}" for byte in data[:9])
    zeros = bits.index("1")
    return int(bits[zeros : 2 * zeros + 1], 2) - 1
