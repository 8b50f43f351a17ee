"""Whether a file is shorter than its own container says, which decoders often pass over in silence.

Reads a few bytes of structure: the top-level boxes of MP4 and MOV (ISO/IEC 14496-12), the Segment size of
Matroska and WebM (RFC 8794), and the RIFF size of AVI.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

_MAX_BOXES = 1_000_000


def missing_bytes(path: Path, container: str) -> int:
    """Return how many bytes the container promises beyond the end of the file (0: none, or not known)."""
    with path.open("rb") as stream:
        size = path.stat().st_size
        if "mov" in container:
            return max(0, _end_of_boxes(stream, size) - size)
        if "matroska" in container:
            return max(0, _end_of_segment(stream) - size)
        if container == "avi":
            header = stream.read(8)
            return max(0, struct.unpack("<I", header[4:])[0] + 8 - size) if header[:4] == b"RIFF" else 0
    return 0


def _end_of_boxes(stream: BinaryIO, size: int) -> int:
    position = 0
    for _ in range(_MAX_BOXES):
        if position + 8 > size:
            break
        stream.seek(position)
        header = stream.read(16)
        length = struct.unpack(">I", header[:4])[0]
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length < 8 or not header[4:8].isalnum():  # 0 runs to the end of the file; anything less is padding
            break
        position += length
    return position


def _end_of_segment(stream: BinaryIO) -> int:
    if stream.read(4) != b"\x1a\x45\xdf\xa3":
        return 0
    header_size = _vint(stream)
    if header_size is None:
        return 0
    stream.seek(header_size, 1)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return 0
    size = _vint(stream)
    return 0 if size is None else stream.tell() + size


def _vint(stream: BinaryIO) -> int | None:
    """Read an EBML size; None where it is "unknown", as in live streams."""
    first = stream.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & ((1 << (8 - length)) - 1)]) + stream.read(length - 1), "big")
    return None if value == (1 << (7 * length)) - 1 else value
