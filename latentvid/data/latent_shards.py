"""Latents in tar files, as webdataset lays them out: written whole or not at all, read with the standard library.

A sample is the members of one key: `KEY.latents.npy` [t c h w] float16 or float32, `KEY.json` (what it is of), and
`KEY.txt` where it has a caption. As in webdataset, the key is all of the name but what follows the first dot of its
last part, folders included. Nothing in them is code: no pickles, headers are checked before memory is taken, and what
the records say of the latents must be so. Equal samples give equal bytes.
"""

from __future__ import annotations

import filecmp
import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from latentvid.core.errors import CheckpointError, InputError, UsageError
from latentvid.core.files import atomic_path
from latentvid.core.reading import check_no_pointer, opened, parse_json, read_at
from latentvid.data.text_files import decode_text, warn_of_odd_bytes

LATENTS, ABOUT, CAPTION = "latents.npy", "json", "txt"
_MOST_WORDS = 1 << 20
"""Bytes of a caption or a record; more is none of ours."""
_MOST_MEMBERS = 1 << 22
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?s:..)\{'descr': '(?P<dtype><f[24])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>\d{1,9}, \d{1,9}, \d{1,9}, \d{1,9})\), \} *\n"
)
"""Of an .npy of latents, as numpy writes it; it says no more than that, and is not evaluated."""


class ShardWriter:
    """Writes samples into `PREFIX-00000.tar`, `PREFIX-00001.tar` and so on. Use as a context manager.

    A shard that exists with the same bytes is left as it is, so that a killed run can simply be repeated.

    Args:
        folder: made where missing.
        prefix: of the files' names.
        max_bytes: a shard is closed before it would grow beyond this; one sample always fits.
        overwrite: replace shards that hold something else.

    Raises:
        UsageError: such a shard exists (without `overwrite`).
    """

    def __init__(
        self, folder: str | Path, *, prefix: str = "latents", max_bytes: int = 1 << 30, overwrite: bool = False
    ) -> None:
        self.folder, self.prefix, self.max_bytes, self.overwrite = Path(folder), prefix, max_bytes, overwrite
        self.paths: list[Path] = []
        self.num_samples = 0
        self._open = ExitStack()
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind, error, trace)

    def add(self, key: str, latents: Tensor, about: dict[str, Any], caption: str = "") -> None:
        """Append a sample.

        Args:
            key: without dots and separators, since webdataset takes what follows a dot for the member's kind.
            latents: [c t h w], float16 or float32.
            about: JSON-able.
            caption: "" for none.
        """
        if not key or set(key) & set("./\\"):
            raise ValueError(f"{key!r} is no key of a sample")
        array = io.BytesIO()
        np.lib.format.write_array(array, latents.transpose(0, 1).contiguous().cpu().numpy(), allow_pickle=False)
        parts = {LATENTS: array.getvalue(), ABOUT: json.dumps(about, sort_keys=True).encode()}
        if caption:
            parts[CAPTION] = caption.encode()
        # Every member has a block of header and is padded to whole blocks.
        size = sum(tarfile.BLOCKSIZE * (1 + math.ceil(len(data) / tarfile.BLOCKSIZE)) for data in parts.values())
        if self._tar is not None and self._tar.offset + size > self.max_bytes:
            self._close()
        tar = self._tar or self._next()
        for kind, data in parts.items():
            member = tarfile.TarInfo(f"{key}.{kind}")  # times, owners and modes stay what they are by default
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        self.num_samples += 1

    def _next(self) -> tarfile.TarFile:
        path = self.folder / f"{self.prefix}-{len(self.paths):05d}.tar"
        beside = self._open.enter_context(_unless_same(path, overwrite=self.overwrite))
        tar = tarfile.TarFile(beside, "w", format=tarfile.USTAR_FORMAT)
        self._tar = self._open.enter_context(tar)
        self.paths.append(path)
        return tar

    def _close(self, *error: Any) -> None:
        self._tar = None
        self._open.__exit__(*(error or (None, None, None)))


class _SameError(Exception):
    """What was written is there already."""


