"""The table at the front of a safetensors file, checked like a stranger's; and what lies inside a folder."""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentvid.core.errors import CheckpointError, InputError
from latentvid.core.reading import check_no_pointer, opened, parse_json, read_at

LARGEST_HEADER = 1 << 25
SEAL = "header_sha256"
"""The entry of the metadata that holds the hash of the header."""
_SEALED = re.compile(rb'"header_sha256": "([^"]{64})"')
_MOST_DIMENSIONS = 16
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Of one number of each of safetensors' types."""


@dataclass(frozen=True, slots=True)
class Header:
    """The table at the front of a safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name to (dtype as the file writes it, shape)."""
    starts: dict[str, int] = field(default_factory=dict)
    """Name to the place of the tensor's first byte in the file."""

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        CheckpointError: the file is missing, damaged, or not safetensors.
    """
    try:
        with opened(path) as handle:
            return parse_header(header_bytes(handle, path), os.fstat(handle).st_size, path)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def header_bytes(handle: int, path: str | Path) -> bytes:
    """Return the first bytes of an open safetensors file: the length of its table, and the table.

    Raises:
        CheckpointError: it is cut short, or no safetensors file.
        InputError: it is only a pointer to one.
    """
    start = read_at(handle, 64, 0)
    check_no_pointer(start, path)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or length > LARGEST_HEADER:
        raise _no_safetensors(path, "it has no header" if len(start) < 8 else f"its header claims {length:,} bytes")
    data = read_at(handle, 8 + length, 0)
    if len(data) < 8 + length:
        raise _no_safetensors(path, "it is cut short")
    return data


def parse_header(data: bytes, num_bytes: int, path: str | Path) -> Header:
    """Return what the first bytes of a safetensors file say.

    Args:
        data: as from `header_bytes`.
        num_bytes: of the whole file, which the tensors must fill without gaps.

    Raises:
        CheckpointError: it makes no sense.
    """
    try:
        table = parse_json(data[8:].decode("utf-8"), pairs=_table_of_one_each)
        if not isinstance(table, dict) or data[8:9] != b"{":
            raise ValueError("its header is no table")
        metadata = table.pop("__metadata__", None) or {}
        if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
            raise ValueError("its metadata are not words")
        spans = {name: _span(name, entry) for name, entry in table.items()}
        end = 0
        for name, (_, _, start, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
            if start != end:
                raise ValueError(f"{name[:80]!r} does not lie where it should")
            end = stop
        if len(data) + end != num_bytes:
            raise ValueError(f"{num_bytes:,} bytes for {len(data) + end:,}")
    except ValueError as error:
        raise _no_safetensors(path, str(error)) from error
    return Header(
        metadata,
        {name: (dtype, shape) for name, (dtype, shape, _, _) in spans.items()},
        {name: len(data) + start for name, (_, _, start, _) in spans.items()},
    )


def seal(data: bytes) -> bytes:
    """Return a header, whose metadata hold 64 zeros for its hash, with the hash in their place.

    Args:
        data: all of it: the length, the table, and what it is padded with.
    """
    (place,) = _SEALED.finditer(data)
    return data[: place.start(1)] + _hash_of(data) + data[place.end(1) :]


def _hash_of(data: bytes) -> bytes:
    """Return the hex SHA-256 of a header, whatever it says of its own hash."""
    return hashlib.sha256(_SEALED.sub(b'"header_sha256": "' + b"0" * 64 + b'"', data)).hexdigest().encode()


def check_seal(data: bytes, header: Header, path: str | Path) -> None:
    """Compare a header with the hash that it holds of itself.

    Args:
        data: as from `header_bytes`.

    Raises:
        CheckpointError: it has none, or was changed since.
    """
    found = _SEALED.findall(data)
    expected = header.metadata.get(SEAL, "").encode()
    if found != [expected] or _hash_of(data) != expected:
        raise CheckpointError(f"{path} is damaged: its header does not match its hash. Encode the clip again.")


def _span(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, and the first and last place of a tensor, seen from the header's end.

    Raises:
        ValueError: they do not fit each other.
    """
    keys = ("dtype", "shape", "data_offsets")
    if not isinstance(entry, dict) or entry.keys() != set(keys):
        raise ValueError(f"the entry of {name[:80]!r} is none of a tensor")
    dtype, shape, offsets = (entry[key] for key in keys)
    if not (isinstance(dtype, str) and dtype in _BITS and _are_sizes(shape) and len(shape) <= _MOST_DIMENSIONS):
        raise ValueError(f"{name[:80]!r} is of no type or shape that there is")
    if not (_are_sizes(offsets) and len(offsets) == 2):
        raise ValueError(f"{name[:80]!r} lies nowhere")
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * _BITS[dtype]:
        raise ValueError(f"{name[:80]!r} has {offsets[1] - offsets[0]:,} bytes for {dtype} {shape}")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _table_of_one_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name is given twice")
    return table


def _no_safetensors(path: str | Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: damaged, or not a safetensors file ({why}).")


def inside(root: Path, path: Path) -> Path:
    """Return `path`, if it lies in the folder `root` once all links are followed.

    The cache of the Hugging Face hub keeps a checkpoint's files as links into a folder of its own (`snapshots/REVISION`
    beside `blobs`); these count as inside.

    Raises:
        CheckpointError: it leads outside.
    """
    try:
        place, top = path.resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be followed ({error}).") from error
    roots = [top, *(above.parent / "blobs" for above in top.parents if above.name == "snapshots")]
    if not any(place.is_relative_to(folder) for folder in roots):
        raise CheckpointError(f"{path} leads out of {root}; nothing outside a checkpoint's folder is read for it.")
    return path
