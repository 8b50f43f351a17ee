"""H.264 in files: parameter sets, the header that holds them, and packets in the form that goes with that header."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

SEQUENCE_SET, PICTURE_SET = 7, 8
_WITH_CHROMA = (100, 110, 122, 244)
"""Profiles whose header states the chroma format and the depth (ISO/IEC 14496-15, 5.3.3.1.2)."""


class BadHeader(Exception):
    """A header that cannot be used; the text says why, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class ParameterSets:
    """An AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1)."""

    front: bytes
    """Version, profile, compatibility, level and length size."""
    sequence: tuple[bytes, ...]
    picture: tuple[bytes, ...]
    rest: bytes

    @classmethod
    def read(cls, record: bytes) -> ParameterSets:
        """Read a record.

        Raises:
            BadHeader: it is none, or damaged.
        """
        try:
            if len(record) < 7 or record[0] != 1:
                raise BadHeader("its H.264 stream is of another form")
            sequence, at = _stored_units(record, 6, record[5] & 31)
            picture, end = _stored_units(record, at + 1, record[at])
        except (IndexError, struct.error) as error:
            raise BadHeader("its H.264 header is damaged") from error
        return cls(record[:4] + bytes([record[4] | 3]), sequence, picture, record[end:])

    @classmethod
    def of_units(cls, units: Iterable[bytes]) -> ParameterSets:
        """Return the record of a stream that carries its parameter sets among its units.

        Raises:
            BadHeader: they are missing or damaged.
        """
        found = list(dict.fromkeys(units))
        sequence = tuple(unit for unit in found if unit_type(unit) == SEQUENCE_SET and len(unit) > 4)
        picture = tuple(unit for unit in found if unit_type(unit) == PICTURE_SET)
        if not sequence or not picture:
            raise BadHeader("its H.264 stream has no parameter sets")
        first, rest = sequence[0], b""
        if first[1] in _WITH_CHROMA:
            try:
                chroma, luma_depth, chroma_depth = _formats(first)
            except ValueError as error:
                raise BadHeader("its H.264 header is damaged") from error
            rest = bytes([0xFC | chroma, 0xF8 | luma_depth, 0xF8 | chroma_depth, 0])
        return cls(bytes([1]) + first[1:4] + b"\xff", sequence, picture, rest)

    def joined(self, other: ParameterSets) -> ParameterSets:
        return ParameterSets(self.front, self.sequence + other.sequence, self.picture + other.picture, self.rest)

    def to_bytes(self) -> bytes:
        pack = lambda units: b"".join(struct.pack(">H", len(unit)) + unit for unit in units)  # noqa: E731
        counts = bytes([0xE0 | len(self.sequence)]), bytes([len(self.picture)])
        return self.front + counts[0] + pack(self.sequence) + counts[1] + pack(self.picture) + self.rest

    def free_number(self, besides: Iterable[bytes] = ()) -> int:
        """Return a number that no parameter set has, neither here nor among other units.

        Raises:
            BadHeader: there is none.
        """
        used = {_number(unit) for unit in (*self.sequence, *self.picture, *besides)}
        free = [number for number in range(1, 32) if number not in used]
        if not free:
            raise BadHeader("all its parameter sets are taken")
        return free[0]


@dataclass(frozen=True, slots=True)
class PacketForm:
    """How packets delimit their units: by a length in so many bytes, or (0) by start codes (Annex B)."""

    length_size: int

    @classmethod
    def of(cls, header: bytes) -> PacketForm:
        """Return the form that goes with a stream's header."""
        return cls((header[4] & 3) + 1 if len(header) >= 7 and header[0] == 1 else 0)

    @property
    def is_usual(self) -> bool:
        """Whether it is that of the records here, so that packets can stay as they are."""
        return self.length_size == 4

    def units(self, packet: bytes) -> list[bytes]:
        """Return the units of a packet; damage ends the list."""
        if self.length_size == 0:
            return units_of(packet)
        found, at, size = [], 0, self.length_size
        while at + size < len(packet):
            length = int.from_bytes(packet[at : at + size], "big")
            if not length:
                break
            found.append(packet[at + size : at + size + length])
            at += size + length
        return found

    def usual(self, packet: bytes) -> bytes:
        """Return the packet with lengths of four bytes."""
        return b"".join(struct.pack(">I", len(unit)) + unit for unit in self.units(packet))


def units_of(stream: bytes) -> list[bytes]:
    """Return the units between the start codes of a stream (H.264, Annex B).

    >>> units_of(bytes.fromhex("00000001 6764 000001 68ee 00"))
    [b'gd', b'h\\xee']
    """
    # A unit never ends with a zero byte: those in front of a start code are padding.
    return [unit for part in stream.split(b"\0\0\1")[1:] if (unit := part.rstrip(b"\0"))]


def unit_type(unit: bytes) -> int:
    return unit[0] & 31 if unit else 0


def parameter_sets(units: Iterable[bytes]) -> list[bytes]:
    """Return those units that are sequence or picture parameter sets."""
    return [unit for unit in units if unit_type(unit) in (SEQUENCE_SET, PICTURE_SET)]


def exp_golomb(data: bytes) -> int:
    """Return the ue(v) at the start of some bytes.

    >>> exp_golomb(bytes([0b10000000])), exp_golomb(bytes([0b01000000])), exp_golomb(bytes([0b00101000]))
    (0, 1, 4)
    """
    bits = _bits(data)
    return _value(bits[: _end(bits, 0)])


def _number(unit: bytes) -> int:
    """Return a parameter set's number; an SPS has three bytes of profile and level in front of it."""
    try:
        return exp_golomb(unit[4:] if unit_type(unit) == SEQUENCE_SET else unit[1:])
    except ValueError:
        return -1


def _formats(sequence: bytes) -> tuple[int, int, int]:
    """Return the chroma format, and the depths of luma and chroma less 8."""
    bits = _bits(sequence[4:].replace(b"\0\0\3", b"\0\0"))
    at = _end(bits, 0)
    chroma_end = _end(bits, at)
    chroma = _value(bits[at:chroma_end])
    at = chroma_end + (chroma == 3)  # 4:4:4 has a flag there
    luma_end = _end(bits, at)
    return chroma, _value(bits[at:luma_end]), _value(bits[luma_end : _end(bits, luma_end)])


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data[:24])


def _end(bits: str, at: int) -> int:
    """Return where the ue(v) at a place ends."""
    return 2 * bits.index("1", at) - at + 1


def _value(bits: str) -> int:
    return int(bits, 2) - 1


def _stored_units(record: bytes, at: int, count: int) -> tuple[tuple[bytes, ...], int]:
    units = []
    for _ in range(count):
        (length,) = struct.unpack(">H", record[at : at + 2])
        units.append(record[at + 2 : at + 2 + length])
        at += 2 + length
    return tuple(units), at
