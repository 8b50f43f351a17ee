"""Sound that goes along with new pictures: packets copied from another file, moved onto the film's clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

from latentvid.core.errors import InputError, UsageError
from latentvid.video.container import open_container, reason, video_stream
from latentvid.video.scan import scan


@dataclass(frozen=True, slots=True)
class Sound:
    """A file whose sound is copied."""

    path: Path
    start_s: Fraction
    """The time in that file that becomes 0; sound that ends before it is left out."""
    end_s: Fraction
    """The film's end on its own clock; sound that begins later is left out."""


def has_sound(path: Path) -> bool:
    """Whether there is anything to copy.

    Raises:
        InputError: the file cannot be read.
    """
    with open_container(path) as container:
        return bool(container.streams.audio)


def picture_start(path: Path) -> Fraction:
    """Return the time of the first shown frame of a file with sound, 0 if it has no pictures."""
    with open_container(path) as container:
        if not container.streams.video:
            return Fraction(0)
        stream = video_stream(path, container)
        by_packets = (stream.start_time or 0) * (stream.time_base or Fraction(1))
    try:
        return scan(path).meta.start_s  # captures may begin with packets that cannot be decoded
    except InputError:
        return by_packets


@contextmanager
def copied_sound(sound: Sound, target: OutputContainer) -> Iterator[Iterator[Packet]]:
    """Add a stream to `target`, before its header is written, and yield the packets to put into it.

    A file without sound adds nothing.

    Raises:
        InputError: the file cannot be read.
        UsageError: its sound does not fit into the container.
    """
    with open_container(sound.path) as container:
        if not container.streams.audio:
            yield iter(())
            return
        source = cast(AudioStream, container.streams.best("audio") or container.streams.audio[0])
        try:
            stream = target.add_stream_from_template(source)
        except (av.FFmpegError, ValueError) as error:
            raise UsageError(
                f"{sound.path}: its sound does not go into this kind of file ({reason(error)}); write .mkv instead."
            ) from error
        stream.time_base = source.time_base
        yield _packets(container, source, stream, sound)


def decode_time(packet: Packet) -> Fraction:
    """Return when a packet is due, seconds: the order in which streams are laid side by side."""
    assert packet.dts is not None
    return packet.dts * packet.time_base


def _packets(container: InputContainer, source: AudioStream, stream: AudioStream, sound: Sound) -> Iterator[Packet]:
    base = source.time_base
    assert base is not None
    shift = round(sound.start_s / base)
    last_dts: int | None = None
    try:
        for packet in container.demux(source):
            if packet.size == 0 or packet.pts is None or packet.dts is None:
                continue
            packet.pts -= shift
            packet.dts -= shift
            if packet.pts * base >= sound.end_s:
                return
            is_before = (packet.pts + (packet.duration or 0)) * base <= 0 and not packet.is_discard
            if is_before or (last_dts is not None and packet.dts <= last_dts):
                continue
            last_dts = packet.dts
            packet.stream = stream
            yield packet
    except av.FFmpegError as error:
        raise InputError(f"{sound.path}: its sound cannot be read ({reason(error)}).") from error
