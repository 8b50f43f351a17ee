"""An encoded segment as a piece of an MPEG transport stream, for playlists; packets are copied, none is re-encoded."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.packet import Packet

from latentvid.core.errors import InputError
from latentvid.core.files import atomic_path, resource_errors
from latentvid.video.container import open_container, reason, video_stream

LEAD = 4
"""Frames by which decoding runs ahead of showing: the same in all pieces, or their clocks would cross at the joins."""


def write_transport_stream(segment: str | Path, out: str | Path, *, first_frame: int, fps: Fraction) -> None:
    """Write the pictures of an H.264 segment to `out`, a `.ts` file.

    Args:
        first_frame: number in the whole of the first picture, which is shown `LEAD` frames after its time.

    Raises:
        InputError: the segment is damaged or its codec has no place in such a stream.
    """
    segment = Path(segment)
    options = {"fflags": "+bitexact", "mpegts_flags": "+initial_discontinuity", "mpegts_copyts": "1"}
    shown = sorted(packet.pts or 0 for packet in _packets(segment))
    if not shown:
        raise InputError(f"{segment}: holds no frames.")
    with atomic_path(out) as beside, resource_errors(Path(out)), open_container(segment) as source:
        template = video_stream(segment, source)
        tick = template.time_base or Fraction(1, 90_000)
        shift = round(first_frame / fps / tick) - shown[0]
        lead = round(LEAD / fps / tick)
        try:
            with av.open(f"file:{beside}", "w", format="mpegts", container_options=options) as target:
                stream = target.add_stream_from_template(template)
                for packet, decoded_at in zip(_packets(segment), shown, strict=True):
                    packet.pts = (packet.pts or 0) + shift + lead
                    packet.dts = decoded_at + shift
                    packet.stream = stream
                    target.mux_one(packet)
        except (av.FFmpegError, ValueError) as error:
            if isinstance(error, OSError):
                raise
            raise InputError(f"{segment}: cannot be put into a preview ({reason(error)}).") from error


def _packets(path: Path) -> Iterator[Packet]:
    with open_container(path) as container:
        for packet in container.demux(video_stream(path, container)):
            if packet.size and packet.pts is not None:
                yield packet