@contextmanager
def _unless_same(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """`atomic_path`, except that a target of the same bytes is not touched, and one of others only with leave."""
    try:
        with atomic_path(target, overwrite=overwrite or None) as beside:
            yield beside
            if target.exists() and filecmp.cmp(beside, target, shallow=False):
                raise _SameError
            if target.exists() and not overwrite:
                raise UsageError(f"{target} exists and holds other latents; pass --overwrite to replace it.")
    except _SameError:
        pass


@dataclass(frozen=True, slots=True)
class _Member:
    shard: Path
    stamp: tuple[int, int, int]
    """Which file it was when the shard was opened, its size, and when it was last written."""
    start: int
    size: int


class LatentShards:
    """Samples of latents by number, read from tar files when asked for.

    Opening reads the tar headers only. `latents` and `captions` are those of the training cache, which it can stand for
    where no pixels are needed.

    Args:
        places: shards, or folders of them.

    Raises:
        CheckpointError: there are none, or one is damaged or no shard of latents.
    """

    def __init__(self, *places: str | Path) -> None:
        self.shards = [shard for place in places for shard in _shards(Path(place))]
        self._samples: list[dict[str, _Member]] = []
        self.keys: list[str] = []
        for shard in self.shards:
            for key, members in _index(shard):
                self.keys.append(key)
                self._samples.append(members)
        self.shapes: list[tuple[int, int, int, int]] = [self._shape(number) for number in range(len(self.keys))]
        """[t c h w] of each sample."""
        odd: dict[Path, int] = {}
        self.captions: list[list[str]] = [self._caption(members, odd) for members in self._samples]
        warn_of_odd_bytes(odd)

    def __len__(self) -> int:
        return len(self.keys)

    def latents(self, index: int) -> Tensor:
        """Return float32 [c t h w].

        Raises:
            CheckpointError: the sample is damaged.
        """
        member = self._samples[index][LATENTS]
        try:
            return _array(_read(member)).transpose(0, 1)
        except ValueError as error:
            raise self._damaged(index, "array", error) from error

    def about(self, index: int) -> dict[str, Any]:
        """Return the record of a sample."""
        member = self._samples[index][ABOUT]
        try:
            about = parse_json(_read(member))
            if not isinstance(about, dict):
                raise ValueError("it is no table")
        except ValueError as error:
            raise self._damaged(index, "record", error) from error
        return about

    def _shape(self, index: int) -> tuple[int, int, int, int]:
        """Return the shape that a sample's array has, which must be what its record says, where it says it.

        Raises:
            CheckpointError: the array or the record is damaged, or they contradict each other.
        """
        member, about = self._samples[index][LATENTS], self.about(index)
        try:
            _, shape, _ = _array_header(_read(member, 128), member.size)
        except ValueError as error:
            raise self._damaged(index, "latents", error) from error
        counts: dict[str, Any] = {"num_latents": shape[0], "channels": shape[1]}
        factor = about.get("spatial_factor", 0)
        if type(factor) is int and factor > 0:
            for side, given in (("height", shape[2]), ("width", shape[3])):
                if side in about:
                    size = about[side]
                    is_right = type(size) is int and (given - 1) * factor < size <= given * factor
                    counts[side] = size if is_right else f"{given * factor} at most"
        elif "spatial_factor" in about:
            counts["spatial_factor"] = "1 or more"
        for name, value in counts.items():
            if name in about and (type(about[name]) is not int or about[name] != value):
                why = f"it says {name} {about[name]!r:.40} of latents with {value}"
                raise self._damaged(index, "record", ValueError(why))
        return shape

    def _damaged(self, index: int, what: str, error: Exception) -> CheckpointError:
        shard = self._samples[index][LATENTS].shard
        return CheckpointError(f"{shard}: the {what} of {self.keys[index][:80]} is damaged ({error}).")

    @staticmethod
    def _caption(members: dict[str, _Member], odd: dict[Path, int]) -> list[str]:
        if CAPTION not in members:
            return []
        text, num_odd = decode_text(_read(members[CAPTION]))
        if num_odd:
            shard = members[CAPTION].shard
            odd[shard] = odd.get(shard, 0) + num_odd
        return [text] if text else []


def _shards(place: Path) -> list[Path]:
    try:
        found = sorted(place.glob("*.tar")) if place.is_dir() else [place]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{place}: cannot be read ({error}).") from error
    if not found:
        raise CheckpointError(f"{place} holds no shards of latents.")
    return found


def _index(shard: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield the samples of a shard: members of one key follow each other."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        with opened(shard) as handle:
            stamp = _stamp(handle)
            check_no_pointer(read_at(handle, 64, 0), shard)
            for name, member in _members(shard, handle, stamp):
                key, kind = _key(name)
                if kind != LATENTS and member.size > _MOST_WORDS:
                    raise CheckpointError(f"{shard}: {name[:80]!r} is too large.")
                if kind in samples.setdefault(key, {}):
                    raise CheckpointError(f"{shard}: {name[:80]!r} is in it twice.")
                samples[key][kind] = member
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except (tarfile.TarError, OSError, ValueError, ArithmeticError, EOFError) as error:
        raise CheckpointError(f"{shard}: damaged, or no tar file ({error}).") from error
    for key, members in samples.items():
        if LATENTS not in members or ABOUT not in members:
            raise CheckpointError(f"{shard}: the sample {key[:80]!r} lacks its latents or its record.")
        yield key, members


def _members(shard: Path, handle: int, stamp: tuple[int, int, int]) -> Iterator[tuple[str, _Member]]:
    """Yield the names and places of the files in a tar, which must lie one behind the other."""
    with (
        os.fdopen(os.dup(handle), "rb") as stream,
        tarfile.open(fileobj=_Forward(stream), mode="r:") as tar,  # type: ignore[call-overload]
    ):
        end = 0
        for number, member in enumerate(tar):
            if not member.isreg() or member.issparse() or member.offset_data + member.size > stamp[1]:
                raise CheckpointError(f"{shard}: {member.name[:80]!r} is cut short, or no file.")
            if member.size < 0 or member.offset_data < end or number >= _MOST_MEMBERS:
                raise CheckpointError(f"{shard}: {member.name[:80]!r} lies where no file can.")
            end = member.offset_data + member.size
            yield member.name, _Member(shard, stamp, member.offset_data, member.size)


class _Forward:
    """A file that is read from its start to its end, and never back: a header can claim a size below zero."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._furthest = stream, 0

    def read(self, num_bytes: int = -1) -> bytes:
        if num_bytes < 0:
            raise tarfile.ReadError("a size below zero")
        return self._stream.read(num_bytes)

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, place: int, whence: int = 0) -> int:
        # One block back is what tarfile does to find out whether a file has ended.
        if whence != 0 or place < self._furthest - tarfile.BLOCKSIZE:
            raise tarfile.ReadError("a step back")
        self._furthest = max(self._furthest, place)
        return self._stream.seek(place)


def _key(name: str) -> tuple[str, str]:
    """Return the key of a member, and what of the sample it is: what follows the first dot of the name's last part."""
    folder, slash, last = name.rpartition("/")
    key, _, kind = last.partition(".")
    return folder + slash + key, kind


def _stamp(handle: int) -> tuple[int, int, int]:
    about = os.fstat(handle)
    return about.st_ino, about.st_size, about.st_mtime_ns


def _read(member: _Member, num_bytes: int | None = None) -> bytes:
    """Return a member's bytes, or its first ones."""
    try:
        with opened(member.shard) as handle:
            wanted = member.size if num_bytes is None else min(num_bytes, member.size)
            data = b""
            while len(data) < wanted and (part := read_at(handle, wanted - len(data), member.start + len(data))):
                data += part
            is_same = _stamp(handle) == member.stamp
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(f"{member.shard}: cannot be read ({error.strerror}).") from error
    if len(data) != wanted or not is_same:
        raise CheckpointError(f"{member.shard}: has changed since it was opened.")
    return data


def _array_header(data: bytes, size: int) -> tuple[np.dtype[Any], tuple[int, int, int, int], int]:
    """Return the type and shape [t c h w] of an .npy of latents, and where its values begin.

    Args:
        data: its first bytes.
        size: of all of it.

    Raises:
        ValueError: it is none, or has another size than it says.
    """
    match = _HEADER.match(data)
    if match is None or len(match[0]) != 10 + int.from_bytes(data[8:10], "little"):
        raise ValueError("no array of latents that numpy wrote")
    t, c, h, w = (int(side) for side in match["shape"].split(b","))
    dtype = np.dtype(match["dtype"].decode())
    if min(t, c, h, w) < 1 or size - len(match[0]) != t * c * h * w * dtype.itemsize:
        raise ValueError(f"{size} bytes for {[t, c, h, w]}")
    return dtype, (t, c, h, w), len(match[0])


def _array(data: bytes) -> Tensor:
    """Read an .npy of latents [t c h w] as float32.

    Raises:
        ValueError: it is none: another type or shape, or a header that does not go with the size.
    """
    dtype, shape, start = _array_header(data, len(data))
    values = torch.from_numpy(np.frombuffer(data, dtype, offset=start).astype(np.float32)).view(shape)
    if not torch.isfinite(values).all():
        raise ValueError("values that are not finite")
    return values
